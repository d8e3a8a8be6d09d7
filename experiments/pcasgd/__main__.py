"""PC-ASGD and its rivals, figure by figure: ``python -m experiments.pcasgd [--scale smoke|cpu|paper]``.

Figures: (1) accuracy curves of all methods, (2) steps of delay, (3) numbers of agents, (4) the practical variant's
choices, (5) time of an epoch, and the grid of theta and step size; with IID and with skewed shards.
"""

from experiments.pcasgd.page import write_page
from experiments.pcasgd.study import HERE, measure
from experiments.running import run_study

if __name__ == "__main__":
    run_study(HERE, __doc__, measure, write_page)
