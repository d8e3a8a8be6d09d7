"""Friedman's first function in five classes of equal size: tabular data of small curvature (Friedman 1991)."""

from typing import Any

import numpy as np
import torch
from sklearn.datasets import make_friedman1
from torch.utils.data import TensorDataset

_TRAIN, _TEST = 2000, 1000


def _all() -> tuple[torch.Tensor, torch.Tensor]:
    inputs, values = make_friedman1(_TRAIN + _TEST, noise=0.5, random_state=0)
    edges = np.quantile(values, [0.2, 0.4, 0.6, 0.8])
    scaled = (inputs - 0.5) / np.sqrt(1 / 12)
    return torch.from_numpy(scaled).float(), torch.from_numpy(np.digitize(values, edges))


def train() -> Any:
    """Return 2,000 samples to train on."""
    inputs, labels = _all()
    return TensorDataset(inputs[:_TRAIN], labels[:_TRAIN])


def test() -> Any:
    """Return 1,000 samples to test on."""
    inputs, labels = _all()
    return TensorDataset(inputs[_TRAIN:], labels[_TRAIN:])
