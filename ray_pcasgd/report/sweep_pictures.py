"""Pictures of a sweep: where in the space the metric is good, and which setting matters."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from ray_pcasgd.report.drawing import COLORS, band, line, name_axes, new_figure
from ray_pcasgd.wording import is_share, spoken, written

_MOST_VALUES = 20
"""A heat map has at most so many rows and columns."""


def heat_map(points: pd.DataFrame, keys: Sequence[str], metric: str) -> Figure | None:
    """Draw the mean of the metric over two settings, with its spread; nothing unless two are listed as a grid."""
    columns = [key for key in keys if 1 < points[key].nunique() <= _MOST_VALUES]
    if len(columns) != 2 or len(keys) != 2 or points.duplicated(columns).any():
        return None
    across, down = columns
    grid = points.pivot_table(index=down, columns=across, values="mean", sort=True)
    spread = points.pivot_table(index=down, columns=across, values="std", sort=True)
    if grid.empty or grid.isna().to_numpy().mean() > 0.5:
        return None
    figure, (axes,) = new_figure(height=1.6 + 0.36 * len(grid))
    axes.grid(False)
    values = grid.to_numpy()
    shown = axes.imshow(np.ma.masked_invalid(values), aspect="auto", origin="lower", cmap="cividis")
    middle = (np.nanmin(values) + np.nanmax(values)) / 2
    for (row, column), value in np.ndenumerate(values):
        text = written(metric, value, _spread(spread, grid, row, column)).replace(" %", "").replace(" ± ", "\n± ")
        color = "black" if value > middle else "white"
        axes.text(column, row, text, ha="center", va="center", fontsize=7, color=color)
    axes.set_xticks(range(grid.shape[1]), [_short(value) for value in grid.columns])
    axes.set_yticks(range(grid.shape[0]), [_short(value) for value in grid.index])
    figure.colorbar(shown, ax=axes, format=PercentFormatter(1.0, decimals=0) if is_share(metric) else None)
    name_axes(axes, across, down, spoken(metric))
    return figure


def marginals(points: pd.DataFrame, keys: Sequence[str], metric: str) -> Figure | None:
    """Draw the metric of every point against each setting, with the mean where values are listed."""
    varied = [key for key in keys if points[key].nunique() > 1]
    if not varied:
        return None
    figure, panels = new_figure(len(varied), height=3.2, shared_y=True)
    for axes, key in zip(panels, varied, strict=True):
        values = points[key]
        places = values if pd.api.types.is_numeric_dtype(values) else values.astype(str)
        axes.scatter(places, points["mean"], s=14, color=COLORS[0], alpha=0.6)
        if values.nunique() <= _MOST_VALUES and values.duplicated().any():
            means = points.groupby(places)["mean"].mean()
            axes.plot(means.index, means, color=COLORS[1], linewidth=1.8)
        if pd.api.types.is_numeric_dtype(values) and values.min() > 0 and values.max() > 20 * values.min():
            axes.set_xscale("log")
        if is_share(metric):
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        name_axes(axes, key, spoken(metric) if axes is panels[0] else "")
    return figure


def sensitivity(points: pd.DataFrame, keys: Sequence[str]) -> pd.Series:
    """Return for each setting the share of the metric's variance over points that its value alone explains.

    Numbers of many values are cut into five groups of equal size first. Interactions are nobody's, so the shares need
    not sum to 1.
    """
    known = points.dropna(subset="mean")
    total = known["mean"].var(ddof=0)
    shares: dict[str, float] = {}
    for key in keys:
        groups: Any = known[key]
        if known[key].nunique() > _MOST_VALUES:
            groups = pd.qcut(known[key], 5, duplicates="drop")
        elif not pd.api.types.is_numeric_dtype(known[key]):
            groups = known[key].astype(str)
        means = known.groupby(groups, observed=True)["mean"].transform("mean")
        shares[key] = float(means.var(ddof=0) / total) if total > 0 else 0.0
    return pd.Series(shares, dtype=float).sort_values()


def sensitivity_bars(points: pd.DataFrame, keys: Sequence[str]) -> Figure | None:
    """Draw how much of the metric's variance each setting explains; nothing for a single setting."""
    varied = [key for key in keys if points[key].nunique() > 1]
    if len(varied) < 2:
        return None
    shares = sensitivity(points, varied)
    figure, (axes,) = new_figure(height=1.0 + 0.4 * len(shares))
    axes.barh(range(len(shares)), shares, color=COLORS[0])
    axes.set_yticks(range(len(shares)), list(shares.index))
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    name_axes(axes, "share of the variance over points", "")
    return figure


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
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    name_axes(axes, "steps of each agent", spoken(metric))
    return figure


def _spread(spread: pd.DataFrame, grid: pd.DataFrame, row: int, column: int) -> float | None:
    place = grid.index[row], grid.columns[column]
    if place[0] not in spread.index or place[1] not in spread.columns:
        return None
    return float(spread.loc[place])


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
