"""What is minimized and what is measured: losses, metrics and evaluation over a data set."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property, partial
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import BeforeValidator, Field
from torch import Tensor, nn
from torch.nn import functional

from ray_pcasgd.randomness import stream_seed
from ray_pcasgd.settings import Settings, from_name
from ray_pcasgd.tasks.drawing import seeded
from ray_pcasgd.tasks.imports import CallableOrPath, resolve
from ray_pcasgd.tasks.samples import AnySamples, MapSamples
from ray_pcasgd.tasks.tallies import Gathered, MeanOfTerms, OfMetric, OverBatches, OverWhole, Tally, is_metric

PYTORCH_IGNORES = -100
"""The label that PyTorch's cross-entropy leaves out unless it is told otherwise."""


class Measure(Settings, ABC):
    """One number from a model's outputs and the targets: of a mini-batch, or of a whole data set."""

    name: str

    @property
    def key(self) -> str:
        """The name under which it is reported."""
        return self.name

    @abstractmethod
    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the measure of what is given, of shape ().

        Raises:
            ValueError: The shapes of outputs and targets do not belong together.

        """

    @abstractmethod
    def tally(self, gathered: Gathered) -> Tally:
        """Return what takes in a data set batch by batch, for the measure of all of it at once."""

    def weight(self, targets: Tensor) -> int:
        """Return how much a part of a batch counts, relative to the others."""
        return len(targets)


class _Mean(Measure):
    """A mean over the targets that count."""

    @abstractmethod
    def terms(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return what each target that counts contributes, of shape (m,).

        Raises:
            ValueError: as ``__call__``.

        """

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean."""
        return self.terms(outputs, targets).float().mean()

    def tally(self, gathered: Gathered) -> Tally:
        """Return what sums up the terms."""
        return MeanOfTerms(self.terms)


class _OfLabels(_Mean):
    """A mean over labels, one a sample (n,) or one a position (n, length); classes come last in outputs."""

    ignore_index: int | None = None
    """A label that does not count, as those of padded positions; not given: of a metric that of the loss, of the loss
    -100, as in PyTorch."""

    @property
    def ignored(self) -> int:
        """The label that does not count."""
        return PYTORCH_IGNORES if self.ignore_index is None else self.ignore_index

    def weight(self, targets: Tensor) -> int:
        """Return how many labels count."""
        return int((targets != self.ignored).sum())


class CrossEntropy(_OfLabels):
    """Cross-entropy in nats, of one label a sample (n,) or one a position (n, length); classes come last in outputs."""

    name: Literal["cross-entropy"] = "cross-entropy"
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of the target that is spread over all classes."""

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:  # noqa: D102
        return self._of(*_rows(outputs, targets), "mean")

    def terms(self, outputs: Tensor, targets: Tensor) -> Tensor:  # noqa: D102
        scores, labels = _rows(outputs, targets)
        return self._of(scores, labels, "none")[labels != self.ignored]

    def _of(self, scores: Tensor, labels: Tensor, reduction: str) -> Tensor:
        return functional.cross_entropy(
            scores, labels, ignore_index=self.ignored, reduction=reduction, label_smoothing=self.label_smoothing
        )


class MeanSquaredError(_Mean):
    """Mean squared difference of outputs and targets."""

    name: Literal["mse"] = "mse"

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:  # noqa: D102
        return functional.mse_loss(*_alike(outputs, targets))

    def terms(self, outputs: Tensor, targets: Tensor) -> Tensor:  # noqa: D102
        return functional.mse_loss(*_alike(outputs, targets), reduction="none")


class MeanAbsoluteError(_Mean):
    """Mean absolute difference of outputs and targets."""

    name: Literal["mae"] = "mae"

    def terms(self, outputs: Tensor, targets: Tensor) -> Tensor:  # noqa: D102
        return functional.l1_loss(*_alike(outputs, targets), reduction="none")


class Accuracy(_OfLabels):
    """Share of labels, in [0, 1], that got the highest score."""

    name: Literal["accuracy"] = "accuracy"

    def terms(self, outputs: Tensor, targets: Tensor) -> Tensor:  # noqa: D102
        scores, labels = _rows(outputs, targets)
        return (scores.argmax(-1) == labels)[labels != self.ignored]


class TopAccuracy(_OfLabels):
    """Share of labels, in [0, 1], that are among the ``k`` highest scores."""

    name: Literal["top-accuracy"] = "top-accuracy"
    k: int = Field(5, ge=1)
    """How many guesses count."""

    @property
    def key(self) -> str:
        """The name under which it is reported, ``top-5-accuracy`` for instance."""
        return f"top-{self.k}-accuracy"

    def terms(self, outputs: Tensor, targets: Tensor) -> Tensor:  # noqa: D102
        scores, labels = _rows(outputs, targets)
        best = scores.topk(min(self.k, scores.shape[-1])).indices
        return (best == labels[:, None]).any(-1)[labels != self.ignored]


class CustomMeasure(Measure):
    """The user's own loss or metric: a function, or a metric that takes in batches by itself, as torchmetrics' do."""

    name: Literal["custom"] = "custom"
    function: CallableOrPath
    """``(outputs, targets) -> number``; a metric with ``update``, ``compute`` and ``reset``; a class of either; or the
    import path ``module:attribute`` of one. As a loss it is called with each mini-batch, or with the pieces of one
    (``micro_batches``), whose values are averaged by numbers of samples."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments: of the class where ``function`` is one, else of each call."""
    over: Literal["whole", "batches"] = "whole"
    """What a function is evaluated over: the outputs and targets of the ``whole`` test set at once, which root mean
    squares, F1 or AUC need; or each of its ``batches``, and the mean of these by numbers of samples is reported: for
    means over samples whose outputs take too much memory."""
    label: str | None = Field(None, min_length=1)
    """The name under which it is reported; not given: the function's own."""

    @property
    def key(self) -> str:
        """The name under which it is reported."""
        function = resolve(self.function)
        return self.label or str(getattr(function, "__name__", type(function).__name__))

    def __call__(self, outputs: Any, targets: Any) -> Tensor:  # noqa: D102
        if is_metric(self.made):
            metric = OfMetric(self.made)
            metric.add(outputs, targets)
            return torch.tensor(metric.result())
        return torch.as_tensor(self.made(outputs, targets))

    def tally(self, gathered: Gathered) -> Tally:  # noqa: D102
        if is_metric(self.made):
            return OfMetric(self.made)
        return OverBatches(self.made) if self.over == "batches" else OverWhole(self.made, gathered)

    @cached_property
    def made(self) -> Any:
        """What is called: the function, or an object of the class that was given."""
        function = resolve(self.function)
        if isinstance(function, type):
            return function(**self.arguments)
        if self.arguments and is_metric(function):
            raise ValueError(f"arguments = {self.arguments}: the metric is made already; allowed is none")
        return partial(function, **self.arguments) if self.arguments else function


def _from_function(value: Any) -> Any:
    """Return a function as settings of it."""
    if callable(value) and not isinstance(value, Settings):
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


def _rows(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return scores (m, classes) and labels (m,), whether there is one label a sample or one a position."""
    if outputs.shape[:-1] != targets.shape or targets.is_floating_point():
        raise ValueError(
            f"outputs of shape {tuple(outputs.shape)}, {targets.dtype} targets of shape {tuple(targets.shape)}: "
            "allowed are integer labels, and outputs with one more dimension, the classes, at the end"
        )
    return outputs.reshape(-1, outputs.shape[-1]), targets.reshape(-1)


def _alike(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return outputs in the shape of the targets: (n, 1) beside (n,) would broadcast to (n, n) unnoticed."""
    if outputs.shape[0] != targets.shape[0] or outputs.numel() != targets.numel():
        raise ValueError(
            f"outputs of shape {tuple(outputs.shape)}, targets of shape {tuple(targets.shape)}: "
            "allowed are equally many numbers"
        )
    return outputs.reshape(targets.shape), targets


def with_ignored(metric: Metric, ignored: int | None) -> Metric:
    """Return a metric that leaves out a label, unless it says itself which one."""
    if isinstance(metric, _OfLabels) and metric.ignore_index is None:
        return metric.model_copy(update={"ignore_index": ignored})
    return metric


class Evaluation(NamedTuple):
    """What a model was measured to be on a data set."""

    values: dict[str, float]
    """The loss under ``loss``, each metric under its key."""
    remarks: tuple[str, ...]
    """What somebody who reads these should know, in a line each."""


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
        with _noting(setting):
            tallies.append((setting, key, measure.tally(gathered)))
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        for first in range(0, len(samples), batch_size):
            # Items that are random are the same in every evaluation.
            with seeded(stream_seed(0, "tested items", first)) if isinstance(samples, MapSamples) else nullcontext():
                inputs, targets = samples.take(np.arange(first, min(first + batch_size, len(samples))))
            outputs = model(transform(inputs.to(device)))
            targets = targets.to(device)
            for setting, _, tally in tallies:
                with _noting(setting):
                    tally.add(outputs, targets)
            if gathered.is_wanted:
                gathered.add(outputs, targets)
    finally:
        model.train(modes[0][1])  # the model's own, which may do more than to set modes
        for module, mode in modes:
            module.training = mode
    values = {}
    for setting, key, tally in tallies:
        with _noting(setting):
            values[key] = tally.result()
    return Evaluation(values, tuple(f"{setting} {tally.remark}" for setting, _, tally in tallies if tally.remark))


@contextmanager
def _noting(setting: str) -> Iterator[None]:
    """Note on whatever is raised, which may be the user's own, which setting it is about."""
    try:
        yield
    except Exception as error:
        error.add_note(setting)
        raise
