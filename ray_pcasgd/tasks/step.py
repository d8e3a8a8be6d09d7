"""Losses and figures that are not a loss function's of outputs and targets: a user's step, or the model's own loss."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ray_pcasgd.tasks.measures import Measure
from ray_pcasgd.tasks.objective import Evaluation, noting, tested_batches
from ray_pcasgd.tasks.samples import AnySamples
from ray_pcasgd.tasks.tallies import Gathered, Tally, number
from ray_pcasgd.tasks.trees import Batch, form_of

Step = Callable[[Any, Batch], Any]
"""``(model, batch) -> loss``, or ``(loss, {name: value})``."""


class Figures(NamedTuple):
    """What a step returned."""

    loss: Any
    values: dict[str, Any]
    """Numbers, or tuples of what the metric of that name takes in."""


def figures_of(returned: Any) -> Figures:
    """Return a step's loss and its other values."""
    if isinstance(returned, tuple | list) and len(returned) == 2 and isinstance(returned[1], Mapping):
        return Figures(returned[0], dict(returned[1]))
    return Figures(returned, {})


def loss_of(step: Step, model: Any, batch: Batch) -> Tensor:
    """Return a step's loss for training, of shape ().

    Raises:
        ValueError: it is no tensor of one number.

    """
    loss = figures_of(step(model, batch)).loss
    if not isinstance(loss, Tensor):
        raise ValueError(
            f"returns a {type(loss).__name__} for a loss; allowed is a tensor of one number, or a tuple of it and a "
            "dict of metrics"
        )
    if loss.numel() != 1:
        raise ValueError(f"returns a loss of shape {tuple(loss.shape)}; allowed is a tensor of one number")
    return loss.reshape(())


def called(model: Any, batch: Batch) -> Any:
    """Return a model's outputs: of a mapping as keyword arguments, of a tuple or list as positional ones."""
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, tuple | list) else model(batch)


def step_of_model(model: Any, batch: Batch, metrics: Sequence[str] = ()) -> Figures:
    """Return the loss that a model computes itself, as Hugging Face's do; metrics take its logits and the labels.

    Raises:
        ValueError: it computes none.

    """
    outputs = called(model, batch)
    loss = getattr(outputs, "loss", None)
    if loss is None:
        raise ValueError(
            f"returns a {type(outputs).__name__} without a loss for {form_of(batch)}; allowed there are outputs with a "
            ".loss, as Hugging Face's models give where the batch has labels, or a task.step"
        )
    if not metrics:
        return Figures(loss, {})
    logits, labels = getattr(outputs, "logits", None), batch.get("labels") if isinstance(batch, Mapping) else None
    if logits is None or labels is None:
        what = "outputs have no .logits" if logits is None else "batches have no labels"
        raise ValueError(f"{what}, which task.metrics need; allowed without them is task.evaluate")
    return Figures(loss, dict.fromkeys(metrics, (logits, labels)))


def loss_with(
    loss: Callable[[Any, Batch], Tensor], model: nn.Module, tensors: dict[str, Tensor], batch: Batch
) -> Tensor:
    """Return ``loss(model, batch)`` with other tensors in the place of the model's own."""
    own = {f"model.{name}": tensor for name, tensor in tensors.items()}
    result: Tensor = torch.func.functional_call(_Trained(loss, model), own, (batch,))
    return result


class _Trained(nn.Module):
    """A model together with its loss: what torch can call with other tensors than the model's own."""

    def __init__(self, loss: Callable[[Any, Batch], Tensor], model: nn.Module) -> None:
        super().__init__()
        self.loss = loss
        self.model = model

    def forward(self, batch: Batch) -> Tensor:
        return self.loss(self.model, batch)


@torch.no_grad()
def examine_by(
    step: Step,
    setting: str,
    model: nn.Module,
    samples: AnySamples,
    metrics: Sequence[Measure],
    batch_size: int,
    device: torch.device | str,
    transform: Callable[[Tensor], Tensor],
) -> Evaluation:
    """Return what a step's values are over all samples.

    Its loss and other numbers are averaged by numbers of samples; a tuple goes into the metric of that name. An error
    gets a note that names ``setting`` or the metric.
    """
    gathered = {metric.key: Gathered() for metric in metrics}
    tallies: dict[str, Tally] = {}
    for metric in metrics:
        with noting(f"task.metrics: {metric.key}"):
            tallies[metric.key] = metric.tally(gathered[metric.key])
    means: dict[str, _Mean] = {}
    names: dict[str, None] = {"loss": None}
    for batch, count in tested_batches(model, samples, batch_size, device, transform):
        with noting(setting):
            loss, values = figures_of(step(model, batch))
            _check_names(values, tallies)
            names |= dict.fromkeys(values)
            for name, value in {"loss": loss, **values}.items():
                if name not in tallies:
                    means.setdefault(name, _Mean()).add(name, value, count)
        for name in tallies:
            with noting(f"task.metrics: {name}"):
                tallies[name].add(*values[name])
                if gathered[name].is_wanted:
                    gathered[name].add(*values[name])
    results = {name: mean.result() for name, mean in means.items()}
    for name, tally in tallies.items():
        with noting(f"task.metrics: {name}"):
            results[name] = tally.result()
    remarks = tuple(f"task.metrics: {name} {tally.remark}" for name, tally in tallies.items() if tally.remark)
    return Evaluation({name: results[name] for name in names}, remarks)


class _Mean:
    """A mean by numbers of samples."""

    def __init__(self) -> None:
        self._total = 0.0
        self._number = 0

    def add(self, name: str, value: Any, count: int) -> None:
        try:
            self._total += number(value) * count
        except ValueError as error:
            raise ValueError(f"{name} {error}") from None
        self._number += count

    def result(self) -> float:
        return self._total / self._number


def _check_names(values: Mapping[str, Any], metrics: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` where values do not go together with metrics."""
    for name in metrics:
        if name not in values:
            raise ValueError(f"returns no {name!r}; allowed is a tuple of what that metric of task.metrics takes in")
        if not isinstance(values[name], tuple | list):
            kind = type(values[name]).__name__
            raise ValueError(
                f"returns a {kind} for {name!r}; allowed is a tuple of what that metric of task.metrics takes in"
            )
    for name, value in values.items():
        if not isinstance(name, str) or not name or name == "loss":
            raise ValueError(f"names a value {name!r}; allowed are words other than 'loss'")
        if isinstance(value, tuple | list) and name not in metrics:
            known = ", ".join(metrics) or "none"
            raise ValueError(
                f"returns a {type(value).__name__} for {name!r}; allowed are numbers, and tuples for the metrics of "
                f"task.metrics: {known}"
            )
