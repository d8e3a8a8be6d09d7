"""Pictures of what was learned, against steps or seconds; each returns nothing where there is nothing to draw."""

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ray_pcasgd.report.data import Numbers, RunData
from ray_pcasgd.report.drawing import Dashes, Limits, band, legend, line, name_axes, new_figure, scale_values, style
from ray_pcasgd.report.groups import Curve, Group, agent_curves, averaged_curve, resampled
from ray_pcasgd.wording import spoken

Axis = Literal["step", "seconds"]
CurvesOf = Callable[[RunData], Sequence[Curve]]


def metric_against(groups: Sequence[Group], column: str, axis: Axis) -> Figure | None:
    """Draw a test metric: the averaged model's and the agents' mean, with the spread over agents or over seeds.

    One method goes into one panel. Several go side by side: the averaged model on the left, the agents on the right.
    """
    if len(groups) == 1:
        return _one_method(groups[0], column, axis)
    figure, (left, right) = new_figure(2, height=4.0, shared_y=True)
    several = _has_seeds(groups)
    spread = " ± standard deviation over seeds" if several else ""
    averaged = _lines(left, groups, lambda run: [averaged_curve(run, column, axis)])
    agents = _lines(right, groups, lambda run: agent_curves(run, column, axis), agents_band=not several)
    if not averaged and not agents:
        return None
    scale_values(left, column, [*averaged.values(), *agents.values()])
    name_axes(left, time_name(groups, axis), spoken(column), f"averaged model{spread}")
    name_axes(
        right, time_name(groups, axis), "", f"agents' mean{spread}" if several else "agents: mean, lowest to highest"
    )
    _legend(figure, groups, averaged | agents)
    return figure


def loss_against(groups: Sequence[Group], axis: Axis) -> Figure | None:
    """Draw the agents' training loss, and the averaged model's test loss."""
    figure, (left, right) = new_figure(2, height=4.0 if len(groups) > 1 else 3.4)
    train = _lines(left, groups, lambda run: agent_curves(run, "train_loss", axis), agents_band=not _has_seeds(groups))
    test = _lines(right, groups, lambda run: [averaged_curve(run, "test_loss", axis)])
    if not train and not test:
        return None
    scale_values(left, "train_loss", list(train.values()))
    scale_values(right, "test_loss", list(test.values()))
    name_axes(left, time_name(groups, axis), "training loss", "agents, mean since the last evaluation")
    name_axes(right, time_name(groups, axis), "test loss", "averaged model")
    _legend(figure, groups, train | test)
    return figure


def predicting_share(groups: Sequence[Group], axis: Axis = "step") -> Figure | None:
    """Draw how often the agents chose to predict (Wang et al., 2024, figure 4)."""
    column = "predicting_share"
    figure, (axes,) = new_figure()
    drawn = _lines(axes, groups, lambda run: agent_curves(run, column, axis), agents_band=not _has_seeds(groups))
    if not drawn:
        return None
    scale_values(axes, column, [])
    axes.set_ylim(-0.03, 1.03)
    name_axes(axes, time_name(groups, axis), "share of predicting choices")
    _legend(figure, groups, drawn)
    return figure


def gradients_per_update(groups: Sequence[Group], axis: Axis = "seconds") -> Figure | None:
    """Draw how many gradients a server takes at once; nothing where nobody's number changes."""
    column = "gradients_per_update"
    figure, (axes,) = new_figure()
    drawn = _lines(axes, groups, lambda run: [averaged_curve(run, column, axis)])
    if all(np.ptp(values) == 0 for values in drawn.values()):
        return None
    axes.set_ylim(bottom=0)
    name_axes(axes, time_name(groups, axis), "gradients of one update")
    _legend(figure, groups, drawn)
    return figure


def consensus_distance(groups: Sequence[Group], axis: Axis = "step") -> Figure | None:
    """Draw how far the agents are from their mean: over agents, the root of the mean square."""
    column = "consensus_distance"
    figure, (axes,) = new_figure()
    drawn = _lines(axes, groups, lambda run: [averaged_curve(run, column, axis)] if run.num_workers is None else [])
    if not drawn:
        return None
    if len(groups) == 1 and not _has_seeds(groups):
        grid, values = resampled(agent_curves(groups[0].counted[0], column, axis))
        if grid.size:
            band(axes, grid, _extremes(values), style(0)[0])
    scale_values(axes, column, list(drawn.values()))
    name_axes(axes, time_name(groups, axis), "distance to the agents' mean")
    _legend(figure, groups, drawn)
    return figure


def adaptivity_notes(groups: Sequence[Group]) -> list[str]:
    """Return a sentence for each method whose choices are (almost) always the same."""
    notes = []
    for group in groups:
        shares = group.values(RunData.predicting_share)
        if shares.size and not 0.02 < shares.mean() < 0.98:
            notes.append(
                f"{group.label}: predicting on {shares.mean():.1%} of steps; the variant is not adaptive here."
            )
    return notes


def time_name(groups: Sequence[Group], axis: Axis) -> str:
    """Return the name of the horizontal axis: seconds are virtual where a schedule was planned."""
    if axis == "step":
        return "steps of each agent"
    live = {run.config.get("engine", {}).get("mode") == "live" for group in groups for run in group.runs}
    return {frozenset({True}): "seconds", frozenset({False}): "virtual seconds"}.get(
        frozenset(live), "seconds, virtual where planned"
    )


def _has_seeds(groups: Sequence[Group]) -> bool:
    return any(len(group.counted) > 1 for group in groups)


def _legend(figure: Figure, groups: Sequence[Group], drawn: Iterable[int]) -> None:
    # A method keeps its color in all pictures, also in those where another one has nothing to show.
    if len(groups) > 1:
        legend(figure, [(groups[place].label, *style(place)) for place in sorted(drawn)])


def _one_method(group: Group, column: str, axis: Axis) -> Figure | None:
    figure, (axes,) = new_figure()
    several = len(group.counted) > 1
    per_run = [agent_curves(run, column, axis) for run in group.counted]
    averaged = [averaged_curve(run, column, axis) for run in group.counted]
    spread = "± standard deviation over seeds" if several else "lowest to highest"
    entries: list[tuple[str, str, Dashes]] = []
    for label, curves, color, dashes in (
        (f"agents: mean, {spread}", [_mean(curves) for curves in per_run] if several else per_run[0], *style(1)),
        (f"averaged model, {spread}" if several else "averaged model", averaged, *style(0)),
    ):
        grid, values = resampled(curves)
        if grid.size:
            band(axes, grid, _over_seeds(values) if several else _extremes(values), color)
            line(axes, grid, values.mean(axis=0), color, dashes)
            entries.append((label, color, dashes))
    if not entries:
        return None
    scale_values(axes, column, [curve.y for curve in averaged])
    name_axes(axes, time_name([group], axis), spoken(column))
    legend(figure, entries[::-1])
    return figure


def _lines(axes: Axes, groups: Sequence[Group], curves_of: CurvesOf, agents_band: bool = False) -> dict[int, Numbers]:
    """Draw one line for each group that has points, and return the lines by the group's place.

    A run's curves are averaged; the band is one standard deviation over seeds, or, with ``agents_band``, reaches from
    the lowest to the highest curve of the group's only run.
    """
    drawn = {}
    for place, group in enumerate(groups):
        runs = [curves_of(run) for run in group.counted]
        grid, values = resampled(runs[0] if agents_band else [_mean(curves) for curves in runs])
        if not grid.size:
            continue
        color, dashes = style(place)
        drawn[place] = values.mean(axis=0)
        if values.shape[0] > 1:
            limits = _extremes(values) if agents_band else _over_seeds(values)
            band(axes, grid, limits, color, 0.18 if len(groups) == 1 else 0.12)
        line(axes, grid, drawn[place], color, dashes)
    return drawn


def _mean(curves: Sequence[Curve]) -> Curve:
    grid, values = resampled(curves)
    return Curve(grid, values.mean(axis=0) if grid.size else grid)


def _extremes(values: Numbers) -> Limits:
    return values.min(axis=0), values.max(axis=0)


def _over_seeds(values: Numbers) -> Limits:
    mean, deviation = values.mean(axis=0), values.std(axis=0)
    # Not below the lowest value: on a logarithmic axis, a band that reaches zero would not be drawn.
    return np.maximum(mean - deviation, values.min(axis=0)), mean + deviation
