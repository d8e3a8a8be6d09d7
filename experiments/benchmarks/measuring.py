"""Paired measurement: the two sides run in turn, A B A B, and the ratio is taken pair by pair."""

import contextlib
import statistics
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NamedTuple

from ray_pcasgd.config import Config
from ray_pcasgd.engines.base import Report
from ray_pcasgd.records import StepReport
from ray_pcasgd.runs.plan.plan import make_plan
from ray_pcasgd.runs.settings.loading import load_config


class Figure(NamedTuple):
    """One ratio: the median, smallest and largest of several pairs, and the medians of both sides."""

    name: str
    ratio: float
    low: float
    high: float
    measured: float
    reference: float
    unit: str
    against: str


def paired(
    name: str, measured: Callable[[], float], reference: Callable[[], float], unit: str, against: str, repeats: int
) -> Figure:
    """Return the ratio of two measured quantities, taken in turn."""
    pairs = [(measured(), reference()) for _ in range(repeats)]
    ratios = [a / b for a, b in pairs]
    sides = [statistics.median(side) for side in zip(*pairs, strict=True)]
    return Figure(name, statistics.median(ratios), min(ratios), max(ratios), sides[0], sides[1], unit, against)


def steps_per_second(times: Iterable[Sequence[float]], skip: int) -> float:
    """Return the agents' steps a second in all, from each one's times of finished steps.

    Without the first ones, and without the last one, after which each agent is evaluated.
    """
    return sum((len(own) - 2 - skip) / (own[-2] - own[skip]) for own in times)


def run_times(
    config: Config | None = None,
    watched: Collection[int] | None = None,
    on_report: Callable[[Report], None] = lambda _: None,
    **changes: Any,
) -> list[list[float]]:
    """Run the engine alone, without a run folder, and return the wall times of each agent's own steps.

    Args:
        config: Settings that others are changed in.
        watched: The run is ended once these agents have taken all their steps; ``None``: all.
        on_report: Gets each report as it comes.
        changes: The settings that are changed.

    """
    settings = load_config(config, changes={"evaluate_every": 10**6, **changes})
    plan = make_plan(settings)
    times: list[list[float]] = [[] for _ in plan.specs]
    with contextlib.closing(plan.engine().run(plan.specs, plan.data)) as reports:
        for report in reports:
            on_report(report)
            # What an agent of a pair does as it is asked is no step.
            if isinstance(report, StepReport) and report.row.kind == "step":
                times[report.row.agent].append(report.wall_seconds)
                if watched is not None and all(len(times[k]) >= settings.num_steps for k in watched):
                    break
    return times
