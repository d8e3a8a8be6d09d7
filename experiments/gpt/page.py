"""The study's page, written from what was measured."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.gpt.text import CONTEXT, EVERY, PACKAGES, files, gpt, test, train
from experiments.late_methods import spread
from experiments.studies import machine, num_seeds, total_time
from ray_pcasgd.base.text import SPREAD
from ray_pcasgd.runs.settings.loading import load_config
from ray_pcasgd.tasks.models import num_parameters


def write_page(settings: Mapping[str, Any], output: Path, scale: str) -> None:
    """Write ``RESULTS.md``."""
    runs = pd.read_parquet(output / "results.parquet")
    (output / "RESULTS.md").write_text(page(runs, settings, scale), encoding="utf-8")


def page(runs: pd.DataFrame, settings: Mapping[str, Any], scale: str) -> str:
    """Return the page as Markdown."""
    config = load_config(settings["config"])
    arguments = settings["config"]["task"]["model"]["arguments"]
    peak, end = (getattr(config.step_size, name) for name in ("start", "end"))
    seen = config.num_agents * config.batch_size * config.num_steps * CONTEXT
    size = num_parameters(gpt(**arguments))
    return f"""# A GPT, with weights that come late

{config.num_agents} agents in {config.clusters} clusters train a GPT-2 of `transformers` on bytes:
{arguments["layers"]} layers of width {arguments["width"]}, {size:,} parameters.
The text is the sources of {len(PACKAGES)} of Python's own packages,
{len(files())} files cut into windows of {CONTEXT} bytes, {len(train()):,} to train on, and {len(test()):,} of every
{EVERY}th file to test on. What comes from the other cluster is {config.links[0].delay.value:g} steps late.

AdamW, with weight decay 0.1 of matrices alone; step sizes up over {config.warmup_steps} steps, and down along a cosine
from {peak:g} to {end:g}, the same for all methods and searched for by none; gradients clipped to a norm of 1.
{config.num_steps} steps with batches of {config.batch_size}: all agents together see {seen / 1e6:.2g} MB of text.
{num_seeds(runs["seed"].nunique())}.

{table(runs)}

In the table, {SPREAD}, where there are several. Loss and perplexity are the averaged
model's, over all windows of the test files; guessing has a perplexity of 256. So short a run of so small a model
compares methods with each other, and says nothing of larger ones.

{total_time(runs)}, several at a time.
Written by `python -m experiments.gpt --scale {scale}` ({machine()}). The model's size is
`task.model.arguments` in `study.yaml`; `paper/RESULTS.md` has 10.7 million parameters, on a GPU.
"""


def table(runs: pd.DataFrame) -> str:
    """Return mean and deviation over seeds by method."""
    lines = [
        "| method | test loss | perplexity | loss, agents' mean | consensus distance |",
        "|---|---|---|---|---|",
    ]
    columns = ("test_loss", "test_perplexity", "agents_mean_test_loss", "consensus_distance")
    for method, group in runs.groupby("method", sort=False):
        cells = [spread(group[column]) for column in columns]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)
