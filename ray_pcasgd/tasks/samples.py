"""Loaded data sets: samples that are taken by index, a batch at a time."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ray_pcasgd.tasks.collating import ONE_SHAPE, collated
from ray_pcasgd.tasks.drawing import seeded
from ray_pcasgd.tasks.normalization import Normalization
from ray_pcasgd.tasks.trees import Batch, is_pair

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

    are_pairs = True
    """Whether batches are pairs of tensors."""

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
    says that its items are drawn anew each time; ``collate`` makes a batch of a list of them, see ``collated``.
    """

    def __init__(
        self,
        dataset: Any,
        labels: np.ndarray | None = None,
        is_random: bool = False,
        collate: Callable[[list[Any]], Batch] | None = None,
    ) -> None:
        self.dataset = dataset
        """Its items are pairs (input, target), or whatever else makes batches of tensors."""
        self.is_random = is_random
        self.collate = collate
        self._labels = labels
        self._are_pairs: bool | None = None

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def are_pairs(self) -> bool:
        """Whether batches are pairs of tensors."""
        if self._are_pairs is None:
            with seeded(0):
                self._are_pairs = is_pair(self.take([0]))
        return self._are_pairs

    @property
    def num_units(self) -> int:
        """What a partition deals: samples, or what holds several of them."""
        return len(self)

    def take(self, indices: Indices) -> Batch:
        """Return the batch of the items at ``indices``.

        Raises:
            ValueError: an item cannot be made, or cannot be stacked with the others; it is named.

        """
        positions = [int(i) for i in indices]
        return collated(positions, self._items(positions), self.collate)

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
        return MapSamples(torch.utils.data.Subset(self.dataset, positions), labels, self.is_random, self.collate)

    def labels(self) -> np.ndarray | None:
        """Return the class of each sample, int64 of shape (n,); None where only taking all samples would tell.

        Of items that are mappings it is one integer under ``labels`` or ``label``, for which all items are taken once.
        """
        if self._labels is None:
            labels = labels_of(self.dataset)
            if labels is not None:
                self._labels = labels if self._are_of_items(labels) else None
            else:
                self._labels = self._labels_of_mappings()
        return self._labels

    def _are_of_items(self, labels: np.ndarray) -> bool:
        """Return whether some items have these labels; a data set may change what its ``targets`` hold."""
        places = np.unique(np.linspace(0, len(self) - 1, min(len(self), _COMPARED_LABELS)).astype(int))
        with seeded(0):
            targets = [np.asarray(_target_of(item)) for item in self._items(places.tolist())]
        return all(one.ndim == 0 and bool(one == label) for one, label in zip(targets, labels[places], strict=True))

    def _labels_of_mappings(self) -> np.ndarray | None:
        with seeded(0):
            if not isinstance(first := self._item(0), Mapping) or (key := _label_key(first)) is None:
                return None
            if np.ndim(first[key]):
                return None
            column = np.array([np.asarray(self._item(i).get(key)) for i in range(len(self))])
        return column.astype(np.int64) if column.dtype.kind in "iu" and column.ndim == 1 else None

    def kept(self) -> "MapSamples":
        """Return the same samples, each made once and kept as it is."""
        return MapSamples(self._items(range(len(self))), self._labels, self.is_random, self.collate)

    def in_memory(self) -> Samples:
        """Return all the samples, which are pairs, as tensors."""
        parts = [self.take(range(first, min(first + 1024, len(self)))) for first in range(0, len(self), 1024)]
        for what, column in (("inputs", [part[0] for part in parts]), ("targets", [part[1] for part in parts])):
            for number, one in enumerate(column):
                if one.shape[1:] != column[0].shape[1:]:
                    shapes = f"{tuple(column[0].shape[1:])} and {tuple(one.shape[1:])}"
                    raise ValueError(f"samples 0 and {1024 * number} have {what} of shapes {shapes}; {ONE_SHAPE}")
        inputs, targets = zip(*parts, strict=True)
        return Samples(torch.cat(inputs), torch.cat(targets))


def _label_key(item: Any) -> str | None:
    return next((key for key in ("labels", "label") if key in item), None)


def _target_of(item: Any) -> Any:
    """Return what an item would have its label in."""
    if isinstance(item, Mapping):
        return item.get(_label_key(item))
    return item[1] if isinstance(item, tuple | list) and len(item) == 2 else None


def labels_of(dataset: Any) -> np.ndarray | None:
    """Return the classes of a data set's items without taking these, int64 of shape (n,); None where it has none.

    From its ``targets`` or ``labels``, its column of labels as Hugging Face's data sets have them, its second tensor,
    or from the data sets that it is a part of or made of.
    """
    columns = getattr(dataset, "column_names", None)
    if isinstance(columns, list) and (key := _label_key(columns)) is not None:
        column = np.asarray(dataset.with_format("numpy")[key][:])
        return column.astype(np.int64) if column.dtype.kind in "iu" and column.ndim == 1 else None
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
    def are_pairs(self) -> bool:
        """Whether batches are pairs of tensors, inputs and targets; else all but the tensors' form is the user's."""
        return self.train.are_pairs

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
