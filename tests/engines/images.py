"""A little real image data: scikit-learn's digits as 8x8 images."""

import random

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

_digits = load_digits()
_images = torch.from_numpy(_digits.images[:, None] / 16).float()
_labels = torch.from_numpy(_digits.target)
TRAIN = TensorDataset(_images[:1400], _labels[:1400])
TEST = TensorDataset(_images[1400:], _labels[1400:])


class Changed(Dataset[tuple[Tensor, Tensor]]):
    """The training images, turned, scaled and disturbed at random as they are taken."""

    targets = _labels[:1400]

    def __len__(self) -> int:
        return 1400

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        turned = _images[index].rot90(random.randrange(2), (1, 2))
        return float(np.random.uniform(0.9, 1)) * turned + 0.1 * torch.rand(1, 8, 8), _labels[index]  # noqa: NPY002


DRAWN = {
    "name": "custom",
    "train": "tests.engines.images:Changed",
    "test": "tests.engines.images:TEST",
}
