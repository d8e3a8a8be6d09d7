"""Staleness-aware asynchronous SGD: ``python -m experiments.staleness_aware [--scale smoke|cpu|paper]``.

Accuracy against the number of workers and n of n-softsync, with and without the staleness-aware step size.
"""

from experiments.running import run_study
from experiments.staleness_aware.page import write_page
from experiments.staleness_aware.study import HERE, measure

if __name__ == "__main__":
    run_study(HERE, __doc__, measure, write_page)
