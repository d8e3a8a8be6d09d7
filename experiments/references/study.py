"""The runs of the study: every method on random runs, in float32 and in float64."""

import math
from collections.abc import Mapping
from itertools import repeat
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from experiments.references.between_peers import PEERS
from experiments.references.drawing import planned
from experiments.references.engine import computing_in, difference, versions_of
from experiments.references.methods import Method
from experiments.references.with_servers import SERVERS
from experiments.running import at_once

HERE = Path(__file__).parent
METHODS: tuple[Method, ...] = (*PEERS, *SERVERS)
TYPES = {"float64": torch.float64, "float32": torch.float32}


def measure(settings: Mapping[str, Any], storage: Path, output: Path, processes: int) -> None:
    """Run all, and write how far each run is from its reference."""
    numbers = range(len(METHODS))
    with at_once(processes) as pool:
        rows = [row for found in pool.map(rows_of, numbers, repeat(settings["cases"])) for row in found]
    pd.DataFrame(rows).to_parquet(output / "results.parquet", index=False)


def rows_of(number: int, cases: int) -> list[dict[str, Any]]:
    """Return what the random runs of a method have come to."""
    torch.set_num_threads(1)
    return [
        {
            "method": METHODS[number].name,
            "formula": METHODS[number].formula,
            "seed": seed,
            **{name: case(METHODS[number], seed, name) for name in TYPES},
        }
        for seed in range(cases)
    ]


def case(method: Method, seed: int, name: str) -> float:
    """Return the largest relative difference of one run from its reference; not a number where it cannot run so."""
    if name == "float64" and not method.runs_in_double:
        return math.nan
    with computing_in(TYPES[name]):
        settings = method.settings(seed)
        found = versions_of(planned(settings))
        # Of another plan: schedules are drawn once.
        return difference(found, method.reference(planned(settings)))
