"""Error floor and rate on strongly convex problems: ``python -m experiments.convergence [--scale smoke|cpu|paper]``.

Against theta, delay, step size and spectral gap: where predicting wins, and where clipping does.
"""

from experiments.convergence.page import write_page
from experiments.convergence.study import HERE, measure
from experiments.running import run_study

if __name__ == "__main__":
    run_study(HERE, __doc__, measure, write_page)
