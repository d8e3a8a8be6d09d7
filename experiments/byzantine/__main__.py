"""Attackers: ``python -m experiments.byzantine [--scale smoke|cpu|paper]`` from the root.

Every screen against every attack, by no, one and two attackers, with nobody late and with late links, on alike and on
skewed shards, some with nearest-neighbor mixing first; how many late honest neighbors each screen takes for attackers;
servers; BRIDGE's own experiment, and what Kardam costs. Runs that are complete are not run again.
"""

from experiments.byzantine.page import write_page
from experiments.byzantine.study import HERE, measure
from experiments.running import run_study

if __name__ == "__main__":
    run_study(HERE, __doc__, measure, write_page)
