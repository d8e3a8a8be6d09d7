"""Loaded data sets: samples that are taken by index, a batch at a time."""

import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from ray_pcasgd.tasks.drawing import seeded
from ray_pcasgd.tasks.normalization import Normalization

Indices = np.ndarray | Tensor | Sequence[int]

_COMPARED_LABELS = 8


def _class_labels(targets: Tensor) -> np.ndarray | None:
    is_label = targets.ndim == 1 and not targets.is_floating_point() and targets.dtype != torch.bool
    return targets.numpy().astype(np.int64) if is_label else None


def _from_numpy(inputs: np.ndarray, targets: np.ndarray) -> "Samples":
    with warnings.catch_warnings():
        # Ray hands out read-only arrays in shared memory; samples are only ever read.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return Samples(torch.from_numpy(inputs), torch.from_numpy(targets))


class Samples:
    """``n`` samples held as two tensors on the CPU, which are never written to.

    Images are kept as uint8, channel first; ``Normalization`` turns a batch of them into floats. Pickled as numpy
    arrays, so that Ray shares them between processes without a copy.
    """

    def __init__(self, inputs: Tensor, targets: Tensor) -> None:
        if len(inputs) != len(targets):
            raise ValueError(f"{len(inputs)} inputs and {len(targets)} targets: allowed are equally many")
        self.inputs = inputs
        """Shape (n, ...)."""
        self.targets = targets
        """Shape (n, ...): labels (n,), values (n,) or (n, outputs), or one label per position (n, length)."""

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def num_units(self) -> int:
        """What a partition deals."""
        return len(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return _from_numpy, (self.inputs.numpy(), self.targets.numpy())

    def take(self, indices: Indices) -> tuple[Tensor, Tensor]:
        """Return copies of the inputs and targets at ``indices``."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        return self.inputs[chosen], self.targets[chosen]

    def subset(self, indices: Indices) -> "Samples":
        """Return copies of the samples at ``indices``, for an agent that needs no others."""
        return Samples(*self.take(indices))

    def labels(self) -> np.ndarray | None:
        """Return the class of each sample, int64 of shape (n,); None where a target is not one class."""
        return _class_labels(self.targets)


class MapSamples:
    """The samples of a map-style data set, made anew whenever they are taken: for what does not fit into memory.

    ``labels`` are those of all items, where they are known and the data set itself does not hold them; ``is_random``
    says that its items are drawn anew each time.
    """

    def __init__(self, dataset: Any, labels: np.ndarray | None = None, is_random: bool = False) -> None:
        self.dataset = dataset
        """Its items are pairs (input, target)."""
        self.is_random = is_random
        self._labels = labels

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def num_units(self) -> int:
        """What a partition deals: samples, or what holds several of them."""
        return len(self)

    def take(self, indices: Indices) -> tuple[Tensor, Tensor]:
        """Return the inputs and targets at ``indices``, stacked.

        Raises:
            ValueError: an item cannot be made, or cannot be stacked with the others; it is named.

        """
        positions = [int(i) for i in indices]
        inputs, targets = _collated(positions, self._items(positions))
        # What Python's and numpy's numbers collate to, float64 and various integers, no model or loss accepts.
        inputs = inputs.float() if inputs.dtype == torch.float64 else inputs
        return inputs, targets.float() if targets.is_floating_point() else targets.long()

    def _items(self, positions: Sequence[int]) -> list[Any]:
        """Return the items at some positions."""
        if not hasattr(self.dataset, "__getitems__"):
            return [self._item(i) for i in positions]
        try:
            return list(self.dataset.__getitems__(list(positions)))
        except Exception as error:  # the user's own
            for i in positions:
                self._item(i)  # where one of them is the cause, it is named
            raise ValueError(f"samples {positions} cannot be made together ({_reason(error)})") from error

    def _item(self, position: int) -> Any:
        try:
            return self.dataset[position]
        except Exception as error:
            raise ValueError(f"sample {position} cannot be made ({_reason(error)})") from error

    def subset(self, indices: Indices) -> "MapSamples":
        """Return a view of the samples at ``indices``."""
        positions = [int(i) for i in indices]
        labels = None if self._labels is None else self._labels[positions]
        return MapSamples(torch.utils.data.Subset(self.dataset, positions), labels, self.is_random)

    def labels(self) -> np.ndarray | None:
        """Return the class of each sample, int64 of shape (n,); None where only taking all samples would tell."""
        if self._labels is None:
            labels = labels_of(self.dataset)
            self._labels = labels if labels is not None and self._are_of_items(labels) else None
        return self._labels

    def _are_of_items(self, labels: np.ndarray) -> bool:
        """Return whether some items have these labels; a data set may change what its ``targets`` hold."""
        places = np.unique(np.linspace(0, len(self) - 1, min(len(self), _COMPARED_LABELS)).astype(int))
        with seeded(0):
            targets = self.take(places)[1]
        return targets.shape == places.shape and bool((targets.numpy() == labels[places]).all())

    def in_memory(self) -> Samples:
        """Return all the samples as tensors."""
        parts = [self.take(range(first, min(first + 1024, len(self)))) for first in range(0, len(self), 1024)]
        for what, column in (("inputs", [part[0] for part in parts]), ("targets", [part[1] for part in parts])):
            for number, one in enumerate(column):
                if one.shape[1:] != column[0].shape[1:]:
                    shapes = f"{tuple(column[0].shape[1:])} and {tuple(one.shape[1:])}"
                    raise ValueError(f"samples 0 and {1024 * number} have {what} of shapes {shapes}; {_ONE_SHAPE}")
        inputs, targets = zip(*parts, strict=True)
        return Samples(torch.cat(inputs), torch.cat(targets))


def labels_of(dataset: Any) -> np.ndarray | None:
    """Return the classes of a data set's items without taking these, int64 of shape (n,); None where it has none.

    From its ``targets`` or ``labels``, its second tensor, or from the data sets that it is a part of or made of.
    """
    for name in ("targets", "labels"):
        try:
            labels = _class_labels(torch.as_tensor(getattr(dataset, name)))
        except (AttributeError, TypeError, ValueError, RuntimeError):
            continue  # it has none, or something else under that name
        if labels is not None and len(labels) == len(dataset):
            return labels
    if isinstance(dataset, torch.utils.data.Subset):
        whole = labels_of(dataset.dataset)
        return None if whole is None else whole[np.asarray(dataset.indices, dtype=np.int64)]
    if isinstance(dataset, torch.utils.data.ConcatDataset):
        parts = [labels_of(part) for part in dataset.datasets]
        known = [part for part in parts if part is not None]
        return np.concatenate(known) if len(known) == len(parts) else None
    if isinstance(dataset, torch.utils.data.TensorDataset) and len(dataset.tensors) == 2:
        return _class_labels(dataset.tensors[1])
    return None


_ONE_SHAPE = "allowed is one shape, by padding or cropping for instance"


def _collated(positions: Sequence[int], items: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """Return the inputs and targets of the items at some positions, stacked.

    Raises:
        ValueError: an item is no pair, or inputs or targets are no tensors of one shape.

    """
    for position, item in zip(positions, items, strict=True):
        if not (isinstance(item, tuple | list) and len(item) == 2):
            raise ValueError(f"sample {position} is a {type(item).__name__}; allowed are pairs (input, target)")
    inputs = _stacked("input", positions, [_as_input(item[0]) for item in items])
    return inputs, _stacked("target", positions, [item[1] for item in items])


def _stacked(what: str, positions: Sequence[int], values: Sequence[Any]) -> Tensor:
    try:
        stacked = default_collate(list(values))
    except Exception as error:
        shapes = [_shape(value) for value in values]
        other = next((k for k, shape in enumerate(shapes) if shape != shapes[0]), None)
        if other is None:
            raise ValueError(f"the {what}s of samples from {positions[0]} on cannot be stacked ({error})") from error
        both = f"{shapes[0]} and {shapes[other]}"
        raise ValueError(
            f"samples {positions[0]} and {positions[other]} have {what}s of shapes {both}; {_ONE_SHAPE}"
        ) from error
    if isinstance(stacked, Tensor):
        return stacked
    kind = type(values[0]).__name__
    raise ValueError(
        f"sample {positions[0]} has a {kind} for {what}; allowed are tensors, arrays, numbers and PIL images"
    )


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if hasattr(value, "shape") else f"of a {type(value).__name__}"


def _as_input(value: Any) -> Any:
    """Return a PIL image as uint8 (channels, height, width), anything else as it is."""
    if not hasattr(value, "getbands"):
        return value
    array = np.array(value, dtype=np.uint8)
    return torch.from_numpy(array.reshape(*array.shape[:2], -1)).permute(2, 0, 1)


AnySamples = Samples | MapSamples


class TaskData(NamedTuple):
    """A loaded data set: what is trained on, what is tested on, and how inputs are normalized."""

    train: AnySamples
    test: AnySamples
    num_classes: int | None
    """Classes of a classification, characters of a language model; None for a regression."""
    normalization: Normalization = Normalization()
    classes: tuple[str, ...] = ()
    """The classes' names by label, where they are known."""
    remarks: tuple[str, ...] = ()
    """What the user should know about the data, in a line each."""
    probes: AnySamples | None = None
    """What candidates are probed on, where that is not the agents' own samples."""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one input."""
        return tuple(self.train.take([0])[0].shape[1:])

    @property
    def num_outputs(self) -> int:
        """Number of a model's outputs: one for each class, or one for each value of a regression's target."""
        if self.num_classes is not None:
            return self.num_classes
        return math.prod(self.train.take([0])[1].shape[1:])


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
