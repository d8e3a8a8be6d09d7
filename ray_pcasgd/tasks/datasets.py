"""The data sets that settings name; the libraries that decode them are imported where they are used."""

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BeforeValidator, Field

from ray_pcasgd.base.imports import ObjectOrPath
from ray_pcasgd.base.randomness import generator
from ray_pcasgd.base.settings import Settings, from_name
from ray_pcasgd.tasks.hugging_face import HuggingFace
from ray_pcasgd.tasks.map_style import MapStyle
from ray_pcasgd.tasks.parquet import ImageParquet
from ray_pcasgd.tasks.samples import Samples, TaskData
from ray_pcasgd.tasks.vision import CIFAR10, CIFAR100, FashionMNIST, ImageFolder


@cache
def _digits() -> np.ndarray[Any, Any]:
    """Return scikit-learn's digits, a row of 64 pixels and a label each, shape (1797, 65).

    Read from its file, as it does itself: to import it takes two seconds, more than all else of planning a small run.
    """
    found = find_spec("sklearn")
    assert found is not None
    assert found.origin is not None
    return np.loadtxt(Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")


class Digits(Settings):
    """scikit-learn's embedded handwritten digits: 1797 images of 8x8 pixels as vectors (64,) in [0, 1], 10 classes."""

    name: Literal["digits"] = "digits"
    test_share: float = Field(0.2, gt=0, lt=1)
    """Share of the samples that is used for testing."""
    split_seed: int = 0
    """Seed that decides which samples these are."""

    def load(self) -> TaskData:
        """Return the data set, in memory of its own."""
        digits = _digits()
        order = generator(self.split_seed, "digits").permutation(len(digits))
        num_test = round(len(order) * self.test_share)
        if not 0 < num_test < len(order):
            share = f"task.data.test_share = {self.test_share:g}"
            raise ValueError(f"{share}: allowed are shares that leave one of {len(order)} samples on each side")
        pixels, labels = digits[:, :-1].astype(np.float32) / 16, digits[:, -1].astype(np.int64)
        whole = Samples(torch.from_numpy(pixels), torch.from_numpy(labels))
        return TaskData(
            train=whole.subset(order[num_test:]),
            test=whole.subset(order[:num_test]),
            num_classes=10,
            classes=tuple(map(str, range(10))),
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


class CustomData(MapStyle):
    """The user's own data: two map-style data sets, Hugging Face's ``datasets.Dataset`` for instance.

    Items are pairs (input, target), or mappings, tuples or lists of tensors, arrays, numbers and lists of numbers; with
    ``collate`` anything.
    """

    name: Literal["custom"] = "custom"
    train: ObjectOrPath
    """A map-style data set, a function that returns one, or the import path ``module:attribute`` of either."""
    test: ObjectOrPath
    """The same for the samples that are tested on."""

    def load(self) -> TaskData:
        """Return the data set.

        Raises:
            ValueError: What the settings name is no map-style data set, or its items are random in a way that no seed
                decides.

        """
        return self.loaded(self.train, self.test)


def _from_pair(value: Any) -> Any:
    """Return a pair of data sets as settings of them."""
    if isinstance(value, tuple) and len(value) == 2:
        return {"name": "custom", "train": value[0], "test": value[1]}
    return from_name(value)


Data = Annotated[
    Annotated[
        Digits | CIFAR10 | CIFAR100 | FashionMNIST | ImageFolder | ImageParquet | HuggingFace | Text | CustomData,
        Field(discriminator="name"),
    ],
    BeforeValidator(_from_pair),
]
"""One of the data sets, by its ``name``; from Python also a pair of map-style data sets."""
