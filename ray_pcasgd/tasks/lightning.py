"""Steps of a ``LightningModule`` as this package's: what they log are figures, and no Trainer is needed for it."""

import copy
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ray_pcasgd.base.imports import is_metric
from ray_pcasgd.tasks.trees import Batch

BATCH_NUMBER = 0
"""The ``batch_idx`` that every step is told: batches have no number here."""


def training_step(model: Any, batch: Batch) -> tuple[Any, dict[str, Any]]:
    """Return the loss of a module's ``training_step``, and the numbers that it logged."""
    return _figures(model, model.training_step, batch)


def validation_step(model: Any, batch: Batch) -> tuple[Any, dict[str, Any]]:
    """Return the loss of a module's ``validation_step``, and what it logged.

    **Choice**: where the step returns nothing, the loss is the one logged value whose name ends in ``loss``.

    Raises:
        ValueError: there are several such values, or none.

    """
    loss, logged = _figures(model, model.validation_step, batch)
    if loss is not None:
        return loss, logged
    losses = [name for name in logged if name.endswith("loss")]
    if len(losses) != 1:
        found = ", ".join(losses) or "none"
        raise ValueError(
            f"validation_step returns no loss, and logs {found} whose name ends in loss; allowed is one of either"
        )
    return logged.pop(losses[0]), logged


class MergedMetric:
    """A metric of torchmetrics that a step logs, over all batches: each batch's state is taken into one."""

    def __init__(self) -> None:
        self._whole: Any = None

    def update(self, metric: Any) -> None:
        """Take in the metric of one batch."""
        if self._whole is None:
            self._whole = metric
        else:
            self._whole.merge_state(metric)

    def compute(self) -> Any:
        """Return what the metric is of all batches."""
        return self._whole.compute()

    def reset(self) -> None:
        """Forget all batches."""
        self._whole = None


def _figures(model: Any, step: Any, batch: Batch) -> tuple[Any, dict[str, Any]]:
    """Return what a step returned for a loss, or None, and what it logged."""
    # What the metrics within hold of other batches would count again, or grow without end.
    for part in model.modules():
        if is_metric(part):
            part.reset()
    with _logging(model) as logged:
        returned = step(batch, BATCH_NUMBER) if len(inspect.signature(step).parameters) > 1 else step(batch)
    loss = returned.get("loss") if isinstance(returned, Mapping) else returned
    return loss, {name: value for name, value in logged.items() if name != "loss"}


@contextmanager
def _logging(model: Any) -> Iterator[dict[str, Any]]:
    """Let the module's ``log`` and ``log_dict`` fill a mapping: without a Trainer they would do nothing but warn."""
    logged: dict[str, Any] = {}

    def log(name: str, value: Any, *settings: Any, **more: Any) -> None:
        logged[name] = (copy.deepcopy(value),) if is_metric(value) else value

    model.log = log
    try:
        yield logged
    finally:
        del model.log
