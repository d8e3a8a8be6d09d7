"""Data sets of one's own or of other libraries: what is made of two map-style data sets."""

from collections.abc import Callable
from typing import Any

from pydantic import Field

from ray_pcasgd.base.imports import CallableOrPath, import_object
from ray_pcasgd.tasks.custom_samples import CustomSamples, custom_samples
from ray_pcasgd.tasks.drawing import seeded
from ray_pcasgd.tasks.images import Standardized
from ray_pcasgd.tasks.samples import AnySamples, Samples, TaskData
from ray_pcasgd.tasks.trees import Batch, form_of, is_pair


class MapStyle(Standardized):
    """The settings of data whose items are made by map-style data sets."""

    collate: CallableOrPath | None = None
    """A function that makes a batch of a list of items, or its import path; not given: tensors are stacked. A batch is
    a tensor, or tuples, lists and mappings of them, nested."""
    num_classes: int | None = Field(None, ge=2)
    """Number of classes; not given: one more than the highest label where targets are integers, else a regression. Only
    of pairs of tensors."""
    in_memory: bool | None = None
    """Whether all samples are made once and kept; if not, each is made anew whenever it is drawn. Not given: kept,
    except training samples that are random (augmentation in ``__getitem__``). Those draw from the generators of
    Python, NumPy and PyTorch, which follow from the run's seed, the agent and the batch; test samples have the same
    draws in every run and evaluation. What is no pair of tensors, or is collated by ``collate``, is kept only on
    request, as items."""

    def loaded(self, train: Any, test: Any) -> TaskData:
        """Return the data set that two map-style ones make, or functions or import paths of them.

        Raises:
            ValueError: One is no map-style data set, or its items are random in a way that no seed decides.

        """
        first, second = self._samples("train", train), self._samples("test", test)
        if first.samples.are_pairs != second.samples.are_pairs:
            one, other = (_first(part.samples) for part in (first, second))
            raise ValueError(
                f"task.data.test: its batches are {form_of(other)}; allowed is what task.data.train has, {form_of(one)}"
            )
        data = self.task_data(first.samples, second.samples, self._num_classes(first.samples, second.samples))
        return data._replace(remarks=tuple(part.remark for part in (first, second) if part.remark))

    def _samples(self, setting: str, dataset: Any) -> CustomSamples:
        return samples_of(f"task.data.{setting}", dataset, self.in_memory, import_object(self.collate))

    def _num_classes(self, train: AnySamples, test: AnySamples) -> int | None:
        if self.num_classes is not None:
            return self.num_classes
        if not is_pair(first := _first(train)) or first[1].is_floating_point():
            return None
        if isinstance(train, Samples) and isinstance(test, Samples):
            return int(max(train.targets.max(), test.targets.max())) + 1
        labels = [samples.labels() for samples in (train, test)]
        found = [int(part.max()) + 1 for part in labels if part is not None]
        if len(found) < len(labels):
            raise ValueError(
                "task.data.num_classes is empty: allowed where the data set has `targets` or `labels`, or is in memory"
            )
        return max(found)


def _first(samples: AnySamples) -> Batch:
    """Return a batch of the first sample; no generator moves by it."""
    with seeded(0):
        return samples.take([0])


def samples_of(
    place: str, dataset: Any, in_memory: bool | None = None, collate: Callable[[list[Any]], Batch] | None = None
) -> CustomSamples:
    """Return the samples of a user's map-style data set, which the setting ``place`` names.

    Raises:
        ValueError: it is no map-style data set, or its items are random in a way that no seed decides.

    """
    try:
        return custom_samples(place.rsplit(".", 1)[-1], _map_style(place, dataset), in_memory, collate)
    except Exception as error:  # also the user's own
        if isinstance(error, ValueError) and str(error).startswith((place, "task.data.collate")):
            raise
        reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise ValueError(f"{place}: {reason}") from error


def _map_style(place: str, dataset: Any) -> Any:
    value = import_object(dataset)
    if isinstance(value, type) or (not hasattr(value, "__getitem__") and callable(value)):
        value = value()
    for method in ("__len__", "__getitem__"):
        if not hasattr(value, method):
            raise ValueError(f"{place}: {type(value).__name__} has no {method}; allowed is a map-style data set")
    if len(value) == 0:
        raise ValueError(f"{place}: it is empty; allowed is at least one sample")
    return value
