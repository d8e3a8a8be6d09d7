"""What is minimized and what is measured: losses, metrics and evaluation over a data set."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BeforeValidator, Field
from torch import Tensor, nn
from torch.nn import functional

from ray_pcasgd.settings import Settings, from_name
from ray_pcasgd.tasks.imports import CallableOrPath, resolve
from ray_pcasgd.tasks.samples import AnySamples


class Measure(Settings, ABC):
    """A mean over a batch, from a model's outputs and the targets."""

    name: str

    @property
    def key(self) -> str:
        """The name under which it is reported."""
        return self.name

    @abstractmethod
    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean over the batch, of shape ().

        Raises:
            ValueError: The shapes of outputs and targets do not belong together.

        """


class CrossEntropy(Measure):
    """Cross-entropy in nats, of one label a sample (n,) or one a position (n, length); classes come last in outputs."""

    name: Literal["cross-entropy"] = "cross-entropy"
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of the target that is spread over all classes."""

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:  # noqa: D102
        scores, labels = _rows(outputs, targets)
        return functional.cross_entropy(scores, labels, label_smoothing=self.label_smoothing)


class MeanSquaredError(Measure):
    """Mean squared difference of outputs and targets."""

    name: Literal["mse"] = "mse"

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:  # noqa: D102
        return functional.mse_loss(*_alike(outputs, targets))


class MeanAbsoluteError(Measure):
    """Mean absolute difference of outputs and targets."""

    name: Literal["mae"] = "mae"

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:  # noqa: D102
        return functional.l1_loss(*_alike(outputs, targets))


class Accuracy(Measure):
    """Share of labels, in [0, 1], that got the highest score."""

    name: Literal["accuracy"] = "accuracy"

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:  # noqa: D102
        scores, labels = _rows(outputs, targets)
        return (scores.argmax(-1) == labels).float().mean()


class TopAccuracy(Measure):
    """Share of labels, in [0, 1], that are among the ``k`` highest scores."""

    name: Literal["top-accuracy"] = "top-accuracy"
    k: int = Field(5, ge=1)
    """How many guesses count."""

    @property
    def key(self) -> str:
        """The name under which it is reported, ``top-5-accuracy`` for instance."""
        return f"top-{self.k}-accuracy"

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:  # noqa: D102
        scores, labels = _rows(outputs, targets)
        best = scores.topk(min(self.k, scores.shape[-1])).indices
        return (best == labels[:, None]).any(-1).float().mean()


class CustomMeasure(Measure):
    """The user's own loss or metric."""

    name: Literal["custom"] = "custom"
    function: CallableOrPath
    """``(outputs, targets) -> scalar tensor``, the mean over the batch, or its import path ``module:attribute``."""

    @property
    def key(self) -> str:
        """The name under which it is reported: the function's own."""
        function = resolve(self.function)
        return str(getattr(function, "__name__", type(function).__name__))

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:  # noqa: D102
        result: Tensor = resolve(self.function)(outputs, targets)
        return result


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
"""What is reported beside the loss, by its ``name``; from Python also a function."""


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


@torch.no_grad()
def evaluate(
    model: nn.Module,
    samples: AnySamples,
    loss: Measure,
    metrics: Sequence[Measure] = (),
    batch_size: int = 128,
    device: torch.device | str = "cpu",
    transform: Callable[[Tensor], Tensor] = lambda inputs: inputs,
) -> dict[str, float]:
    """Return the means over all samples: of the loss under ``loss``, of each metric under its key.

    ``transform`` makes a model's inputs of stored inputs. Runs in evaluation mode and leaves every module's mode as
    it was. A batch counts by its number of samples; 128 fit a CPU's cache, and are 2 to 3 times as fast as 512 there.
    """
    measures = [("loss", loss), *((metric.key, metric) for metric in metrics)]
    totals = dict.fromkeys((key for key, _ in measures), 0.0)
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        for first in range(0, len(samples), batch_size):
            chosen = np.arange(first, min(first + batch_size, len(samples)))
            inputs, targets = samples.take(chosen)
            outputs = model(transform(inputs.to(device)))
            targets = targets.to(device)
            for key, measure in measures:
                totals[key] += measure(outputs, targets).item() * len(chosen)
    finally:
        model.train(modes[0][1])  # the model's own, which may do more than to set modes
        for module, mode in modes:
            module.training = mode
    return {key: total / len(samples) for key, total in totals.items()}
