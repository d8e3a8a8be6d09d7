"""Models that raise, where agents run in processes of their own."""

import os

import torch
from torch import Tensor, nn


class FailingLater(nn.Module):
    """Raises an error of its own kind in its training mode, from a forward pass on."""

    def __init__(self, passes: int = 5) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 10)
        self.left = passes

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.left -= 1
        if self.left < 0:
            raise OwnError("no more", passes=self.left)
        outputs: Tensor = self.linear(inputs)
        return outputs


class OwnError(Exception):
    """Cannot be made again from its arguments alone, as it would be in another process."""

    def __init__(self, message: str, *, passes: int) -> None:
        super().__init__(message)
        self.passes = passes


class FailingWhenEvaluated(FailingLater):
    """Raises in its evaluation mode, with other weights than those it was made with."""

    def __init__(self) -> None:
        super().__init__()
        self.first = self.linear.weight.detach().clone()

    def forward(self, inputs: Tensor) -> Tensor:
        if not self.training and not torch.equal(self.linear.weight, self.first):
            raise KeyError("evaluated")
        outputs: Tensor = self.linear(inputs)
        return outputs


class FailingElsewhere(FailingLater):
    """Cannot be built in an agent's process."""

    def __init__(self) -> None:
        if "RAY_WORKER_MODE" in os.environ or "RAY_RAYLET_PID" in os.environ:
            raise LookupError("not here")
        super().__init__(10**9)
