"""The data sets that settings name; the libraries that decode them are imported where they are used."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BeforeValidator, Field

from ray_pcasgd.base.imports import CallableOrPath, ObjectOrPath, import_object
from ray_pcasgd.base.randomness import generator
from ray_pcasgd.base.settings import Settings, from_name
from ray_pcasgd.tasks.custom_samples import CustomSamples, custom_samples
from ray_pcasgd.tasks.drawing import seeded
from ray_pcasgd.tasks.images import Standardized
from ray_pcasgd.tasks.parquet import ImageParquet
from ray_pcasgd.tasks.samples import AnySamples, Samples, TaskData
from ray_pcasgd.tasks.trees import Batch, form_of, is_pair
from ray_pcasgd.tasks.vision import CIFAR10, CIFAR100, FashionMNIST, ImageFolder


class Digits(Settings):
    """scikit-learn's embedded handwritten digits: 1797 images of 8x8 pixels as vectors (64,) in [0, 1], 10 classes."""

    name: Literal["digits"] = "digits"
    test_share: float = Field(0.2, gt=0, lt=1)
    """Share of the samples that is used for testing."""
    split_seed: int = 0
    """Seed that decides which samples these are."""

    def load(self) -> TaskData:
        """Return the data set."""
        from sklearn.datasets import load_digits

        digits = load_digits()
        order = generator(self.split_seed, "digits").permutation(len(digits.data))
        num_test = round(len(order) * self.test_share)
        if not 0 < num_test < len(order):
            share = f"task.data.test_share = {self.test_share:g}"
            raise ValueError(f"{share}: allowed are shares that leave one of {len(order)} samples on each side")
        whole = Samples(
            torch.from_numpy(digits.data.astype(np.float32) / 16), torch.from_numpy(digits.target.astype(np.int64))
        )
        return TaskData(
            train=whole.subset(order[num_test:]),
            test=whole.subset(order[:num_test]),
            num_classes=10,
            classes=tuple(map(str, digits.target_names)),
        )


class Text(Settings):
    """A UTF-8 text for a character-level language model: each sample predicts every character from those before it."""

    name: Literal["text"] = "text"
    path: Path
    """The text file."""
    context: int = Field(64, ge=1)
    """Characters of one sample."""
    test_share: float = Field(0.1, gt=0, lt=1)
    """Share of the text, at its end, that is used for testing."""

    def load(self) -> TaskData:
        """Return samples of ``context`` characters, which do not overlap, numbered by the rank of their code points.

        Raises:
            ValueError: There is no such file, it is not UTF-8, or it is too short for one sample in each part.

        """
        if not self.path.is_file():
            raise ValueError(f"task.data.path = {str(self.path)!r}: no such file; allowed is a UTF-8 text file")
        try:
            text = self.path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"task.data.path = {str(self.path)!r}: {error}; allowed is a UTF-8 text file") from error
        num_test = round(len(text) * self.test_share)
        if num_test <= self.context or len(text) - num_test <= self.context:
            raise ValueError(
                f"task.data.context = {self.context}: the text has {len(text) - num_test} characters to train on and "
                f"{num_test} to test on; allowed are fewer than either"
            )
        points, codes = np.unique(np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32), return_inverse=True)
        return TaskData(
            train=self._windows(codes[: len(text) - num_test]),
            test=self._windows(codes[len(text) - num_test :]),
            num_classes=len(points),
            classes=tuple(chr(point) for point in points),
        )

    def _windows(self, codes: np.ndarray) -> Samples:
        number = (len(codes) - 1) // self.context
        inputs = codes[: number * self.context].reshape(number, self.context)
        targets = codes[1 : number * self.context + 1].reshape(number, self.context)
        return Samples(torch.from_numpy(inputs.astype(np.int64)), torch.from_numpy(targets.astype(np.int64)))


class CustomData(Standardized):
    """The user's own data: two map-style data sets, Hugging Face's ``datasets.Dataset`` for instance.

    Items are pairs (input, target), or mappings, tuples or lists of tensors, arrays, numbers and lists of numbers; with
    ``collate`` anything.
    """

    name: Literal["custom"] = "custom"
    train: ObjectOrPath
    """A map-style data set, a function that returns one, or the import path ``module:attribute`` of either."""
    test: ObjectOrPath
    """The same for the samples that are tested on."""
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

    def load(self) -> TaskData:
        """Return the data set.

        Raises:
            ValueError: What the settings name is no map-style data set, or its items are random in a way that no seed
                decides.

        """
        train, test = (self._samples(setting) for setting in ("train", "test"))
        if train.samples.are_pairs != test.samples.are_pairs:
            one, other = (_first(part.samples) for part in (train, test))
            raise ValueError(
                f"task.data.test: its batches are {form_of(other)}; allowed is what task.data.train has, {form_of(one)}"
            )
        data = self.task_data(train.samples, test.samples, self._num_classes(train.samples, test.samples))
        return data._replace(remarks=tuple(part.remark for part in (train, test) if part.remark))

    def _samples(self, setting: str) -> CustomSamples:
        return samples_of(f"task.data.{setting}", getattr(self, setting), self.in_memory, import_object(self.collate))

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


def _from_pair(value: Any) -> Any:
    """Return a pair of data sets as settings of them."""
    if isinstance(value, tuple) and len(value) == 2:
        return {"name": "custom", "train": value[0], "test": value[1]}
    return from_name(value)


Data = Annotated[
    Annotated[
        Digits | CIFAR10 | CIFAR100 | FashionMNIST | ImageFolder | ImageParquet | Text | CustomData,
        Field(discriminator="name"),
    ],
    BeforeValidator(_from_pair),
]
"""One of the data sets, by its ``name``; from Python also a pair of map-style data sets."""
