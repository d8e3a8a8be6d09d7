"""The page about a sweep."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

import pandas as pd

from ray_pcasgd.own_files import write_whole
from ray_pcasgd.report.illustrations import Illustration, framed
from ray_pcasgd.report.page import render, table_of
from ray_pcasgd.report.sweep_pictures import best_curve, heat_map, marginals, sensitivity_bars
from ray_pcasgd.wording import spoken, written

_MOST_POINTS = 20


def write_sweep_report(
    path: Path, points: pd.DataFrame, trials: pd.DataFrame, keys: Sequence[str], metric: str, best_settings: str
) -> Path:
    """Write a sweep's page into its folder, and return where it lies.

    ``points`` and ``trials`` are those of ``SweepResult``; ``best_settings`` is the text of best.yaml.
    """
    pictures = framed(
        [
            Illustration(
                f"{spoken(metric).capitalize()} over the grid",
                "Mean and spread over seeds.",
                heat_map(points, keys, metric),
            ),
            Illustration(
                "Setting by setting",
                "A dot is a point; the line is the mean over all others.",
                marginals(points, keys, metric),
            ),
            Illustration(
                "What matters",
                "How much of the differences between points each setting explains by itself.",
                sensitivity_bars(points, keys),
            ),
            Illustration(
                "The best point",
                "Mean and extremes over its seeds.",
                best_curve(_curves(points, trials, keys, metric), metric),
            ),
        ]
    )
    failed = trials[trials["error"].notna()]
    sections = [
        ("Best points", table_of(_best(points, keys, metric), "numbers")),
        ("Pictures", pictures),
        ("Failed trials", table_of(_failures(failed, keys), "text") if len(failed) else ""),
        (
            "Settings",
            f"<details>\n<summary>best.yaml, complete</summary>\n<pre>{escape(best_settings)}</pre>\n</details>",
        ),
    ]
    seeds = trials["seed"].nunique()
    headline = (
        f'<p class="soft">{len(points)} points, {seeds} seed{"s" if seeds > 1 else ""}, {len(trials)} trials, '
        f"{len(failed)} failed</p>"
    )
    page = path / "report.html"
    write_whole(page, render(f"Sweep {path.name}", headline, sections))
    return page


def _best(points: pd.DataFrame, keys: Sequence[str], metric: str) -> list[dict[str, str]]:
    return [
        {key: f"{row[key]:.4g}" if isinstance(row[key], float) else str(row[key]) for key in keys}
        | {
            spoken(metric): written(metric, row["mean"], row["std"] if row["finished"] > 1 else None),
            "finished": str(row["finished"]),
            "stopped early": str(row["stopped"]),
            "failed": str(row["failed"]),
        }
        for row in points.head(_MOST_POINTS).to_dict("records")
    ]


def _failures(failed: pd.DataFrame, keys: Sequence[str]) -> list[dict[str, str]]:
    return [{key: str(row[key]) for key in (*keys, "seed", "error")} for row in failed.to_dict("records")]


def _curves(points: pd.DataFrame, trials: pd.DataFrame, keys: Sequence[str], metric: str) -> list[pd.DataFrame]:
    """Return the averaged model's metrics of the best point's finished trials, as their run folders hold them."""
    chosen = trials.merge(points.head(1)[list(keys)], on=list(keys))
    files = [Path(path) / "metrics.parquet" for path in chosen[chosen["finished"]]["path"]]
    frames = [pd.read_parquet(file) for file in files if file.exists()]
    return [frame[frame["agent"].isna()] for frame in frames if metric in frame]
