"""An optimizer's memory when an agent comes back: ``python -m experiments.returning [--scale smoke|cpu|paper]``.

An agent that was lost comes back as the mean of its neighbors; its optimizer begins anew, or goes on from a neighbor's.
"""

from experiments.returning.page import write_page
from experiments.returning.study import HERE, measure
from experiments.running import run_study

if __name__ == "__main__":
    run_study(HERE, __doc__, measure, write_page)
