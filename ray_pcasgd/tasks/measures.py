"""Losses and metrics: numbers from a model's outputs and the targets."""

from abc import ABC, abstractmethod
from functools import cached_property, partial
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from ray_pcasgd.base.imports import CallableOrPath, import_object, is_metric
from ray_pcasgd.base.settings import Settings
from ray_pcasgd.tasks.tallies import Gathered, MeanOfTerms, OfMetric, OverBatches, OverWhole, Tally

PYTORCH_IGNORES = -100
"""The label that PyTorch's cross-entropy leaves out unless it is told otherwise."""


class Measure(Settings, ABC):
    """One number from a model's outputs and the targets: of a mini-batch, or of a whole data set."""

    name: str

    @property
    def key(self) -> str:
        """The name under which it is reported."""
        return self.name

    @property
    def higher_is_better(self) -> bool | None:
        """Whether more of it is better; None where that is not known."""
        return False

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


class Mean(Measure):
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


class OfLabels(Mean):
    """A mean over labels, one a sample (n,) or one a position (n, length); classes come last in outputs."""

    ignore_index: int | None = None
    """A label that does not count, such as that of padded positions; not given: for the loss -100, as in PyTorch, and
    for a metric the same as for the loss."""

    @property
    def ignored(self) -> int:
        """The label that does not count."""
        return PYTORCH_IGNORES if self.ignore_index is None else self.ignore_index

    def weight(self, targets: Tensor) -> int:
        """Return how many labels count."""
        return int((targets != self.ignored).sum())


class CrossEntropy(OfLabels):
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


class MeanSquaredError(Mean):
    """Mean squared difference of outputs and targets."""

    name: Literal["mse"] = "mse"

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:  # noqa: D102
        return functional.mse_loss(*_alike(outputs, targets))

    def terms(self, outputs: Tensor, targets: Tensor) -> Tensor:  # noqa: D102
        return functional.mse_loss(*_alike(outputs, targets), reduction="none")


class MeanAbsoluteError(Mean):
    """Mean absolute difference of outputs and targets."""

    name: Literal["mae"] = "mae"

    def terms(self, outputs: Tensor, targets: Tensor) -> Tensor:  # noqa: D102
        return functional.l1_loss(*_alike(outputs, targets), reduction="none")


class Accuracy(OfLabels):
    """Share of labels, in [0, 1], that got the highest score."""

    name: Literal["accuracy"] = "accuracy"

    @property
    def higher_is_better(self) -> bool | None:
        """Whether more of it is better."""
        return True

    def terms(self, outputs: Tensor, targets: Tensor) -> Tensor:  # noqa: D102
        scores, labels = _rows(outputs, targets)
        return (scores.argmax(-1) == labels)[labels != self.ignored]


class TopAccuracy(OfLabels):
    """Share of labels, in [0, 1], that are among the ``k`` highest scores."""

    name: Literal["top-accuracy"] = "top-accuracy"
    k: int = Field(5, ge=1)
    """How many guesses count."""

    @property
    def key(self) -> str:
        """The name under which it is reported, ``top-5-accuracy`` for instance."""
        return f"top-{self.k}-accuracy"

    @property
    def higher_is_better(self) -> bool | None:
        """Whether more of it is better."""
        return True

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
        function = import_object(self.function)
        return self.label or str(getattr(function, "__name__", type(function).__name__))

    @property
    def higher_is_better(self) -> bool | None:
        """Whether more of it is better, where it says so itself, as torchmetrics' do."""
        try:
            value = getattr(self.made, "higher_is_better", None)
        except Exception:  # whatever the user's class raises is said where it is tried out
            return None
        return value if isinstance(value, bool) else None

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

    def __getstate__(self) -> dict[Any, Any]:
        # What is made of the settings is made anew elsewhere.
        state = super().__getstate__()
        fields = type(self).model_fields
        return {**state, "__dict__": {key: value for key, value in state["__dict__"].items() if key in fields}}

    @cached_property
    def made(self) -> Any:
        """What is called: the function, or an object of the class that was given."""
        function = import_object(self.function)
        if isinstance(function, type):
            return function(**self.arguments)
        if self.arguments and is_metric(function):
            raise ValueError(f"arguments = {self.arguments}: the metric is made already; allowed are no arguments")
        return partial(function, **self.arguments) if self.arguments else function


def _rows(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return scores (m, classes) and labels (m,), whether there is one label a sample or one a position."""
    if outputs.shape[:-1] != targets.shape or targets.is_floating_point():
        raise ValueError(
            f"outputs of shape {tuple(outputs.shape)}, {targets.dtype} targets of shape {tuple(targets.shape)}: "
            "allowed are integer labels, and outputs with one more dimension, the classes, at the end"
        )
    return outputs.reshape(-1, outputs.shape[-1]), targets.reshape(-1)


def _alike(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return outputs in the shape of the targets: (n, 1) together with (n,) would broadcast to (n, n) unnoticed."""
    if outputs.shape[0] != targets.shape[0] or outputs.numel() != targets.numel():
        raise ValueError(
            f"outputs of shape {tuple(outputs.shape)}, targets of shape {tuple(targets.shape)}: "
            "allowed are equally many numbers"
        )
    return outputs.reshape(targets.shape), targets
