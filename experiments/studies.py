"""Shared by the studies: a comparison under several settings, and its page written from the measured figures."""

import math
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from ray_pcasgd.agents.learner import NonFiniteLossError
from ray_pcasgd.base.plain_json import read_mapping
from ray_pcasgd.config import Config
from ray_pcasgd.report.page import write_report
from ray_pcasgd.runs.comparison import Method, compare
from ray_pcasgd.runs.settings.loading import load_config
from ray_pcasgd.runs.storage.names import clear_run
from ray_pcasgd.runs.trainer import Trainer


def compare_settings(
    config: Config, methods: Sequence[Method], changes: Mapping[str, Mapping[str, Any]], seeds: int, storage: Path
) -> pd.DataFrame:
    """Return one row per named change of the settings, method and seed.

    The run folders lie in ``storage``, in a folder for each change, with a report.
    """
    frames = []
    for case, change in changes.items():
        began = time.perf_counter()
        place = {"storage_path": str(storage), "name": case.replace(" ", "-")}
        comparison = compare(load_config(config, changes={**change, **place}), methods, seeds)
        folders = [Path(path) for path in comparison.runs["path"]]
        write_report(folders, comparison.path / "report.html", case, comparison.runs["label"].tolist())
        frames.append(comparison.runs.assign(case=case))
        print(f"{case}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    return pd.concat(frames, ignore_index=True)


def ensure_run(config: Config) -> dict[str, Any]:
    """Return the final metrics of the run of that name and place; it is run unless it is there, complete.

    A run whose loss was not finite has no metrics; any other error is raised.
    """
    assert config.name is not None
    folder = Path(config.storage_path) / config.name
    if not has_ended(folder):
        clear_run(folder)
        result = Trainer(config).fit()
        if result.error is not None and not isinstance(result.error, NonFiniteLossError):
            raise result.error
    summary = read_mapping(folder / "result.json")
    assert summary is not None
    if summary["error"] is not None:
        return {}
    final = summary["final"]
    kept = {name: final[name] for name in ("staleness_mean", "consensus_distance", "predicting_share")}
    kept |= {f"agents_mean_{name}": spread["mean"] for name, spread in final["agents"].items()}
    # What was no number is null there.
    figures = {name: math.nan if value is None else value for name, value in {**final["averaged"], **kept}.items()}
    return {**figures, "run_seconds": summary["wall_seconds"]}


def has_ended(folder: Path) -> bool:
    """Return whether a run has come to its end, or to an error; one that was interrupted has not."""
    summary = read_mapping(folder / "result.json")
    return summary is not None and summary.get("status") != "interrupted"


def table(runs: pd.DataFrame) -> str:
    """Return a Markdown table: mean (and sample deviation over seeds) in percent, by case and method."""
    lines = [
        "| case | method | averaged model | agents' mean | worst agent | consensus distance | predicting share |",
        "|---|---|---|---|---|---|---|",
    ]
    for (case, label), group in runs.groupby(["case", "label"], sort=False):
        cells = [percent(group[name]) for name in ("test_accuracy", "agents_mean_test_accuracy")]
        cells += [percent(group["agents_min_test_accuracy"]), f"{group['consensus_distance'].mean():.3g}"]
        share = group["predicting_share"].mean()
        cells.append("–" if share != share else f"{share:.2f}")
        lines.append(f"| {case} | {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def task_of(settings: Mapping[str, Any]) -> str:
    """Return a study's data and network in words."""
    task = load_config(settings["config"]).task
    data = "CIFAR-10" if task.data.name in ("cifar10", "image-parquet") else task.data.name
    return f"{data}, {task.model.name}"


def when(results: pd.DataFrame) -> str:
    """Return which methods were measured at which commit, where there are several; else an empty text.

    A commit's draws of data and times may be others, so that what is measured at two of them is paired by nothing.
    """
    if "commit" not in results:
        return ""
    results = results.assign(commit=results["commit"].fillna("a later one"))
    if results["commit"].nunique() < 2:
        return ""
    parts = [
        f"{', '.join(rows['method'].drop_duplicates())} at {commit}"
        for commit, rows in results.groupby("commit", sort=False)
    ]
    return (
        f"Measured at different commits: {'; '.join(parts)}. Between these the draws of data and times differ, as "
        "between seeds."
    )


def search_table(tuning: pd.DataFrame, labels: Sequence[str], column: str, digits: str) -> str:
    """Return the Markdown table of a search: a row for each of the ``labels``, a column for each step size.

    A run that diverged has an infinite value; – stands where a step size was not tried.
    """
    steps = sorted(tuning["step_size"].unique())
    heads = [*(label.replace("_", " ") for label in labels), *(f"{step:g}" for step in steps)]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for names, rows in tuning.groupby(list(labels), sort=False):
        found = rows.set_index("step_size")[column].fillna(float("inf"))
        cells = [*(f"{name:g}" if isinstance(name, float) else str(name) for name in names)]
        cells += [f"{found[step]:{digits}}" if step in found else "–" for step in steps]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def machine() -> str:
    """Return what the figures were measured on."""
    processor = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU only"
    return f"Python {platform.python_version()}, torch {torch.__version__}, {processor}, one thread a process"


def total_time(runs: pd.DataFrame) -> str:
    """Return how many runs were made, and how long they took together, one after the other."""
    distinct = runs.drop_duplicates("run") if "run" in runs else runs
    return f"{len(distinct)} runs of {distinct['run_seconds'].sum() / 60:.0f} minutes together, one core each"


def num_seeds(number: int) -> str:
    """Return a number of seeds in words.

    >>> num_seeds(1), num_seeds(3)
    ('1 seed', '3 seeds')
    """
    return f"{number} seed{'s' if number > 1 else ''}"


def percent(values: pd.Series) -> str:
    """Return the mean in percent, with the sample deviation where there are several values."""
    spread = f" ± {100 * values.std():.1f}" if len(values) > 1 else ""
    return f"{100 * values.mean():.1f}{spread} %"
