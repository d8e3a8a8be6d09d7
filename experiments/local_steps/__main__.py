"""Local steps and late messages: ``python -m experiments.local_steps [--scale smoke|cpu|paper]`` from the root.

It compares PC-ASGD with averaging, clipping and outer optimizers, at equally many mini-batches.
"""

from experiments.local_steps.page import write_page
from experiments.local_steps.study import HERE, measure
from experiments.running import run_study

if __name__ == "__main__":
    run_study(HERE, __doc__, measure, write_page)
