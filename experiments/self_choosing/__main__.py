"""PC-ASGD without a knob: ``python -m experiments.self_choosing [--scale smoke|cpu|paper]``.

The gap of every way to choose theta, and the reach of prediction, to the best constant theta, cell by cell.
"""

from experiments.running import run_study
from experiments.self_choosing.page import write_page
from experiments.self_choosing.study import HERE, measure

if __name__ == "__main__":
    run_study(HERE, __doc__, measure, write_page)
