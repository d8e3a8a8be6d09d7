"""Runs of one method, and their figures: over seeds as mean and sample standard deviation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from ray_pcasgd.base.text import NOTHING, deviation_over, format_value, main_metric, spoken
from ray_pcasgd.report.data import Numbers, RunData


class Curve(NamedTuple):
    """One measured line: points of rising ``x``, both of shape (P,)."""

    x: Numbers
    y: Numbers


@dataclass(frozen=True)
class Group:
    """All runs under one label: one method, over one or more seeds."""

    label: str
    runs: tuple[RunData, ...]

    @cached_property
    def counted(self) -> tuple[RunData, ...]:
        """The runs that figures are made of: those that did not fail; where all failed, all of them."""
        return tuple(run for run in self.runs if run.error is None) or self.runs

    @cached_property
    def staleness(self) -> Numbers:
        """The staleness of all reads of the counted runs, in versions: steps, or rounds of local steps."""
        return np.concatenate([run.staleness for run in self.counted])

    @property
    def mean_staleness(self) -> float | None:
        """The mean over all these reads; ``None`` where no version was read."""
        return float(self.staleness.mean()) if self.staleness.size else None

    def values(self, measure: Callable[[RunData], float | None]) -> Numbers:
        """Return a measured number of every counted run that has it."""
        measured = [measure(run) for run in self.counted]
        return np.array([value for value in measured if value is not None], dtype=np.float64)


def group_runs(runs: Sequence[RunData], labels: Sequence[str]) -> list[Group]:
    """Return the runs by label, in the order of the labels' first run."""
    by_label: dict[str, list[RunData]] = {}
    for run, label in zip(runs, labels, strict=True):
        by_label.setdefault(label, []).append(run)
    return [Group(label, tuple(members)) for label, members in by_label.items()]


def metric_of(groups: Sequence[Group]) -> str | None:
    """Return the column of the metric that the report looks at, or ``None`` where no run was evaluated."""
    return main_metric(dict.fromkeys(str(column) for group in groups for run in group.runs for column in run.metrics))


def averaged_curve(run: RunData, column: str, axis: str) -> Curve:
    """Return the averaged model's curve of a column against ``step``, ``seconds`` or ``bytes_sent``.

    It begins at the common start, where that was tested; without points if there is no other one.
    """
    if column not in run.metrics:
        return Curve(np.empty(0), np.empty(0))
    # Through float64, as a column of nothing but missing values has the type object.
    return _curve(np.array([run.averaged[axis], run.averaged[column]], dtype=np.float64), run.initial(column))


def agent_curves(run: RunData, column: str, axis: str) -> list[Curve]:
    """Return each agent's curve of a column, as ``averaged_curve``; its bytes are those that it has sent itself."""
    if column not in run.metrics:
        return [Curve(np.empty(0), np.empty(0)) for _ in run.agent_numbers]
    initial = run.initial(column)
    return [_curve(points, initial) for points in run.of_agents(axis, column)]


def _curve(points: Numbers, initial: float | None) -> Curve:
    points = points[:, np.isfinite(points).all(axis=0)]
    if initial is not None and points.size:
        points = np.concatenate([[[0.0], [initial]], points], axis=1)
    return Curve(*points[:, np.argsort(points[0], kind="stable")])


def resampled(curves: Sequence[Curve], most_points: int = 400) -> tuple[Numbers, Numbers]:
    """Return a common grid, shape (P,), and all curves on it, shape (C, P), by linear interpolation.

    The grid holds the curves' own points from where all of them have begun to where the last one ends, thinned out to
    ``most_points``; a curve that ends earlier keeps its last value, as an agent that is done keeps its model. Curves
    without points are left out; without any, P is 0.
    """
    curves = [curve for curve in curves if curve.x.size]
    if not curves:
        return np.empty(0), np.empty((0, 0))
    grid = np.unique(np.concatenate([curve.x for curve in curves]))
    grid = grid[grid >= max(curve.x[0] for curve in curves)]
    if grid.size > most_points:
        grid = grid[np.linspace(0, grid.size - 1, most_points).round().astype(int)]
    return grid, np.array([np.interp(grid, curve.x, curve.y) for curve in curves])


def final_table(groups: Sequence[Group], metric: str) -> list[dict[str, str]]:
    """Return the final figures of each group, as text under its column's heading; ``metric`` is a ``test_`` column.

    With several seeds, ``±`` is the sample standard deviation over seeds, and the agents' extremes are those of all
    seeds; with one seed there is no ``±``.
    """
    several = any(len(group.runs) > 1 for group in groups)
    rows = [_final_row(group, metric, several) for group in groups]
    return rows if any(row["failed"] != "0" for row in rows) else [_without_failed(row) for row in rows]


def _without_failed(row: dict[str, str]) -> dict[str, str]:
    return {heading: text for heading, text in row.items() if heading != "failed"}


def _final_row(group: Group, metric: str, several: bool) -> dict[str, str]:
    def mean(column: str, measure: Callable[[RunData], float | None], with_deviation: bool = False) -> str:
        values = group.values(measure)
        deviation = deviation_over(values) if with_deviation else None
        return format_value(column, values.mean(), deviation) if values.size else NOTHING

    def of_agents(run: RunData, name: str) -> float | None:
        # Workers are not tested; a server's model is no agent's.
        return run.final("agents", metric, name) if run.num_workers is None else None

    def extreme(name: str, of_all: Callable[[Numbers], float]) -> str:
        values = group.values(lambda run: of_agents(run, name))
        return format_value(metric, of_all(values)) if values.size else NOTHING

    return {
        "method": group.label,
        **({"seeds": str(len(group.runs))} if several else {}),
        "failed": str(sum(run.error is not None for run in group.runs)),
        f"{spoken(metric)}, averaged model": mean(metric, lambda run: run.final("averaged", metric), True),
        "agents' mean": mean(metric, lambda run: of_agents(run, "mean"), True),
        "lowest agent": extreme("min", np.min),
        "highest agent": extreme("max", np.max),
        "consensus distance": mean("consensus_distance", lambda run: run.final("consensus_distance"), True),
        "mean staleness": NOTHING if group.mean_staleness is None else format_value("staleness", group.mean_staleness),
        "predicting": mean("predicting_share", RunData.predicting_share, True),
        "waiting": mean("waiting_share", _mean_waiting),
        "agent-steps/s": mean("rate", lambda run: _number(run.result.get("agent_steps_per_second"))),
    }


def _mean_waiting(run: RunData) -> float | None:
    shares = list(run.waiting_shares().values())
    return float(np.mean(shares)) if shares else None


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None
