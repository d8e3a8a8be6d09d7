"""The study's page, written from what was measured."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.late_methods import spread
from experiments.resnet18.network import cifar_resnet18
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
    images = config.num_agents * config.batch_size * config.num_steps
    return f"""# ResNet-18, with weights that come late

{config.num_agents} agents in {config.clusters} clusters train torchvision's ResNet-18,
with a first convolution of 3x3 and no pooling after it, as is usual for 32 x 32 pixels:
{num_parameters(cifar_resnet18()):,} parameters. The data are CIFAR-10, re-encoded as JPEG.
What comes from the other cluster is {config.links[0].delay.value:g} steps late.

SGD with momentum 0.9 and weight decay 5e-4; step sizes up over {config.warmup_steps} steps
to {config.step_size.start:g}, and down along a cosine,
the same for all methods and searched for by none; images cropped and flipped at random.
{config.num_steps} steps with batches of {config.batch_size}: all agents together see {images:,} images.
{num_seeds(runs["seed"].nunique())}.

{table(runs)}

In the table, {SPREAD}, where there are several. Loss and accuracy are the averaged model's. So short a run compares
methods with each other, and says nothing of what the network comes to in the usual 200 epochs.

{total_time(runs)}, several at a time.
Written by `python -m experiments.resnet18 --scale {scale}` ({machine()}). `paper/RESULTS.md` has
batches of 128, on a GPU.
"""


def table(runs: pd.DataFrame) -> str:
    """Return mean and deviation over seeds by method."""
    lines = [
        "| method | test accuracy | test loss | accuracy, agents' mean | consensus distance |",
        "|---|---|---|---|---|",
    ]
    columns = ("test_accuracy", "test_loss", "agents_mean_test_accuracy", "consensus_distance")
    for method, group in runs.groupby("method", sort=False):
        lines.append(f"| {method} | {' | '.join(spread(group[column]) for column in columns)} |")
    return "\n".join(lines)
