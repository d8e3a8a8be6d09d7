"""The study's page, written from what was measured."""

import itertools
from collections.abc import Mapping
from typing import Any

import pandas as pd

from experiments.dc_asgd.study import METHODS, PAPER
from experiments.studies import machine, task_of, when
from ray_pcasgd.base.text import SPREAD

VERDICTS = ("reproduces", "does NOT reproduce, the reverse holds", "cannot be told here")


def page(tuning: pd.DataFrame, final: pd.DataFrame, settings: Mapping[str, Any], scale: str) -> str:
    """Return the page as Markdown."""
    chosen = final.groupby(["method", "workers"])["step_size"].first()
    seeds = final["seed"].nunique()
    limits = (min(settings["step_sizes"]), max(settings["step_sizes"]))
    edges = [f"{method} with {workers} workers" for (method, workers), eta in chosen.items() if eta in limits]
    edge_note = f"At the edge of the grid: {', '.join(edges)}." if edges else "No choice lies at the edge of the grid."
    grid = ", ".join(f"{eta:g}" for eta in settings["step_sizes"])
    comparisons = _comparisons(final)
    counts = {verdict: sum(verdict in line for line in comparisons) for verdict in VERDICTS}
    summary = (
        f"Of {len(comparisons)} orderings in the paper's table, {counts[VERDICTS[0]]} reproduce here, in "
        f"{counts[VERDICTS[1]]} the reverse holds, and {counts[VERDICTS[2]]} cannot be told from {seeds} seeds."
    )
    listed = "\n".join(comparisons)
    return f"""# DC-ASGD and its rivals, at equal epochs

{summary}

{task_of(settings)}, batch {settings["config"]["batch_size"]},
{settings["epochs"]:g} epochs, no momentum, IID shards, compute times 0.75 s +
exponential of mean 0.25 s. lambda_0 is the paper's: 0.04 (c), 2 (a, m = 0.95). Step sizes {grid}
were searched for each method and number of workers on 10 % of the training samples, held out (one seed, lowest
validation loss); then {seeds} other seeds on all training samples, tested once. {edge_note}
The images are re-encoded (JPEG) and the run is short: compare the lines with each other, not with published figures.
In the table, {SPREAD}, {seeds} of them.
Written by `python -m experiments.dc_asgd --scale {scale}` ({machine()}).
{when(final)}

{_table(final)}

## What reproduces of the paper's order

Differences are means over the seeds, each against the same seed, with their standard errors; what lies within two of
them cannot be told.

{listed}

All workers are equally fast and have alike shards here. Where speeds differ and shards are skewed, ASGD and its
corrections lean towards the fast workers' samples; nothing of that is measured on this page.

## The search

Validation loss by step size (infinite: diverged).

{_search_table(tuning)}
"""


def _table(final: pd.DataFrame) -> str:
    lines = ["| workers | method | step size | mean staleness | test error | paper (ResNet-20, 160 epochs) |"]
    lines.append("|---|---|---|---|---|---|")
    for workers, method in itertools.product(final["workers"].unique(), METHODS):
        if method == "sequential SGD" and workers != final["workers"].iloc[0]:
            continue
        rows = _rows(final, method, workers)
        number = 1 if method == "sequential SGD" else workers
        eta, staleness = rows["step_size"].iloc[0], rows["staleness"].mean()
        spread = f" ± {rows['error'].std():.2f}" if len(rows) > 1 else ""
        error = f"{rows['error'].mean():.2f}{spread} %"
        paper = f"{PAPER[workers][method]:.2f} %" if method in PAPER[workers] else "–"
        lines.append(f"| {number} | {method} | {eta:g} | {staleness:.1f} | {error} | {paper} |")
    return "\n".join(lines)


def _rows(frame: pd.DataFrame, method: str, workers: int) -> pd.DataFrame:
    place = frame["workers"].iloc[0] if method == "sequential SGD" else workers
    return frame[(frame["method"] == method) & (frame["workers"] == place)]


def _comparisons(final: pd.DataFrame) -> list[str]:
    """Return a line for each pair that the paper orders."""
    lines = []
    for workers, paper in PAPER.items():
        if workers not in set(final["workers"]):
            continue
        for better, worse in itertools.combinations(sorted(paper, key=lambda method: paper[method]), 2):
            ours, others = (_rows(final, method, workers).set_index("seed")["error"] for method in (better, worse))
            # By seed: the start, the shards and the schedule are the same, and much of the spread with them.
            gaps = others - ours
            gap, noise = gaps.mean(), gaps.std(ddof=1) / len(gaps) ** 0.5
            claim = (
                f"{workers} workers, {better} better than {worse} (paper: {paper[worse] - paper[better]:.2f} points)"
            )
            lines.append(f"- {claim}: {_verdict(gap, noise)}, {gap:+.2f} points (standard error {noise:.2f}).")
    return lines


def _verdict(gap: float, noise: float) -> str:
    if gap > 2 * noise:
        return VERDICTS[0]
    return VERDICTS[1] if gap < -2 * noise else VERDICTS[2]


def _search_table(tuning: pd.DataFrame) -> str:
    step_sizes = sorted(tuning["step_size"].unique())
    lines = [f"| workers | method | {' | '.join(f'{eta:g}' for eta in step_sizes)} |"]
    lines.append("|---" * (2 + len(step_sizes)) + "|")
    for (workers, method), group in tuning.groupby(["workers", "method"], sort=False):
        losses = group.set_index("step_size")["loss"]
        lines.append(f"| {workers} | {method} | " + " | ".join(f"{losses[eta]:.3f}" for eta in step_sizes) + " |")
    return "\n".join(lines)
