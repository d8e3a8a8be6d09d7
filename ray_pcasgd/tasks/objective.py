"""Losses that are minimized, metrics that are measured, and evaluation over a data set."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from pydantic import BeforeValidator, Field
from torch import Tensor, nn

from ray_pcasgd.base.imports import is_metric
from ray_pcasgd.base.randomness import stream_seed
from ray_pcasgd.base.settings import Settings, from_name
from ray_pcasgd.tasks.drawing import seeded
from ray_pcasgd.tasks.measures import (
    Accuracy,
    CrossEntropy,
    CustomMeasure,
    MeanAbsoluteError,
    MeanSquaredError,
    Measure,
    OfLabels,
    TopAccuracy,
)
from ray_pcasgd.tasks.samples import AnySamples, MapSamples
from ray_pcasgd.tasks.tallies import Gathered, Tally
from ray_pcasgd.tasks.trees import Batch, is_pair, moved

__all__ = [
    "Accuracy",
    "CrossEntropy",
    "CustomMeasure",
    "Evaluation",
    "Loss",
    "MeanAbsoluteError",
    "MeanSquaredError",
    "Measure",
    "Metric",
    "TopAccuracy",
    "evaluate",
    "examine",
    "with_ignored",
]


def _from_function(value: Any) -> Any:
    """Return a function as settings of it."""
    if (callable(value) or is_metric(value)) and not isinstance(value, Settings):
        return {"name": "custom", "function": value}
    return from_name(value)


Loss = Annotated[
    Annotated[CrossEntropy | MeanSquaredError | CustomMeasure, Field(discriminator="name")],
    BeforeValidator(_from_function),
]
"""What is minimized, by its ``name``; from Python also a function."""

Metric = Annotated[
    Annotated[
        Accuracy | TopAccuracy | CrossEntropy | MeanSquaredError | MeanAbsoluteError | CustomMeasure,
        Field(discriminator="name"),
    ],
    BeforeValidator(_from_function),
]
"""What is reported together with the loss, by its ``name``; from Python also a function or a metric object."""


def with_ignored(metric: Metric, ignored: int | None) -> Metric:
    """Return a metric that leaves out a label, unless it says itself which one."""
    if isinstance(metric, OfLabels) and metric.ignore_index is None:
        return metric.model_copy(update={"ignore_index": ignored})
    return metric


class Evaluation(NamedTuple):
    """The figures of a model on a data set."""

    values: dict[str, float]
    """The loss under ``loss``, each metric under its key."""
    remarks: tuple[str, ...]
    """What a reader of these should know, in a line each."""


def evaluate(
    model: nn.Module,
    samples: AnySamples,
    loss: Measure,
    metrics: Sequence[Measure] = (),
    batch_size: int = 128,
    device: torch.device | str = "cpu",
    transform: Callable[[Tensor], Tensor] = lambda inputs: inputs,
) -> dict[str, float]:
    """Return the loss under ``loss`` and each metric under its key, as they are over all samples at once.

    ``transform`` makes a model's inputs of stored inputs. Runs in evaluation mode and leaves every module's mode as
    it was. How the samples are cut into batches changes no figure; 128 fit a CPU's cache, and are 2 to 3 times as fast
    as 512 there.
    """
    return examine(model, samples, loss, metrics, batch_size, device, transform).values


@torch.no_grad()
def examine(
    model: nn.Module,
    samples: AnySamples,
    loss: Measure,
    metrics: Sequence[Measure] = (),
    batch_size: int = 128,
    device: torch.device | str = "cpu",
    transform: Callable[[Tensor], Tensor] = lambda inputs: inputs,
) -> Evaluation:
    """Return what ``evaluate`` does, with remarks.

    An error of a loss or metric gets a note that names it.
    """
    gathered = Gathered()
    measures = [("task.loss", "loss", loss), *((f"task.metrics: {own.key}", own.key, own) for own in metrics)]
    tallies: list[tuple[str, str, Tally]] = []
    for setting, key, measure in measures:
        with noting(setting):
            tallies.append((setting, key, measure.tally(gathered)))
    for (inputs, targets), _ in tested_batches(model, samples, batch_size, device, transform):
        outputs = model(inputs)
        for setting, _, tally in tallies:
            with noting(setting):
                tally.add(outputs, targets)
        if gathered.is_wanted:
            gathered.add(outputs, targets)
    values = {}
    for setting, key, tally in tallies:
        with noting(setting):
            values[key] = tally.result()
    return Evaluation(values, tuple(f"{setting} {tally.remark}" for setting, _, tally in tallies if tally.remark))


def tested_batches(
    model: nn.Module,
    samples: AnySamples,
    batch_size: int,
    device: torch.device | str,
    transform: Callable[[Tensor], Tensor],
) -> Iterator[tuple[Batch, int]]:
    """Yield all samples in batches on the device, each with its number of samples; the model is in evaluation mode.

    Of pairs, the inputs are transformed.
    """
    with _evaluating(model):
        for first in range(0, len(samples), batch_size):
            indices = np.arange(first, min(first + batch_size, len(samples)))
            # Items that are random are the same in every evaluation.
            with seeded(stream_seed(0, "tested items", first)) if isinstance(samples, MapSamples) else nullcontext():
                batch = samples.take(indices)
            batch = moved(batch, torch.device(device))
            yield (transform(batch[0]), batch[1]) if is_pair(batch) else batch, len(indices)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, and every module back into its own afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        model.train(modes[0][1])  # the model's own, which may do more than to set modes
        for module, mode in modes:
            module.training = mode


@contextmanager
def noting(setting: str) -> Iterator[None]:
    """Note on whatever is raised, which may be the user's own, which setting it is about."""
    try:
        yield
    except Exception as error:
        error.add_note(setting)
        raise
