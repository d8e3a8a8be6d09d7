"""Pictures of what was learned, against steps or seconds; functions return ``None`` if there is nothing to draw."""

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ray_pcasgd.base.text import spoken
from ray_pcasgd.report.data import Numbers, RunData
from ray_pcasgd.report.drawing import Dashes, Limits, band, legend, line, name_axes, new_figure, scale_values, style
from ray_pcasgd.report.groups import Curve, Group, agent_curves, averaged_curve, resampled

Axis = Literal["step", "seconds", "bytes_sent"]
CurvesOf = Callable[[RunData], Sequence[Curve]]
_BYTES = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "bytes"))
_MOST_AGENTS = 16
"""Up to this number of agents, each has a line of its own."""


def metric_against(groups: Sequence[Group], column: str, axis: Axis) -> Figure | None:
    """Draw a test metric: the averaged model's and the agents' mean, with the spread over agents or over seeds.

    One method goes into one panel. Several go side by side: the averaged model on the left, the agents on the right;
    so do bytes, which are those of all on the left, and each agent's own on the right.
    """
    if len(groups) == 1 and axis != "bytes_sent":
        return _one_method(groups[0], column, axis)
    has_agents = any(run.num_workers is None for group in groups for run in group.counted)
    figure, panels = new_figure(1 + has_agents, height=4.0 if len(groups) > 1 else 3.6, shared_y=True)
    averaged = _lines(panels[0], groups, lambda run: [averaged_curve(run, column, axis)])
    agents = _lines(panels[1], groups, lambda run: tested_curves(run, column, axis), True) if has_agents else {}
    if not averaged and not agents:
        return None
    scale_values(panels[0], column, [*averaged.values(), *agents.values()])
    titles = [f"{_model(groups)}{_over(groups, '')}", f"agents: mean{_over(groups, ', lowest to highest')}"]
    for panel, title in zip(panels, titles, strict=False):
        name_axes(panel, time_name(groups, axis), spoken(column) if panel is panels[0] else "", title)
    if axis == "bytes_sent":
        for panel, whose in zip(panels, ("sent by all together", "sent by the agent itself"), strict=False):
            _scale_bytes(panel, whose)
    _legend(figure, groups, averaged | agents)
    return figure


def _over(groups: Sequence[Group], otherwise: str) -> str:
    """Return what a panel's bands are, in words: a deviation over seeds where there are several."""
    return " ± standard deviation over seeds" if _has_seeds(groups) else otherwise


def _model(groups: Sequence[Group]) -> str:
    """Return the name of the averaged model in the picture."""
    served = {run.num_workers is not None for group in groups for run in group.runs}
    return {frozenset({True}): "server's model", frozenset({False}): "averaged model"}.get(
        frozenset(served), "averaged or server's model"
    )


def _learners(groups: Sequence[Group]) -> str:
    """Return the name of the agents that train in the picture."""
    served = {run.num_workers is not None for group in groups for run in group.runs}
    return {frozenset({True}): "workers", frozenset({False}): "agents"}.get(frozenset(served), "agents or workers")


def _scale_bytes(axes: Axes, whose: str) -> None:
    """Write bytes in the unit that suits the largest."""
    largest = axes.get_xlim()[1]
    factor, unit = next((each for each in _BYTES if largest >= each[0]), _BYTES[-1])
    axes.xaxis.set_major_formatter(lambda value, place: f"{value / factor:g}")
    axes.set_xlabel(f"{unit} {whose}")


def loss_against(groups: Sequence[Group], axis: Axis) -> Figure | None:
    """Draw the training loss of those who train, and the averaged model's test loss."""
    figure, (left, right) = new_figure(2, height=4.0 if len(groups) > 1 else 3.4)
    train = _lines(left, groups, lambda run: _trained_curves(run, axis), True)
    test = _lines(right, groups, lambda run: [averaged_curve(run, "test_loss", axis)])
    if not train and not test:
        return None
    scale_values(left, "train_loss", list(train.values()))
    scale_values(right, "test_loss", list(test.values()))
    spread = _over(groups, ", lowest to highest")
    name_axes(left, time_name(groups, axis), "training loss", f"{_learners(groups)}: mean{spread}")
    name_axes(right, time_name(groups, axis), "test loss", f"{_model(groups)}{_over(groups, '')}")
    _legend(figure, groups, train | test)
    return figure


def _trained_curves(run: RunData, axis: str) -> Sequence[Curve]:
    curves = agent_curves(run, "train_loss", axis)
    of_each = zip(run.agent_numbers, curves, strict=True)
    return [curve for agent, curve in of_each if agent < (run.num_workers or len(curves))]


def predicting_share(groups: Sequence[Group], axis: Axis = "step") -> Figure | None:
    """Draw how often the agents chose to predict (Wang et al., 2024, figure 4)."""
    figure = _of_agents(groups, "predicting_share", axis, "share of predicting choices", "agents")
    if figure is not None:
        (axes,) = figure.axes
        scale_values(axes, "predicting_share", [])
        axes.set_ylim(-0.03, 1.03)
    return figure


def total_momentum(groups: Sequence[Group], axis: Axis = "step") -> Figure | None:
    """Draw the momentum that optimizers measure, asynchrony's share in it; ``None`` where none measures it."""
    return _of_agents(groups, "total_momentum", axis, "total momentum", "agents, or servers")


def _of_agents(groups: Sequence[Group], column: str, axis: Axis, name: str, whose: str) -> Figure | None:
    """Draw the mean of each agent's curve of a column, and how far apart they are; ``None`` where there are none."""
    figure, (axes,) = new_figure()
    drawn = _lines(axes, groups, lambda run: agent_curves(run, column, axis), True)
    if not drawn:
        return None
    name_axes(axes, time_name(groups, axis), name, f"{whose}: mean{_over(groups, ', lowest to highest')}")
    _legend(figure, groups, drawn)
    return figure


def gradients_per_update(groups: Sequence[Group], axis: Axis = "seconds") -> Figure | None:
    """Draw how many gradients a server takes at once; ``None`` where no server's number changes."""
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
    title = f"root mean square of the agents{_over(groups, '')}"
    if len(groups) == 1 and not _has_seeds(groups):
        grid, values = resampled(agent_curves(groups[0].counted[0], column, axis))
        if grid.size:
            band(axes, grid, _extremes(values), style(0)[0])
            title += ", lowest to highest"
    scale_values(axes, column, list(drawn.values()))
    name_axes(axes, time_name(groups, axis), "distance to the agents' mean", title)
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
    if axis == "bytes_sent":
        return "bytes sent"
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


def tested_curves(run: RunData, column: str, axis: str) -> Sequence[Curve]:
    """Return each agent's curve of a test metric; of workers, which are not tested, none."""
    return agent_curves(run, column, axis) if run.num_workers is None else []


def _one_method(group: Group, column: str, axis: Axis) -> Figure | None:
    figure, (axes,) = new_figure()
    several = len(group.counted) > 1
    per_run = [tested_curves(run, column, axis) for run in group.counted]
    averaged = [averaged_curve(run, column, axis) for run in group.counted]
    spread = "± standard deviation over seeds" if several else "lowest to highest"
    model = _model([group])
    entries: list[tuple[str, str, Dashes]] = []
    for label, curves, color, dashes in (
        (f"agents: mean, {spread}", [_mean(curves) for curves in per_run] if several else per_run[0], *style(1)),
        (f"{model}, {spread}" if several else model, averaged, *style(0)),
    ):
        grid, values = resampled(curves)
        if grid.size:
            band(axes, grid, _over_seeds(values) if several else _extremes(values), color)
            if not several:
                _own_lines(axes, curves, color)
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

    A run's curves are averaged; the band is one sample deviation over seeds to each side. Without several seeds, and
    with ``agents_band``, it reaches from the lowest to the highest curve of the group's only run; those of few agents
    of one method are drawn, too.
    """
    drawn = {}
    agents_band = agents_band and not _has_seeds(groups)
    for place, group in enumerate(groups):
        runs = [curves_of(run) for run in group.counted]
        if agents_band and len(groups) == 1:
            _own_lines(axes, runs[0], style(place)[0])
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


def _own_lines(axes: Axes, curves: Sequence[Curve], color: str) -> None:
    """Draw each of a few agents where it is: who is fast is not held back to where the slowest one begins."""
    if 1 < len(curves) <= _MOST_AGENTS:
        for own in curves:
            axes.plot(own.x, own.y, color=color, linewidth=0.7, alpha=0.6)


def _mean(curves: Sequence[Curve]) -> Curve:
    grid, values = resampled(curves)
    return Curve(grid, values.mean(axis=0) if grid.size else grid)


def _extremes(values: Numbers) -> Limits:
    return values.min(axis=0), values.max(axis=0)


def _over_seeds(values: Numbers) -> Limits:
    mean, deviation = values.mean(axis=0), values.std(axis=0, ddof=1)
    return mean - deviation, mean + deviation
