"""The study's page, written from what was measured."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.late_methods import spread
from experiments.studies import machine, num_seeds, percent, total_time
from ray_pcasgd.base.text import SPREAD


def write_page(settings: Mapping[str, Any], output: Path, scale: str) -> None:
    """Write ``RESULTS.md``."""
    runs = pd.read_parquet(output / "results.parquet")
    (output / "RESULTS.md").write_text(page(runs, settings, scale), encoding="utf-8")


def page(runs: pd.DataFrame, settings: Mapping[str, Any], scale: str) -> str:
    """Return the page as Markdown."""
    sections = [f"## {task}\n\n{said(own, settings)}\n\n{table(own)}" for task, own in runs.groupby("task", sort=False)]
    return f"""# Local steps, with messages that come late

Agents take H mini-batches from one message to the next. Half of the others are in another cluster, from which messages
come so many *rounds* of H steps late: a step takes a second, and the link so many times H. Who waits for them loses
that time (`seconds`), who does not reads what is old. All take equally many mini-batches. `overlap: false` throughout,
but for the one that reads behind its round: agents read first, then step. {num_seeds(runs["seed"].nunique())}; of
several, {SPREAD}.

{chr(10).join(sections)}

"not finite": the loss of some agent was no number, or too large for one. Where 5 rounds of 50 steps are as long as the
run or longer, nothing late is ever read. {total_time(runs)}.
Written by `python -m experiments.local_steps --scale {scale}` ({machine()}).
"""


def said(runs: pd.DataFrame, settings: Mapping[str, Any]) -> str:
    """Return a task's settings in words, and what its figures are."""
    task = runs["task"].iloc[0]
    config = settings["tasks"][task]["config"]
    measure = "perplexity" if _is_language(runs) else "accuracy"
    optimizer = config.get("optimizer", {}).get("name", "sgd")
    besides = "" if _is_language(runs) else ", and in brackets the mean of the agents'"
    return (
        f"{config['num_agents']} agents, {config['num_steps']} steps, {optimizer}. Test {measure} of the averaged model"
        f"{besides}; `MB`: what an agent sends in all."
    )


def _is_language(runs: pd.DataFrame) -> bool:
    return "test_perplexity" in runs and bool(runs["test_perplexity"].notna().any())


def table(runs: pd.DataFrame) -> str:
    """Return the figures by method, a column for each delay."""
    late = list(runs["rounds late"].unique())
    head = ["shards", "H", "method", *(f"{rounds} rounds late" for rounds in late), "seconds, latest", "MB"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for (shards, local_steps, method), group in runs.groupby(["shards", "H", "method"], sort=False):
        cells = [_cell(group[group["rounds late"] == rounds], _is_language(runs)) for rounds in late]
        latest = group[group["rounds late"] == late[-1]]
        has_ended = not latest["seconds"].isna().any()
        cells += [f"{latest['seconds'].mean():.0f}", f"{latest['megabytes'].mean():.3g}"] if has_ended else ["-", "-"]
        lines.append(f"| {shards} | {local_steps} | {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(runs: pd.DataFrame, is_language: bool) -> str:
    if runs["test_perplexity" if is_language else "test_loss"].isna().any():
        return "not finite"
    if is_language:
        return spread(runs["test_perplexity"])
    return f"{percent(runs['test_accuracy'])} ({percent(runs['agents_mean_test_accuracy'])})"
