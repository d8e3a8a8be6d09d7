"""The study's page and its picture, made from what was measured."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from experiments.differences import difference
from experiments.studies import machine, num_seeds, percent, total_time
from ray_pcasgd.base.text import SPREAD
from ray_pcasgd.report.drawing import as_svg, legend, line, name_axes, new_figure, scale_values, style

LABELS = ["task", "workers", "step_size", "n", "correction"]


def write_page(settings: Mapping[str, Any], output: Path, scale: str) -> None:
    """Write RESULTS.md and its pictures from runs.parquet."""
    runs = pd.read_parquet(output / "runs.parquet")
    # A run that diverged guesses.
    runs["test_accuracy"] = runs["test_accuracy"].fillna(0.1)
    for task in settings:
        (output / f"{task}.svg").write_bytes(as_svg(picture(runs[runs["task"] == task])))
    (output / "RESULTS.md").write_text(page(runs, settings, scale), encoding="utf-8")


def picture(runs: pd.DataFrame) -> Figure:
    """Draw accuracy against the number of workers, a panel for each step size, a line for each n and correction."""
    step_sizes = sorted(runs["step_size"].unique())
    figure, panels = new_figure(max(2, len(step_sizes)), height=4.2, shared_y=True)
    lines = list(runs.assign(series=_series(runs))["series"].drop_duplicates())
    for axes, step_size in zip(panels, step_sizes, strict=False):
        part = runs[runs["step_size"] == step_size].assign(series=_series(runs))
        for place, series in enumerate(lines):
            means = part[part["series"] == series].groupby("workers")["test_accuracy"].mean()
            line(axes, means.index.to_numpy(), means.to_numpy(), *style(place))
        scale_values(axes, "test_accuracy", [part["test_accuracy"].to_numpy()])
        name_axes(axes, "workers", "test accuracy" if axes is panels[0] else "", f"step size {step_size:g}")
    for axes in panels[len(step_sizes) :]:
        axes.set_visible(False)
    legend(figure, [(series, *style(place)) for place, series in enumerate(lines)])
    return figure


def _series(runs: pd.DataFrame) -> pd.Series:
    names = np.where(runs["n"] == runs["workers"], "n = workers", "n = " + runs["n"].astype(str))
    return pd.Series(
        np.where(runs["n"] == 0, runs["correction"], names + ", " + runs["correction"]),
        index=runs.index,
    )


def comparisons(runs: pd.DataFrame) -> pd.DataFrame:
    """Return, for each case with staleness, how much better the modulated step size is, with its standard error."""
    keys = ["task", "workers", "step_size", "n"]
    table = runs[runs["n"] > 1].pivot_table(index=[*keys, "seed"], columns="correction", values="test_accuracy")
    return judged(table["modulated"] - table["not modulated"], keys)


def against_modulated(runs: pd.DataFrame) -> pd.DataFrame:
    """Return, for each case, how much better each other method is than the modulated step size with n = workers."""
    keys = ["task", "workers", "step_size", "method"]
    index = ["task", "workers", "step_size", "seed"]
    own = runs[(runs["n"] == runs["workers"]) & (runs["correction"] == "modulated")].set_index(index)["test_accuracy"]
    others = runs[runs["n"] == 0].rename(columns={"correction": "method"})
    gains = others.set_index([*index, "method"])["test_accuracy"].unstack("method").sub(own, axis=0)
    return judged(gains.stack(), keys)


def judged(gains: pd.Series, keys: Sequence[str]) -> pd.DataFrame:
    """Return the mean gain of each case over the seeds, with its standard error and what can be said of it."""
    found = gains.groupby(keys).apply(difference)
    result = pd.DataFrame(found.tolist(), index=found.index, columns=["gain", "error", "sign"]).reset_index()
    result["verdict"] = result["sign"].map({1: "better", -1: "worse", 0: "even"})
    return result


def page(runs: pd.DataFrame, settings: Mapping[str, Any], scale: str) -> str:
    """Return the page as Markdown."""
    tasks = "\n\n".join(_of_task(task, own, runs[runs["task"] == task]) for task, own in settings.items())
    return f"""# Staleness-aware asynchronous SGD: workers, n, and the modulated step size

{_first(runs)}

The paper (Zhang, Gupta, Lian, Liu, IJCAI 2016) claims that under n-softsync the mean staleness is n, that dividing the
step size by the staleness keeps the accuracy of synchronous SGD up to 30 learners, and that without it training with
much staleness fails or loses accuracy. Here all runs of a task take the same number of epochs, and all methods the same
step size, so that large step sizes show what staleness does to stability, small ones what the division costs. A run
whose loss was not finite counts as guessing (10 %). In the tables, {SPREAD}.
Written by `python -m experiments.staleness_aware --scale {scale}`
({machine()}; {total_time(runs)}).

## Without the modulated step size

Whether asynchronous steps need a smaller step size at all: methods that wait for the fastest half of the workers
(K-sync), drop gradients that are too stale (Ringmaster), or gather as many gradients of the newest weights as there
are workers (Rennala), against n = workers with the modulated step size. Numbers of cases (workers and step size) in
which each is better or worse, where Student's 95 % interval of the paired difference leaves 0 out. All take the same
number of gradients;
the virtual seconds, in which K-sync and Rennala wait or discard, are those of `experiments/slow_and_stale`.

{_other_methods(runs)}

{tasks}
"""


def _first(runs: pd.DataFrame) -> str:
    """Return where the order of methods is another than the paper's."""
    compared = comparisons(runs)
    lines = []
    for task, part in compared.groupby("task", sort=False):
        counts = part["verdict"].value_counts()
        numbers = {name: int(counts.get(name, 0)) for name in ("better", "worse", "even")}
        text = (
            f"- On {task}, the modulated step size is better in {numbers['better']} of {len(part)} cases with "
            f"staleness (n > 1), worse in {numbers['worse']}, and cannot be told apart in {numbers['even']} "
            "(Student's 95 % interval of the paired difference)."
        )
        worse = part[part["verdict"] == "worse"]
        if len(worse):
            largest = worse.loc[worse["gain"].idxmin()]
            text += (
                f" Against the paper's order, it is worst at {int(largest['workers'])} workers, n = "
                f"{int(largest['n'])}, step size {largest['step_size']:g}: {100 * largest['gain']:+.1f} points; all "
                f"such cases have step sizes of {', '.join(f'{eta:g}' for eta in sorted(worse['step_size'].unique()))}."
            )
        lines.append(text)
    return "\n".join(lines)


def _other_methods(runs: pd.DataFrame) -> str:
    """Return the table of cases in which other methods are better or worse than the modulated step size."""
    lines = []
    for (task, method), part in against_modulated(runs).groupby(["task", "method"], sort=False):
        counts = part["verdict"].value_counts()
        better, worse, even = (int(counts.get(name, 0)) for name in ("better", "worse", "even"))
        lines.append(f"| {task} | {method} | {better} | {worse} | {even} |")
    heads = "| task | method | better | worse | cannot be told |\n|---|---|---|---|---|"
    return "\n".join([heads, *lines])


def _of_task(task: str, settings: Mapping[str, Any], runs: pd.DataFrame) -> str:
    seeds = runs["seed"].nunique()
    staleness = runs[runs["n"] > 0].groupby(["workers", "n"])["staleness_mean"].mean()
    measured = ", ".join(f"{value:.1f} ({workers} workers, n = {n})" for (workers, n), value in staleness.items())
    return f"""## {task}

{settings["epochs"]} epochs, batch {settings["config"]["batch_size"]}, {num_seeds(seeds)}.

![accuracy against workers]({task}.svg)

{_table(runs)}

Mean staleness that was measured: {measured}."""


def _table(runs: pd.DataFrame) -> str:
    step_sizes = sorted(runs["step_size"].unique())
    heads = " | ".join(f"step size {eta:g}" for eta in step_sizes)
    lines = [f"| workers | method | {heads} |", "|---" * (2 + len(step_sizes)) + "|"]
    for (workers, series), group in runs.assign(series=_series(runs)).groupby(["workers", "series"], sort=False):
        cells = []
        for eta in step_sizes:
            cells.append(percent(group[group["step_size"] == eta]["test_accuracy"]))
        lines.append(f"| {workers} | {series} | {' | '.join(cells)} |")
    return "\n".join(lines)
