"""A quadratic of one parameter, ``w^2`` without noise, as a task of the real engines."""

from typing import Any

import torch
from torch import nn
from torch.utils.data import TensorDataset

CURVATURE = 2.0
ONES = TensorDataset(torch.ones(8, 1), torch.zeros(8, 1))
TASK: dict[str, Any] = {
    "data": {"name": "custom", "train": ONES, "test": ONES},
    "model": {
        "name": "custom",
        "factory": nn.Linear,
        "arguments": {"in_features": 1, "out_features": 1, "bias": False},
    },
    "loss": "mse",
    "metrics": [],
}
