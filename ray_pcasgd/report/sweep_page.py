"""The page about a sweep."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from io import BytesIO
from pathlib import Path

import pandas as pd

from ray_pcasgd.base.own_files import write_whole
from ray_pcasgd.base.text import NOTHING, SPREAD, format_value, spoken
from ray_pcasgd.report.illustrations import Illustration, framed
from ray_pcasgd.report.page import render, table_of
from ray_pcasgd.report.sweep_pictures import (
    best_curve,
    has_finished,
    has_means,
    heat_map,
    marginals,
    sensitivity_bars,
    what_matters,
)
from ray_pcasgd.runs.storage.remote import content_of

_MOST_POINTS = 20


def write_sweep_report(
    path: Path,
    points: pd.DataFrame,
    trials: pd.DataFrame,
    keys: Sequence[str],
    metric: str,
    best_settings: str,
    scales: Mapping[str, bool] | None = None,
    changed: bool = False,
) -> Path:
    """Write a sweep's page into its folder, and return where it lies.

    ``points`` and ``trials`` are those of ``SweepResult``; ``best_settings`` is the text of best.yaml. ``scales`` says
    of each range whether it is logarithmic. Where trials ``changed`` their numbers, points are what these were at last.
    """
    seeds = int(trials["seed"].nunique())
    failed = trials[trials["error"].notna()]
    sections = [
        ("Best points", table_of(_best(points, keys, metric), "numbers") + _note(points, seeds, changed)),
        ("Pictures", framed(_pictures(points, trials, keys, metric, scales, changed))),
        ("Failed trials", table_of(_failures(failed, keys), "text") if len(failed) else ""),
        (
            "Settings",
            f"<details>\n<summary>best.yaml, complete</summary>\n<pre>{escape(best_settings)}</pre>\n</details>",
        ),
    ]
    headline = (
        f'<p class="soft">{len(points)} points, {seeds} seed{"s" if seeds > 1 else ""}, {len(trials)} trials, '
        f"{len(failed)} failed</p>"
    )
    if not changed and (sentence := what_matters(points, keys)):
        headline += f"\n<p>{escape(sentence)}</p>"
    page = path / "report.html"
    write_whole(page, render(f"Sweep {path.name}", headline, sections))
    return page


def _pictures(
    points: pd.DataFrame,
    trials: pd.DataFrame,
    keys: Sequence[str],
    metric: str,
    scales: Mapping[str, bool] | None,
    changed: bool,
) -> Iterator[Illustration]:
    """Yield the pictures, with words about what is drawn and nothing else."""
    several = bool((points["finished"] > 1).any())
    some_stopped = bool((~has_finished(points) & points["mean"].notna()).any())
    stopped = " Gray: stopped early, at the step that is written; no figure to compare." if some_stopped else ""
    cells = "Mean ± sample standard deviation over seeds." if several else "One seed."
    yield Illustration(
        f"{spoken(metric).capitalize()} over the grid", cells + stopped, heat_map(points, keys, metric, scales)
    )
    line = " The line is the mean over the other settings." if any(has_means(points, key) for key in keys) else ""
    hollow = " Hollow: stopped early, with the figures of fewer steps." if some_stopped else ""
    at_last = " Numbers are those at the end; they changed during the trial." if changed else ""
    dots = f"A dot is a point{', its mean over seeds' if several else ''}.{line}{hollow}{at_last}"
    yield Illustration("Setting by setting", dots, marginals(points, keys, metric, scales))
    if not changed:
        yield Illustration(
            "What matters",
            "How much of the differences between finished points each setting explains by itself, less what it would "
            "by chance on average; pale bars cannot be told from chance.",
            sensitivity_bars(points, keys),
        )
    curves = _curves(points, trials, keys, metric)
    whose = f"Mean and extremes over its {len(curves)} seeds." if len(curves) > 1 else "Its only seed."
    yield Illustration("The best point", whose, best_curve(curves, metric))


def _note(points: pd.DataFrame, seeds: int, changed: bool) -> str:
    parts = []
    if seeds > 1:
        parts.append(f"{SPREAD}, {seeds} of them.")
    if (points["finished"] == 0).any():
        parts.append(
            "Points of which no trial finished come last, those that came farthest first: their figures are of the "
            "step that is written, and not to be compared with the others."
        )
    if changed:
        parts.append("Numbers are those at the end; each trial's config.yaml says how they changed before.")
    return f'\n<p class="soft">{escape(" ".join(parts))}</p>' if parts else ""


def _best(points: pd.DataFrame, keys: Sequence[str], metric: str) -> list[dict[str, str]]:
    shown = points.head(_MOST_POINTS)
    with_step = bool((shown["finished"] == 0).any())
    return [
        {key: f"{row[key]:.4g}" if isinstance(row[key], float) else str(row[key]) for key in keys}
        | {spoken(metric): format_value(metric, row["mean"], row["std"])}
        | ({"at step": NOTHING if row["step"] != row["step"] else f"{row['step']:.0f}"} if with_step else {})
        | {"finished": str(row["finished"]), "stopped early": str(row["stopped"]), "failed": str(row["failed"])}
        for row in shown.to_dict("records")
    ]


def _failures(failed: pd.DataFrame, keys: Sequence[str]) -> list[dict[str, str]]:
    return [{key: str(row[key]) for key in (*keys, "seed", "error")} for row in failed.to_dict("records")]


def _curves(points: pd.DataFrame, trials: pd.DataFrame, keys: Sequence[str], metric: str) -> list[pd.DataFrame]:
    """Return the averaged model's metrics of the best point's finished trials, as their run folders hold them."""
    chosen = trials.merge(points.head(1)[list(keys)], on=list(keys))
    contents = [content_of(path, "metrics.parquet") for path in chosen[chosen["finished"]]["path"]]
    frames = [pd.read_parquet(BytesIO(content)) for content in contents if content is not None]
    return [frame[frame["agent"].isna()] for frame in frames if metric in frame]
