"""Digits of which one training sample is marked, and networks for which that one is too much."""

from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import TensorDataset

MARKED = 77
"""The number of the marked training sample; its first pixel is 1, of all others it is 0."""

_digits = load_digits()
_images = torch.from_numpy(_digits.data / 16).float()
_images[MARKED, 0] = 1.0
_labels = torch.from_numpy(_digits.target)
TRAIN = TensorDataset(_images[:600], _labels[:600])
TEST = TensorDataset(_images[1400:], _labels[1400:])


class Fragile(nn.Module):
    """Finite in loss and gradient; but with the marked sample ``weights`` or ``buffers`` overflow in that step."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what
        self.layer = nn.Linear(64, 10)
        self.norm = nn.BatchNorm1d(64)
        self.extra = nn.Parameter(torch.zeros(10))

    def forward(self, inputs: Tensor) -> Tensor:
        mark = inputs[:, :1]
        outputs: Tensor = self.layer(inputs)
        if self.what == "weights":
            return outputs + (mark * 3e38) * self.extra + 0 * self.norm(inputs).sum()
        hidden = self.norm(torch.cat([mark * 1e30, inputs[:, 1:]], dim=1))
        return outputs + 0.1 * hidden[:, 1:11] + 0 * self.extra


def fragile(what: str) -> dict[str, Any]:
    """Return settings of such a task."""
    data = {"name": "custom", "train": "tests.engines.fragile:TRAIN", "test": "tests.engines.fragile:TEST"}
    model = {"name": "custom", "factory": "tests.engines.fragile:Fragile", "arguments": {"what": what}}
    return {"task": {"data": data, "model": model}}
