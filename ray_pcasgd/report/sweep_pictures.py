"""Pictures of a sweep: where in the space the metric is good, and which setting matters."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ray_pcasgd.base.text import NOTHING, format_value, is_share, spoken
from ray_pcasgd.report.drawing import (
    COLORS,
    HALF,
    band,
    in_percent,
    legend,
    line,
    logarithmic,
    name_axes,
    new_figure,
    percent_text,
)
from ray_pcasgd.report.importance import FEWEST_POINTS, importances

_MOST_VALUES = 20
"""Rows and columns of a heat map at most."""
_GRAY = "#777777"


def heat_map(
    points: pd.DataFrame, keys: Sequence[str], metric: str, scales: Mapping[str, bool] | None = None
) -> Figure | None:
    """Draw the mean of the metric over two settings, with its spread; ``None`` unless two are listed as a grid.

    ``scales`` has the settings that are ranges.

    What was stopped early is written in gray, with its step, and has no color: its figures are of fewer steps.
    """
    columns = [key for key in keys if 1 < points[key].nunique() <= _MOST_VALUES]
    if len(columns) != 2 or len(keys) != 2 or scales or points.duplicated(columns).any():
        return None
    across, down = columns
    places = {
        (down_value, across_value): row
        for down_value, across_value, row in zip(points[down], points[across], points.to_dict("records"), strict=True)
    }
    finished = points[has_finished(points)]
    rows, heads = (sorted(points[key].unique()) for key in (down, across))
    grid = finished.pivot_table(index=down, columns=across, values="mean").reindex(index=rows, columns=heads)
    values = grid.to_numpy()
    if grid.empty or np.isnan(values).all() or len(places) < values.size / 2:
        return None
    figure, (axes,) = new_figure(height=1.6 + 0.36 * len(grid))
    axes.grid(False)
    shown = axes.imshow(np.ma.masked_invalid(values), aspect="auto", origin="lower", cmap="cividis")
    middle = (np.nanmin(values) + np.nanmax(values)) / 2
    for (row, column), value in np.ndenumerate(values):
        point = places.get((rows[row], heads[column]), {"mean": float("nan")})
        text = format_value(metric, point["mean"], point.get("std")).replace(" %", "").replace(" ± ", "\n± ")
        color = "black" if value > middle else "white"
        if np.isnan(value):
            color = _GRAY
            text += "" if text == NOTHING or pd.isna(point.get("step")) else f"\nstep {point['step']:.0f}"
        axes.text(column, row, text, ha="center", va="center", fontsize=7, color=color)
    axes.set_xticks(range(grid.shape[1]), [_short(value) for value in grid.columns])
    axes.set_yticks(range(grid.shape[0]), [_short(value) for value in grid.index])
    figure.colorbar(shown, ax=axes, format=percent_text if is_share(metric) else None)
    name_axes(axes, across, down, spoken(metric))
    return figure


def has_finished(points: pd.DataFrame) -> pd.Series:
    """Return which points have figures of all their steps."""
    return points["finished"] > 0


def has_means(points: pd.DataFrame, key: str) -> bool:
    """Return whether several finished points share values of a setting, so that their means make a line."""
    values = points[has_finished(points)][key]
    return bool(1 < values.nunique() <= _MOST_VALUES and values.duplicated().any())


def marginals(
    points: pd.DataFrame, keys: Sequence[str], metric: str, scales: Mapping[str, bool] | None = None
) -> Figure | None:
    """Draw the metric of every point against each setting, with the mean where values are listed.

    ``scales`` says of ranges whether they are logarithmic; of lists, it shows in their values.
    """
    varied = [key for key in keys if points[key].map(repr).nunique() > 1]
    if not varied or points["mean"].isna().all():
        return None
    figure, panels = new_figure(len(varied), height=3.4, shared_y=True)
    # A point that came to no figures has no place; of words, matplotlib would refuse it.
    points = points[points["mean"].notna()]
    finished = has_finished(points)
    for axes, key in zip(panels, varied, strict=True):
        values = points[key]
        numeric = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
        places = values if numeric else values.astype(str)
        axes.scatter(places[finished], points["mean"][finished], s=16, color=COLORS[0], alpha=0.7)
        axes.scatter(places[~finished], points["mean"][~finished], s=16, facecolors="none", edgecolors=_GRAY)
        if has_means(points, key):
            means = points[finished].groupby(places[finished])["mean"].mean()
            axes.plot(means.index, means, color=COLORS[1], linewidth=1.8)
        if numeric and (scales or {}).get(key, _is_geometric(values)):
            logarithmic(axes.xaxis)
        if is_share(metric):
            in_percent(axes.yaxis)
        name_axes(axes, key, spoken(metric) if axes is panels[0] else "")
    if len(varied) == 1:
        figure.set_figwidth(HALF)
    return figure


def _is_geometric(values: pd.Series) -> bool:
    """Return whether a logarithmic axis suits listed numbers: all above 0, and far apart or each a multiple of one."""
    listed = np.sort(values.unique().astype(float))
    if listed[0] <= 0:
        return False
    ratios = listed[1:] / listed[:-1]
    return bool(listed[-1] > 20 * listed[0] or (len(ratios) > 1 and np.allclose(ratios, ratios[0], rtol=0.01)))


def sensitivity(points: pd.DataFrame, keys: Sequence[str]) -> pd.Series:
    """Return for each setting the share of the metric's variance over points that its value alone explains.

    0 where that cannot be told; ``importances`` says more.
    """
    found = importances(points, keys)
    shares = {key: found[key].share if key in found else 0.0 for key in keys}
    return pd.Series(shares, dtype=float).sort_values()


def sensitivity_bars(points: pd.DataFrame, keys: Sequence[str]) -> Figure | None:
    """Draw how much of the metric's variance each setting explains, and how much chance would.

    ``None`` for a single setting, or where there are too few points to tell.
    """
    varied = [key for key in keys if points[key].map(repr).nunique() > 1]
    found = sorted(importances(points, varied).items(), key=lambda item: item[1].share)
    if len(varied) < 2 or not found:
        return None
    figure, (axes,) = new_figure(height=1.3 + 0.4 * len(found))
    shares = [importance.share for _, importance in found]
    colors = [COLORS[0] if importance.is_told else "#b9cfdd" for _, importance in found]
    axes.barh(range(len(found)), shares, color=colors)
    for place, (_, importance) in enumerate(found):
        axes.plot([importance.by_chance] * 2, [place - 0.4, place + 0.4], color=COLORS[1], linewidth=1.8)
    axes.set_yticks(range(len(found)), [key for key, _ in found])
    axes.set_xlim(0, 1)
    in_percent(axes.xaxis)
    name_axes(axes, "share of the variance over points", "")
    legend(figure, [("chance alone stays below, 19 times of 20", COLORS[1], "-")])
    return figure


def what_matters(points: pd.DataFrame, keys: Sequence[str]) -> str:
    """Return in a sentence which settings matter, or why that cannot be told."""
    varied = [key for key in keys if points[key].map(repr).nunique() > 1]
    number = int((has_finished(points) & points["mean"].notna()).sum())
    if len(varied) < 2:
        return ""
    if number < FEWEST_POINTS:
        return f"Which setting matters cannot be told from {number} finished points; {FEWEST_POINTS} are the fewest."
    found = importances(points, varied)
    if not found:
        return "Which setting matters cannot be told: no two points differ, or none share or neighbor a value."
    told = [key for key, importance in found.items() if importance.is_told]
    others = [key for key in varied if key not in told]
    parts = []
    if told:
        shares = ", ".join(f"{key} ({found[key].share:.0%})" for key in sorted(told, key=lambda key: -found[key].share))
        parts.append(f"More than chance is explained by {shares}.")
    if others:
        parts.append(f"From {number} points it cannot be told whether {' or '.join(others)} matters by itself.")
    return " ".join(parts)


def best_curve(curves: Sequence[pd.DataFrame], metric: str) -> Figure | None:
    """Draw the averaged model's metric over the steps for the best point: the mean and the extremes over seeds."""
    if not curves:
        return None
    table = pd.concat([curve.set_index("step")[metric] for curve in curves], axis=1).sort_index()
    figure, (axes,) = new_figure()
    steps = table.index.to_numpy(float)
    line(axes, steps, table.mean(axis=1).to_numpy(), COLORS[0])
    if table.shape[1] > 1:
        band(axes, steps, (table.min(axis=1).to_numpy(), table.max(axis=1).to_numpy()), COLORS[0])
    if is_share(metric):
        in_percent(axes.yaxis)
    name_axes(axes, "steps of each agent", spoken(metric))
    return figure


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
