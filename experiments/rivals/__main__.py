"""Rivals of ASGD: ``python -m experiments.rivals [--scale smoke|cpu|paper]`` from the root.

First a step size is chosen for each method on a validation split. Then all methods train for the same virtual
seconds, with workers of different speeds, on alike and on skewed shards. Finished runs are used again. Five other
studies have the same options: ``python -m experiments.rivals.pairs``, ``.momentum``, ``.federated``, ``.convex`` and
``.asynchrony``.
"""

from experiments.rivals.page import write_page
from experiments.rivals.study import HERE, measure
from experiments.running import run_study

if __name__ == "__main__":
    run_study(HERE, __doc__, measure, write_page)
