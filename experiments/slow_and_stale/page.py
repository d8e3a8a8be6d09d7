"""The study's page and its picture, made from what was measured."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from experiments.slow_and_stale.study import (
    EVALUATIONS,
    LAWS,
    METHODS,
    NUM_WORKERS,
    mini_batches,
)
from experiments.studies import machine, task_of, when
from ray_pcasgd.report.drawing import in_percent, legend, line, name_axes, new_figure, style


def picture(final: pd.DataFrame, seconds: float) -> Figure:
    """Draw the test error against virtual time, a panel for each law, means over the seeds."""
    figure, panels = new_figure(len(LAWS), height=4.4, shared_y=True)
    for axes, law in zip(panels, LAWS, strict=True):
        for place, method in enumerate(METHODS):
            curve = mean_curve(rows_of(final, law, method), seconds)
            line(axes, curve.index.to_numpy(), 1 - curve.to_numpy(), *style(place))
        in_percent(axes.yaxis)
        axes.set_xlim(0, seconds)
        name_axes(axes, "virtual seconds", "test error" if axes is panels[0] else "", law)
    legend(figure, [(method, *style(place)) for place, method in enumerate(METHODS)])
    return figure


def rows_of(frame: pd.DataFrame, law: str, method: str) -> pd.DataFrame:
    """Return what was measured of a method under a law."""
    return frame[(frame["law"] == law) & (frame["method"] == method)]


def mean_curve(runs: pd.DataFrame, seconds: float) -> pd.Series:
    """Return the mean accuracy over the seeds by second, between evaluations on straight lines."""
    ends = runs.groupby("seed")["seconds"].max()
    times = np.linspace(runs.groupby("seed")["seconds"].min().max(), min(seconds, ends.min()), 2 * EVALUATIONS)
    curves = [np.interp(times, rows["seconds"], rows["test_accuracy"]) for _, rows in runs.groupby("seed")]
    return pd.Series(np.mean(curves, axis=0), index=times)


def seconds_to(rows: pd.DataFrame, target: float) -> float:
    """Return when one run first had an accuracy, between evaluations on a straight line; infinite if it never had."""
    times, reached = rows["seconds"].to_numpy(), rows["test_accuracy"].to_numpy()
    above = np.flatnonzero(reached >= target)
    if not above.size:
        return float("inf")
    place = int(above[0])
    if place == 0:
        return float(times[0])
    return float(np.interp(target, reached[place - 1 : place + 1], times[place - 1 : place + 1]))


def page(tuning: pd.DataFrame, final: pd.DataFrame, settings: Mapping[str, Any], scale: str) -> str:
    """Return the page as Markdown."""
    seconds, targets, seeds = settings["seconds"], settings["targets"], final["seed"].nunique()
    grid = ", ".join(f"{eta:g}" for eta in settings["step_sizes"])
    return f"""# Error against runtime, where workers are slow at random

{_summary(final, targets)}

{task_of(settings)}, {NUM_WORKERS} workers (or peers on a complete graph), batch 32, no momentum, no delays of links,
{seconds:g} virtual seconds. Step sizes {grid} were searched for each method and
law on 10 % of the training samples, held out (one seed, lowest validation loss at the end); then {seeds} other
seeds on all training samples. {_edges(tuning, final)} The images are re-encoded (JPEG). PC-ASGD's theta is 0.3, and
what is tested of it is the average of all peers. Written by `python -m experiments.slow_and_stale --scale {scale}`
({machine()}). {when(final)}

![test error against virtual seconds](error.svg)

## Virtual seconds to an accuracy

Mean of {seeds} seeds, over those of sync SGD in parentheses; - where not every seed reached it.

{_table(final, seconds, targets)}

## The search

Validation loss at the end, by step size (infinite: diverged).

{_search_table(tuning)}
"""


def _times(final: pd.DataFrame, law: str, method: str, target: float) -> float:
    return float(np.mean([seconds_to(rows, target) for _, rows in rows_of(final, law, method).groupby("seed")]))


def _summary(final: pd.DataFrame, targets: Sequence[float]) -> str:
    """Return who is first and who last at the highest accuracy that all reach, under each law."""
    lines = []
    for law in LAWS:
        table = pd.DataFrame({t: {m: _times(final, law, m, t) for m in METHODS} for t in targets})
        common = [t for t in targets if np.isfinite(table[t]).all()]
        if not common:
            lines.append(f"- Under {law}, no accuracy of {targets[0]:.0%} or more is reached by all.")
            continue
        order = table[common[-1]].sort_values()
        ranking = ", ".join(f"{method} {value:.0f} s" for method, value in order.items())
        lines.append(f"- Under {law}, {common[-1]:.0%} is reached by {ranking}.")
    return "\n".join(lines)


def _edges(tuning: pd.DataFrame, final: pd.DataFrame) -> str:
    chosen = final.groupby(["law", "method"])["step_size"].first()
    limits = (tuning["step_size"].min(), tuning["step_size"].max())
    edges = [f"{method} ({law})" for (law, method), eta in chosen.items() if eta in limits]
    return f"At the edge of the grid: {', '.join(edges)}." if edges else "No choice lies at the edge of the grid."


def _table(final: pd.DataFrame, seconds: float, targets: Sequence[float]) -> str:
    heads = " | ".join(f"{target:.0%}" for target in targets)
    lines = [f"| law | method | step size | mini-batches a worker | mean staleness | {heads} | accuracy at the end |"]
    lines.append("|---" * (6 + len(targets)) + "|")
    for law in LAWS:
        first = {target: _times(final, law, "sync", target) for target in targets}
        for method in METHODS:
            rows = rows_of(final, law, method)
            cells = [f"{rows['step_size'].iloc[0]:g}", str(mini_batches(method, LAWS[law], seconds))]
            cells.append(f"{rows.groupby('seed')['staleness'].first().mean():.1f}")
            for target in targets:
                own = _times(final, law, method, target)
                ratio = f" ({own / first[target]:.2f})" if np.isfinite(first[target]) else ""
                cells.append(f"{own:.0f}{ratio}" if np.isfinite(own) else "-")
            end = mean_curve(rows, seconds).iloc[-1]
            lines.append(f"| {law} | {method} | {' | '.join(cells)} | {end:.1%} |")
    return "\n".join(lines)


def _search_table(tuning: pd.DataFrame) -> str:
    step_sizes = sorted(tuning["step_size"].unique())
    lines = [f"| law | method | {' | '.join(f'{eta:g}' for eta in step_sizes)} |", "|---" * (2 + len(step_sizes)) + "|"]
    last = tuning.groupby(["law", "method", "step_size"], sort=False)["test_loss"].last()
    for (law, method), losses in last.groupby(level=[0, 1], sort=False):
        values = losses.droplevel([0, 1])
        lines.append(f"| {law} | {method} | {' | '.join(f'{values[eta]:.3f}' for eta in step_sizes)} |")
    return "\n".join(lines)
