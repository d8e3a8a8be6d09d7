"""What Kardam costs where nobody attacks: its authors find less than f/n of the time."""

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.byzantine.figures import case, percent, value
from experiments.running import Job
from ray_pcasgd.runs.settings.loading import load_config

FILTERS: dict[str, int | None] = {"asgd": None, "kardam, f = 1": 1, "kardam, f = 2": 2}


def jobs_of(settings: Mapping[str, Any]) -> Iterator[Job]:
    """Yield runs without attackers, evaluated often, by small mini-batches and by large ones."""
    own, sizes = settings["slowdown"], settings["distances"]["batch_sizes"]
    for (method, f), size, seed in itertools.product(FILTERS.items(), {sizes[0], sizes[-1]}, settings["seeds"]):
        correction = {} if f is None else {"correction": {"name": "kardam", "attackers": f}}
        changes: dict[str, Any] = {
            "algorithm": {"name": "server", **correction},
            "links": [],
            "clusters": 1,
            "compute": {"law": {"name": "exponential", "mean": 1.0}},
            "batch_size": size,
            "num_steps": own["num_steps"],
            "evaluate_every": own["evaluate_every"],
            "seed": seed,
        }
        labels = {"kind": "slowdown", "method": method, "attack": "none", "attackers": 0, "shards": "alike"}
        labels |= {"is_late": False, "late": "keep", "batch_size": size, "goal": own["goal"], "seed": seed}
        yield Job(labels, load_config(settings["config"], changes=changes))


def steps_to(goal: float, folder: Path) -> float:
    """Return the server's steps, of as many gradients as there are workers, to an accuracy; infinite if never."""
    frame = pd.read_parquet(folder / "metrics.parquet")
    if frame.empty or "test_accuracy" not in frame:
        return float("inf")
    own = frame[frame["agent"].isna()].sort_values("step")
    reached = own[own["test_accuracy"] >= goal]["step"]
    return float(reached.iloc[0]) if len(reached) else float("inf")


def text(rows: pd.DataFrame, workers: int) -> str:
    """Return what the claim comes to, in a line for each size of mini-batches."""
    lines = []
    for size in sorted(rows["batch_size"].unique()):
        own = case(rows, batch_size=size)
        taken = {method: value(case(own, method=method), "steps_to") for method in FILTERS}
        plain = taken["asgd"]
        slower = {f: taken[method] / plain - 1 for method, f in FILTERS.items() if f is not None}
        # Where the goal is not reached by plain ASGD, nothing can be said: no comparison with that holds.
        above = [not lost < f / workers for f, lost in slower.items()]
        claim = "does not reproduce" if all(above) else "reproduces for some f" if any(above) else "reproduces"
        parts = [
            f"slower by {percent(lost)} with f = {f}, where f/n is {percent(f / workers)}"
            if lost < float("inf")
            else f"not there at the end with f = {f}"
            for f, lost in slower.items()
        ]
        goal = percent(own["goal"].iloc[0])
        lines.append(
            f"- **A slowdown by Kardam below f/n {claim}**, mini-batches of {size:g}: to {goal} ASGD takes "
            f"{plain:g} steps; Kardam is {', and '.join(parts)}. Step sizes are the same; besides rejecting, Kardam "
            "counts late gradients less."
        )
    return "\n".join(lines)
