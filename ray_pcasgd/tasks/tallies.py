"""From batches to one figure of a whole data set: sums that are exact, or all outputs at once."""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as trees

GATHERED_BYTES = 2**30
"""Where the outputs and targets that are kept for a figure take more, the run says so."""


class Gathered:
    """The outputs and targets of all batches, kept on the CPU for the figures that need them at once."""

    def __init__(self) -> None:
        self.is_wanted = False
        """Whether a figure needs them."""
        self.num_bytes = 0
        self._parts: list[Any] = []
        self._whole: Any = None

    def add(self, *values: Any) -> None:
        """Keep a batch's outputs and targets, or what else there is: tensors, or nested tuples and mappings of them."""
        part = trees.tree_map(_on_cpu, values)
        self.num_bytes += sum(leaf.nbytes for leaf in trees.tree_leaves(part) if isinstance(leaf, Tensor))
        self._parts.append(part)

    def whole(self) -> tuple[Any, ...] | None:
        """Return all outputs and all targets, or what else was kept; None where there was no batch.

        Raises:
            ValueError: The batches' outputs or targets do not fit together.

        """
        if self._parts:
            try:
                self._whole = trees.tree_map(lambda *leaves: torch.cat(leaves), *self._parts)
            except (RuntimeError, TypeError, ValueError) as error:
                raise ValueError(
                    f"the batches' outputs and targets do not make one whole ({str(error).splitlines()[0]}); allowed "
                    "where they do not is over = 'batches'"
                ) from error
            self._parts = []
        whole: tuple[Any, ...] | None = self._whole
        return whole


class Tally(ABC):
    """Takes in a data set batch by batch, and says what a measure is over all of it."""

    remark: str | None = None
    """What a reader of the figure should know, once there is a figure."""

    @abstractmethod
    def add(self, *values: Any) -> None:
        """Take in one batch: its outputs and targets, or what else the measure is of."""

    @abstractmethod
    def result(self) -> float:
        """Return the figure; NaN where no target was measured."""


class MeanOfTerms(Tally):
    """The mean over all targets that count, whatever batches they come in; summed in float64."""

    def __init__(self, terms: Callable[..., Tensor]) -> None:
        self._terms = terms
        self._total = 0.0
        self._number = 0

    def add(self, *values: Tensor) -> None:
        """Take in one batch."""
        terms = self._terms(*values)
        self._total += terms.sum(dtype=torch.float64).item()
        self._number += terms.numel()

    def result(self) -> float:
        """Return the mean."""
        if self._number:
            return self._total / self._number
        self.remark = "is not a number, since no test target counts"
        return math.nan


class OverWhole(Tally):
    """A function of all outputs and targets at once."""

    def __init__(self, function: Callable[[Any, Any], Any], gathered: Gathered) -> None:
        self._function = function
        self._gathered = gathered
        gathered.is_wanted = True

    def add(self, *values: Any) -> None:
        """Leave the batch to what gathers them."""

    def result(self) -> float:
        """Return the function's value."""
        whole = self._gathered.whole()
        if self._gathered.num_bytes > GATHERED_BYTES:
            size = self._gathered.num_bytes / 2**30
            self.remark = (
                f"needs the outputs of all test samples at once, {size:.1f} GiB in each process that tests; "
                "over = 'batches' takes a mean over batches instead"
            )
        return math.nan if whole is None else number(self._function(*whole))


class OverBatches(Tally):
    """The mean of a function over batches, each by its number of samples."""

    def __init__(self, function: Callable[[Any, Any], Any]) -> None:
        self._function = function
        self._total = 0.0
        self._number = 0

    def add(self, *values: Any) -> None:
        """Take in one batch."""
        size = len(trees.tree_leaves(values[-1])[0])
        self._total += number(self._function(*values)) * size
        self._number += size

    def result(self) -> float:
        """Return the mean."""
        return self._total / self._number if self._number else math.nan


class OfMetric(Tally):
    """A metric that takes in batches by itself, as torchmetrics' do: ``update``, ``compute``, ``reset``."""

    def __init__(self, metric: Any) -> None:
        # A copy, since what it has taken in is its own, and the user's object may be in use elsewhere.
        self._metric = copy.deepcopy(metric)
        self._metric.reset()
        self._number = 0

    def add(self, *values: Any) -> None:
        """Let the metric take in one batch."""
        self._metric.update(*trees.tree_map(_on_cpu, values))
        self._number += 1

    def result(self) -> float:
        """Return what the metric computes."""
        return number(self._metric.compute()) if self._number else math.nan


def number(value: Any) -> float:
    """Return what a measure came to as a number.

    Raises:
        ValueError: It is not one number: several numbers, or something else.

    """
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        shape = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise ValueError(f"comes to {shape}; allowed is one number") from None


def _on_cpu(leaf: Any) -> Any:
    return leaf.detach().cpu() if isinstance(leaf, Tensor) else leaf
