"""The study's pictures, from what was measured."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ray_pcasgd.report.drawing import as_svg, band, legend, line, name_axes, new_figure, scale_values, style
from ray_pcasgd.report.sweep_pictures import heat_map

ACCURACY = "test_accuracy"


def pictures_of(
    task: str, settings: Mapping[str, Any], runs: pd.DataFrame, curves: pd.DataFrame, grid: pd.DataFrame
) -> dict[str, bytes]:
    """Return one task's pictures as SVG, by name."""
    pictures = {"curves": _curves(settings, curves[curves["figure"] == "curves"])}
    pictures["delays"] = _against(runs[runs["figure"] == "delays"], "delay", "steps of delay")
    if (runs["figure"] == "agents").any():
        pictures["agents"] = _against(runs[runs["figure"] == "agents"], "agents", "agents")
    if (curves["figure"] == "choices").any():
        pictures["choices"] = _choices(curves[curves["figure"] == "choices"])
    figures = {name: as_svg(figure) for name, figure in pictures.items()}
    for partition, trials in grid.groupby("partition", sort=False):
        figure = heat_map(points_of(trials), ["theta", "step_size"], ACCURACY)
        if figure is not None:
            figures[f"grid-{partition}"] = as_svg(figure)
    return {f"{task}-{name}": content for name, content in figures.items()}


def points_of(trials: pd.DataFrame) -> pd.DataFrame:
    """Return a row per point of a grid, the best first; a run that diverged guesses."""
    values = trials.assign(value=trials[ACCURACY].fillna(0.1)).groupby(["theta", "step_size"])["value"]
    table = pd.DataFrame({"mean": values.mean(), "std": values.std(), "finished": values.size()}).reset_index()
    return table.sort_values("mean", ascending=False)


def _curves(settings: Mapping[str, Any], curves: pd.DataFrame) -> Figure:
    """Draw accuracy against epochs, a panel for each partition, means over the seeds with their extremes."""
    config = settings["config"]
    samples = {"digits": 1437}.get(curves["task"].iloc[0], 50_000)
    curves = curves.assign(epoch=curves["step"] * config["num_agents"] * config["batch_size"] / samples)
    figure, panels = new_figure(curves["partition"].nunique(), height=4.4, shared_y=True)
    methods = list(curves["method"].drop_duplicates())
    for axes, (partition, part) in zip(panels, curves.groupby("partition", sort=False), strict=True):
        _lines(axes, part, "epoch", ACCURACY, methods)
        name_axes(axes, "epochs", "test accuracy" if axes is panels[0] else "", str(partition))
    scale_values(panels[0], ACCURACY, [])
    legend(figure, [(method, *style(place)) for place, method in enumerate(methods)])
    return figure


def _against(runs: pd.DataFrame, column: str, label: str) -> Figure:
    runs = runs.assign(**{ACCURACY: runs[ACCURACY].fillna(0.1)})
    partitions = list(runs["partition"].drop_duplicates())
    methods = list(runs["method"].drop_duplicates())
    figure, panels = new_figure(len(partitions), height=4.2, shared_y=True)
    for axes, partition in zip(panels, partitions, strict=True):
        _lines(axes, runs[runs["partition"] == partition], column, ACCURACY, methods)
        if column == "agents":
            axes.set_xscale("log", base=2)
            values = sorted(runs[column].unique())
            axes.set_xticks(values, [str(value) for value in values])
        name_axes(axes, label, "test accuracy" if axes is panels[0] else "", partition)
    scale_values(panels[0], ACCURACY, [])
    legend(figure, [(method, *style(place)) for place, method in enumerate(methods)])
    return figure


def _choices(curves: pd.DataFrame) -> Figure:
    partitions = list(curves["partition"].drop_duplicates())
    conditions = list(curves["method"].drop_duplicates())
    figure, panels = new_figure(len(partitions), height=3.8, shared_y=True)
    for axes, partition in zip(panels, partitions, strict=True):
        _lines(axes, curves[curves["partition"] == partition], "step", "predicting_share", conditions)
        name_axes(axes, "steps", "share of predicting choices" if axes is panels[0] else "", partition)
    scale_values(panels[0], "predicting_share", [])
    legend(figure, [(condition, *style(place)) for place, condition in enumerate(conditions)])
    return figure


def _lines(axes: Axes, frame: pd.DataFrame, across: str, up: str, methods: Sequence[str]) -> None:
    for place, method in enumerate(methods):
        values = frame[frame["method"] == method].groupby(across)[up]
        means = values.mean()
        if means.notna().any():
            x = means.index.to_numpy(dtype=float)
            band(axes, x, (np.asarray(values.min()), np.asarray(values.max())), style(place)[0], strength=0.1)
            line(axes, x, means.to_numpy(), *style(place))
