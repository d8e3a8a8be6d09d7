"""The study's page, written from what was measured."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.returning.agents import WAYS
from experiments.returning.study import STAYED
from experiments.studies import machine, num_seeds
from ray_pcasgd.base.text import SPREAD
from ray_pcasgd.runs.settings.loading import load_config

MEANINGS = {**WAYS, STAYED: "the agent was never away"}


def write_page(settings: Mapping[str, Any], output: Path, scale: str) -> None:
    """Write ``RESULTS.md``."""
    runs = pd.read_parquet(output / "results.parquet")
    (output / "RESULTS.md").write_text(page(runs, settings, scale), encoding="utf-8")


def page(runs: pd.DataFrame, settings: Mapping[str, Any], scale: str) -> str:
    """Return the page as Markdown."""
    config = load_config(settings["config"])
    tables = [f"## {name}\n\n{table(own)}" for name, own in runs.groupby("optimizer", sort=False)]
    return (
        f"""# What an optimizer remembers when its agent comes back

{config.num_agents} agents in two clusters, 10 steps apart, learn handwritten digits by PC-ASGD.
Agent 0 is away from its step {settings["leaves_at"]} to {settings["returns_at"]}, and comes back as the mean of its
neighbors' weights, as agents of live runs do. Its optimizer goes on with what the table says. The figures are agent 0's
own test loss and accuracy so many steps later; {num_seeds(runs["seed"].nunique())}, {SPREAD}.

"""
        + "\n\n".join(tables)
        + f"""

Written by `python -m experiments.returning --scale {scale}` ({machine()}).
"""
    )


def table(runs: pd.DataFrame) -> str:
    """Return loss and accuracy by what the optimizer went on with, and steps since the return."""
    points = sorted(set(runs["after"]))
    lines = [
        "| the optimizer's memory | " + " | ".join(f"{after} steps" for after in points) + " |",
        "|---" * (len(points) + 1) + "|",
    ]
    for way, own in runs.groupby("way", sort=False):
        cells = [cell(own[own["after"] == after]) for after in points]
        lines.append(f"| {MEANINGS[way]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell(runs: pd.DataFrame) -> str:
    """Return mean loss and accuracy, with the sample deviations where there are several seeds."""
    loss, accuracy = runs["loss"], 100 * runs["accuracy"]
    several = len(runs) > 1
    spread = (f" ± {loss.std():.2g}", f" ± {accuracy.std():.1f}") if several else ("", "")
    return f"{loss.mean():.3f}{spread[0]}, {accuracy.mean():.1f}{spread[1]} %"
