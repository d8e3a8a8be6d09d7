"""A loss that is not finite for one agent, sooner or later."""

import torch
from torch import Tensor
from torch.nn import functional


def nan_for_bright_batches(outputs: Tensor, targets: Tensor) -> Tensor:
    loss = functional.cross_entropy(outputs, targets)
    return torch.where((targets == targets[0]).sum() >= 6, torch.nan, loss)
