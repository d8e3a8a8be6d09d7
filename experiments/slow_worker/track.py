"""The track of one run, of any engine: steps with their times, and weights with theirs, tested afterwards."""

from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor

from ray_pcasgd.config import Config
from ray_pcasgd.records import Snapshot
from ray_pcasgd.runs.consensus import AveragedModel, average
from ray_pcasgd.tasks.task import TaskData


class Step(NamedTuple):
    """One step of a worker; ``update`` where it changed weights that are tested, which a parameter server's do."""

    agent: int
    seconds: float
    """When it ended, in seconds since the first step began."""
    duration: float
    """Seconds of its work, with those that a slow worker sleeps and without those that it waits for others."""


class Noted(NamedTuple):
    """The weights of one model at one moment."""

    agent: int
    seconds: float
    weights: Tensor


class Track(NamedTuple):
    """One run."""

    startup_seconds: float
    """From the call to the first step: processes, imports, data, model."""
    steps: list[Step]
    """Of workers: each is one mini-batch."""
    updates: list[tuple[float, float]]
    """When, and the mean training loss of its mini-batches."""
    noted: list[Noted]
    """In the order of their times, of all models whose mean is tested: one with a server, else one for each peer."""
    driver_share: float
    """CPU seconds of the driver's process over seconds of the run: it takes them from the workers."""
    cancelled: Sequence[float] = ()
    """When mini-batches were given up before they were done."""


def measured_at(track: Track, config: Config, data: TaskData, times: Sequence[float]) -> list[dict[str, float]]:
    """Return the metrics of the model that was there at each time: the mean of the newest weights of all models."""
    model = AveragedModel(config.task, data, config.seed, "cpu")
    start = torch.nn.utils.parameters_to_vector(config.task.build_model(data, config.seed).parameters()).detach()
    rows = []
    for time in times:
        newest = {note.agent: start for note in track.noted}
        newest |= {note.agent: note.weights for note in track.noted if note.seconds <= time}
        snapshots = {agent: Snapshot(weights, torch.empty(0), {}) for agent, weights in newest.items()}
        mean = average(snapshots).mean
        rows.append(
            {
                "seconds": time,
                **model.evaluate(mean),
                "updates": sum(seconds <= time for seconds, _ in track.updates),
                "batches": sum(step.seconds <= time for step in track.steps),
                "cancelled": sum(seconds <= time for seconds in track.cancelled),
            }
        )
    return rows


def seconds_to(rows: pd.DataFrame, target: float) -> float:
    """Return the mean over seeds of the first tested time with the accuracy; nan where a seed never has it."""
    reached = rows[rows["accuracy"] >= target].groupby("seed")["seconds"].min()
    return float(reached.mean()) if len(reached) == rows["seed"].nunique() else float("nan")
