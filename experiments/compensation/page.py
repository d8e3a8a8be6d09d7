"""The study's page, written from what was measured."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.compensation.study import WAYS
from experiments.studies import machine, num_seeds, percent, total_time
from ray_pcasgd.base.text import SPREAD


def write_page(settings: Mapping[str, Any], output: Path, scale: str) -> None:
    """Write ``RESULTS.md``."""
    runs = pd.read_parquet(output / "results.parquet")
    (output / "RESULTS.md").write_text(page(runs, scale), encoding="utf-8")


def page(runs: pd.DataFrame, scale: str) -> str:
    """Return the page as Markdown."""
    return f"""# What corrects a late direction of AdamW

`pc-asgd` with `theta: 0.3`, AdamW's defaults, delay 10 between two clusters; test accuracy and loss of the averaged
model at the end. Digits: 8 agents, 300 steps. Language model: `char-lm` (width 32, one layer, context 32) on 150 kB of
Python's own sources, 4 agents, 200 steps; a text has no labels, so iid alone. Other scales than `cpu` have fewer or
more. {num_seeds(runs["seed"].nunique())}, {SPREAD}.

{table(runs)}

{total_time(runs)}. Written by `python -m experiments.compensation --scale {scale}` ({machine()}).
"""


def table(runs: pd.DataFrame) -> str:
    """Return accuracy and loss by cell, step size and way."""
    lines = [f"| cell | eta | {' | '.join(WAYS)} |", "|---" * (2 + len(WAYS)) + "|"]
    for (cell, step_size), group in runs.groupby(["cell", "step_size"], sort=False):
        told = [own for way in WAYS for own in [group[group["way"] == way]]]
        cells = [f"{percent(own['test_accuracy'])}, {own['test_loss'].mean():.3g}" for own in told]
        lines.append(f"| {cell} | {step_size:g} | {' | '.join(cells)} |")
    return "\n".join(lines)
