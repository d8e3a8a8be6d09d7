"""When a target was reached: by the averaged model, by the first agent, and by all of them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from ray_pcasgd.base.text import NOTHING, deviation_over, format_value, is_share, spoken
from ray_pcasgd.report.data import Numbers, RunData
from ray_pcasgd.report.groups import Group

_FALLING = ("loss", "cross-entropy", "mse", "mae", "error", "perplexity")
"""Metrics of which less is better have one of these in their names."""


class Reached(NamedTuple):
    """The first evaluation at which a target was reached."""

    step: float
    seconds: float
    bytes_sent: float


def check_target(metric: str, target: float) -> None:
    """Raise ``ValueError`` where a metric cannot have a value."""
    if is_share(metric) and not 0 <= target <= 1:
        raise ValueError(f"target = {target:g}: allowed for {spoken(metric)} are 0 to 1")


def is_rising(groups: Sequence[Group], metric: str, target: float) -> bool:
    """Return whether the target is reached from below: as shares are, and what starts below it, but no error."""
    if is_share(metric):
        return True
    if any(word in metric.lower() for word in _FALLING):
        return False
    starts = [run.initial(metric) for group in groups for run in group.runs]
    starts += [float(run.averaged[metric].iloc[0]) for group in groups for run in group.runs if len(run.averaged)]
    return next((start < target for start in starts if start is not None), True)


def first_reached(rows: pd.DataFrame, metric: str, target: float, rising: bool) -> Reached | None:
    """Return the first of the evaluations, by step, at which the target is reached; None where none is."""
    place = _first_place(rows[metric].to_numpy(np.float64), target, rising)
    return None if place is None else Reached(*(float(rows[name].iloc[place]) for name in Reached._fields))


def _first_place(values: Numbers, target: float, rising: bool) -> int | None:
    places = np.flatnonzero(values >= target if rising else values <= target)
    return int(places[0]) if places.size else None


def target_table(groups: Sequence[Group], metric: str, target: float) -> list[dict[str, str]]:
    """Return one row per method, as text: what it took to reach the target.

    Means over seeds, with their sample deviation, where every seed has reached it.
    """
    rising = is_rising(groups, metric, target)
    return [_row(group, metric, target, rising) for group in groups]


def _row(group: Group, metric: str, target: float, rising: bool) -> dict[str, str]:
    runs = [run for run in group.counted if metric in run.metrics]
    models = [first_reached(run.averaged, metric, target, rising) for run in runs]
    agents = [_of_agents(run, metric, target, rising) for run in runs]
    known = [model for model in models if model is not None]
    row = {"method": group.label}
    if len(group.counted) > 1:
        row["seeds that reach it"] = f"{len(known)} of {len(group.counted)}"
    every = len(known) == len(group.counted)
    row["steps"] = _mean("step", [model.step for model in known] if every else [])
    row["seconds"] = _mean("seconds", [model.seconds for model in known] if every else [])
    row["MB sent by all"] = _mean("bytes", [model.bytes_sent / 1e6 for model in known] if every else [])
    for name, choose in (("first agent, seconds", min), ("last agent, seconds", max)):
        times = [choose(own, default=np.inf) for own in agents]
        row[name] = _mean("seconds", times if len(times) == len(group.counted) and np.isfinite(times).all() else [])
    return row


def _of_agents(run: RunData, metric: str, target: float, rising: bool) -> list[float]:
    """Return the second when each agent has reached it, infinite where it has not; empty for workers: not tested."""
    if run.num_workers is not None:
        return []
    of_each = run.of_agents(metric, "seconds")
    places = [_first_place(values, target, rising) for values, _ in of_each]
    return [np.inf if at is None else float(rows[1][at]) for at, rows in zip(places, of_each, strict=True)]


def _mean(column: str, values: Sequence[float]) -> str:
    known = [value for value in values if np.isfinite(value)]
    return format_value(column, float(np.mean(known)), deviation_over(known)) if known else NOTHING
