"""What the studies share: a comparison at several step sizes, and its page written from the measured figures."""

import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch

from ray_pcasgd.compare import Method, compare
from ray_pcasgd.config import Config
from ray_pcasgd.loading import load_config
from ray_pcasgd.report.page import write_report


def compare_step_sizes(
    config: Config, methods: Sequence[Method], step_sizes: Sequence[float], seeds: int, storage: Path
) -> pd.DataFrame:
    """Return one row per step size, method and seed; the run folders lie in ``storage``, with a report each."""
    frames = []
    for step_size in step_sizes:
        began = time.perf_counter()
        settings = load_config(
            config, changes={"step_size": step_size, "storage_path": str(storage), "name": f"step-{step_size:g}"}
        )
        comparison = compare(settings, methods, seeds)
        labels = comparison.runs["label"].tolist()
        write_report([Path(p) for p in comparison.runs["path"]], comparison.path / "report.html", "comparison", labels)
        seconds = time.perf_counter() - began
        frames.append(comparison.runs.assign(step_size=step_size))
        print(f"step size {step_size:g}: {seconds:.0f} s", file=sys.stderr, flush=True)
    return pd.concat(frames, ignore_index=True)


def table(runs: pd.DataFrame) -> str:
    """Return a Markdown table: mean (and standard deviation over seeds) in percent, by method and step size."""
    lines = [
        "| method | step size | averaged model | agents' mean | worst agent | consensus distance | predicting share |",
        "|---|---|---|---|---|---|---|",
    ]
    for (label, step_size), group in runs.groupby(["label", "step_size"], sort=False):
        cells = [_percent(group[name]) for name in ("test_accuracy", "agents_mean_test_accuracy")]
        cells += [_percent(group["agents_min_test_accuracy"]), f"{group['consensus_distance'].mean():.3g}"]
        share = group["predicting_share"].mean()
        cells.append("–" if share != share else f"{share:.2f}")
        lines.append(f"| {label} | {step_size:g} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def machine() -> str:
    """Return what the figures were measured on."""
    return f"Python {platform.python_version()}, torch {torch.__version__}, CPU only, one thread a process"


def _percent(values: pd.Series) -> str:
    spread = f" ± {100 * values.std(ddof=0):.1f}" if len(values) > 1 else ""
    return f"{100 * values.mean():.1f}{spread} %"
