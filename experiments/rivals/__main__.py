"""Rivals of ASGD: ``python -m experiments.rivals [--scale smoke|cpu|paper]`` from the root.

First a step size is chosen for each method on a validation split. Then all methods train for the same virtual
seconds, with workers of different speeds, on alike and on skewed shards; and where each settles is measured on a
problem whose minimum is known. Finished runs are used again. Five other studies have the same options:
``python -m experiments.rivals.pairs``, ``.momentum``, ``.federated``, ``.convex`` and ``.asynchrony``.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.rivals import bias
from experiments.rivals.page import write_page
from experiments.rivals.study import HERE, measure
from experiments.running import run_study


def measure_all(settings: Mapping[str, Any], storage: Path, output: Path, processes: int) -> None:
    """Run what is missing of the digits, and all of where methods settle."""
    measure(settings, storage, output, processes)
    bias.measure(settings["bias"], output, processes)


if __name__ == "__main__":
    run_study(HERE, __doc__, measure_all, write_page)
