"""The study's page, made from what was measured."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments.self_choosing.study import CONSTANT, UNDELAYED
from experiments.studies import machine, num_seeds, total_time

KEYS = ["task", "partition", "delay"]
MODELS = {"test_accuracy": "averaged model", "agents_mean_test_accuracy": "agents' mean"}
GOAL = 1.0
"""Points behind the best constant theta that are at most accepted."""


def write_page(settings: Mapping[str, Any], output: Path, scale: str) -> None:
    """Write RESULTS.md from runs.parquet."""
    runs = pd.read_parquet(output / "runs.parquet")
    # A run that diverged guesses.
    for name in MODELS:
        runs[name] = 100 * runs[name].fillna(0.1)
    (output / "RESULTS.md").write_text(page(runs, settings, scale), encoding="utf-8")


def gaps(runs: pd.DataFrame, measure: str) -> pd.DataFrame:
    """Return, for each cell and method, its mean, the best constant theta's, the gap and its standard error.

    The gap is paired by seed: below 0 where the method is behind.
    """
    wide = runs[runs["method"] != UNDELAYED].pivot_table(index=[*KEYS, "seed"], columns="method", values=measure)
    constants = [name for name in wide.columns if str(name).startswith(CONSTANT)]
    means = wide.groupby(KEYS).mean()
    best = means[constants].idxmax(axis=1)
    rows = []
    for cell, name in best.items():
        part = wide.loc[cell]
        for method in wide.columns:
            if method in constants or part[method].isna().all():
                continue
            gap = part[method] - part[name]
            rows.append((*cell, method, means.loc[cell, method], name, means.loc[cell, name], gap.mean(), gap.sem()))
    columns = [*KEYS, "method", "mean", "best", "best_mean", "gap", "error"]
    return pd.DataFrame(rows, columns=columns)


def page(runs: pd.DataFrame, settings: Mapping[str, Any], scale: str) -> str:
    """Return the page as Markdown."""
    parts = "\n\n".join(
        f"## {text[0].upper()}{text[1:]}\n\n{_summary(gaps(runs, name))}\n\n{_tables(runs, name)}"
        for name, text in MODELS.items()
    )
    return f"""# PC-ASGD without a knob: theta and reach from what is read

{_first(runs)}

Every method's gap to the best of the constant thetas of the published method, which is chosen afresh in each cell with
the test accuracy known: no user could choose it so. Gaps are in points, paired by seed, with their standard error; a
run whose loss was not finite counts as guessing (10 %).
Written by `python -m experiments.self_choosing --scale {scale}`
({num_seeds(int(runs["seed"].nunique()))} at most; {machine()}; {total_time(runs)}).
Made at commit 933b437, with `drift: exact`. Of 16 runs of `chosen` made again with the present default,
`drift: velocity` (digits, complete graph, seed 0), 13 have the same accuracy to 0.3 points and one is 0.6 below; on
shards of one label, where runs are chaotic, one is 12.3 below (delay 10) and one 19.8 above (delay 20).

{parts}
"""


def _first(runs: pd.DataFrame) -> str:
    """Return where each method loses, first of all."""
    found = gaps(runs, "test_accuracy")
    lines = []
    for method, part in found.groupby("method", sort=False):
        worst = part.loc[part["gap"].idxmin()]
        behind = int((part["gap"] < -GOAL).sum())
        lines.append(
            f"- `{method}`: more than {GOAL:g} point behind the best constant theta in {behind} of {len(part)} cells; "
            f"worst {worst['gap']:+.1f} ± {worst['error']:.1f} ({worst['task']}, {worst['partition']}, delay "
            f"{worst['delay']}, where `{worst['best']}` has {worst['best_mean']:.1f} %)."
        )
    return "\n".join(lines)


def _summary(found: pd.DataFrame) -> str:
    lines = ["| method | mean gap | worst gap | cells more than 1 behind |", "|---|---|---|---|"]
    by_method = found.groupby("method")["gap"]
    order = by_method.min().sort_values(ascending=False).index
    for method in order:
        own = by_method.get_group(method)
        lines.append(f"| {method} | {own.mean():+.2f} | {own.min():+.1f} | {int((own < -GOAL).sum())} of {len(own)} |")
    return "\n".join(lines)


def _tables(runs: pd.DataFrame, measure: str) -> str:
    found = gaps(runs, measure)
    parts = []
    for task, part in found.groupby("task", sort=False):
        methods = list(dict.fromkeys(part["method"]))
        head = "| shards, delay | undelayed | best constant theta | " + " | ".join(methods) + " |"
        lines = [f"### {task}", "", head, "|---" * (3 + len(methods)) + "|"]
        for (partition, delay), cell in part.groupby(["partition", "delay"], sort=False):
            lines.append(
                _row(runs, measure, (str(task), str(partition), int(delay)), cell.set_index("method"), methods)
            )
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _row(runs: pd.DataFrame, measure: str, place: tuple[str, str, int], cell: pd.DataFrame, methods: list[str]) -> str:
    task, partition, delay = place
    same = (runs["task"] == task) & (runs["partition"] == partition) & (runs["method"] == UNDELAYED)
    first = cell.iloc[0]
    texts = [f"{partition}, {delay}", f"{runs[same][measure].mean():.1f}"]
    texts.append(f"{str(first['best']).removeprefix(CONSTANT)}: {first['best_mean']:.1f}")
    for method in methods:
        if method not in cell.index:
            texts.append("–")
            continue
        gap, error = cell.loc[method, "gap"], cell.loc[method, "error"]
        texts.append(f"{gap:+.1f}" + (f" ± {error:.1f}" if np.isfinite(error) else ""))
    return "| " + " | ".join(texts) + " |"
