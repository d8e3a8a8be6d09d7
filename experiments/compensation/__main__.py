"""What corrects a late AdamW direction: ``python -m experiments.compensation [--scale smoke|cpu|paper]`` from the root.

PC-ASGD under AdamW with a constant lambda, without one, and with the relative one, which has no unit.
"""

from experiments.compensation.page import write_page
from experiments.compensation.study import HERE, measure
from experiments.running import run_study

if __name__ == "__main__":
    run_study(HERE, __doc__, measure, write_page)
