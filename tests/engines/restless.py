"""A network whose own code changes tensors of every kind, and one that leaves its weights alone."""

from typing import Any

import torch
from torch import Tensor, nn


class Restless(nn.Module):
    """Statistics that mix, and buffers of its own: bound anew, of odd types, made by the first batch, infinite."""

    def __init__(self, changes_weights: bool = True) -> None:
        super().__init__()
        self.changes_weights = changes_weights
        self.first, self.norm, self.last = nn.Linear(64, 12), nn.BatchNorm1d(12), nn.Linear(12, 10)
        self.never = nn.Linear(3, 3)
        self.follower = nn.Linear(64, 12, bias=False).requires_grad_(False)
        self.register_buffer("center", torch.zeros(64))
        self.register_buffer("passes", torch.zeros(2, dtype=torch.int32))
        self.register_buffer("coarse", torch.zeros(12, dtype=torch.bfloat16))
        self.register_buffer("wide", torch.zeros((), dtype=torch.complex64))
        self.register_buffer("seen", torch.zeros(64, dtype=torch.bool))
        self.register_buffer("first_mean", None)
        self.register_buffer("mask", torch.where(torch.eye(12).bool(), 0.0, -torch.inf))

    def forward(self, inputs: Tensor) -> Tensor:
        inputs = inputs.flatten(1)
        if self.training:
            self.center = 0.9 * self.center + 0.1 * inputs.mean(0)
            self.passes = self.passes + torch.tensor([1, 2], dtype=torch.int32)
            self.seen = self.seen | (inputs > 0).any(0)
            self.wide += complex(1, inputs.mean().item())
            if self.first_mean is None:
                self.first_mean = inputs.mean(0)
            self.follower.weight.data = 0.5 * self.follower.weight.data + 0.5 * self.first.weight.data
        if self.changes_weights:
            self.last.weight.data = self.last.weight.data / self.last.weight.data.norm(dim=1, keepdim=True)
        mean = 0.0 if self.first_mean is None else self.first_mean
        hidden = self.norm(self.first(inputs - 0.5 * self.center - 0.1 * mean) + 0.1 * self.follower(inputs))
        if self.training:
            self.coarse = 0.5 * self.coarse + 0.5 * hidden.detach().mean(0).bfloat16()
        hidden = (hidden[:, None, :] + self.mask).logsumexp(-1).relu() + self.coarse.float()
        result: Tensor = self.last(hidden)
        return result


DATA = {"name": "custom", "train": "tests.engines.images:TRAIN", "test": "tests.engines.images:TEST"}


def restless(changes_weights: bool = True) -> dict[str, Any]:
    """Return settings of it."""
    model = {
        "name": "custom",
        "factory": "tests.engines.restless:Restless",
        "arguments": {"changes_weights": changes_weights},
    }
    return {"task": {"data": DATA, "model": model}}
