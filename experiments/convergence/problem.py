"""The problems: strongly convex losses of a linear model on the digits, their optimum and their curvature."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import TensorDataset

CLASSES = 10


class Digits(TensorDataset):
    """The digits, standardized as a whole so that curvature is of order 1."""

    def __init__(self) -> None:
        inputs, targets = load_digits(return_X_y=True)
        inputs = (inputs - inputs.mean(0)) / (inputs.std() * np.sqrt(inputs.shape[1]))
        super().__init__(torch.tensor(inputs, dtype=torch.float32), torch.tensor(targets))
        self.targets = torch.tensor(targets)


class FewDigits(Digits):
    """What the trainer tests on; the study itself measures distances to the optimum."""

    def __len__(self) -> int:
        return 2


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return half the mean squared distance to the label's unit vector: a quadratic of the weights."""
    # Not one_hot: it looks at the values of the labels, which are not to be seen where runs are stacked.
    wanted = (targets[:, None] == torch.arange(CLASSES)).to(outputs.dtype)
    return 0.5 * (outputs - wanted).square().sum(1).mean()


LOSSES = {"least squares": {"name": "custom", "function": squared_error}, "logistic": {"name": "cross-entropy"}}


class Optimum(NamedTuple):
    """Where the regularized objective, the mean of the agents' own, is least, and how it is curved there."""

    weights: Tensor
    """Shape (D,), float64, in the layout of the linear model."""
    smallest: float
    largest: float
    """Eigenvalues of the Hessian at the optimum."""


def optimum(problem: str, shards: Sequence[np.ndarray], weight_decay: float) -> Optimum:
    """Return the optimum, by Newton's method in float64."""
    data = Digits()
    inputs = data.tensors[0].double()
    inputs = torch.cat([inputs, torch.ones(len(inputs), 1, dtype=torch.float64)], 1)
    wanted = torch.nn.functional.one_hot(data.tensors[1], CLASSES).double()
    share = torch.zeros(len(inputs), dtype=torch.float64)
    for shard in shards:
        share[torch.as_tensor(shard)] = 1 / (len(shards) * len(shard))

    def objective(flat: Tensor) -> Tensor:
        outputs = inputs @ flat.view(CLASSES, -1).T
        if problem == "least squares":
            losses = 0.5 * (outputs - wanted).square().sum(1)
        else:
            losses = outputs.logsumexp(1) - (outputs * wanted).sum(1)
        return share @ losses + 0.5 * weight_decay * flat.square().sum()

    flat = torch.zeros(CLASSES * inputs.shape[1], dtype=torch.float64)
    for _ in range(30):
        (gradient,) = torch.autograd.grad(objective(flat.requires_grad_()), flat)
        hessian = torch.autograd.functional.hessian(objective, flat.detach())
        flat = (flat - torch.linalg.solve(hessian, gradient)).detach()
        if gradient.norm() < 1e-10:
            break
    values = torch.linalg.eigvalsh(torch.autograd.functional.hessian(objective, flat))
    matrix = flat.view(CLASSES, -1)
    weights = torch.cat([matrix[:, :-1].reshape(-1), matrix[:, -1]])
    return Optimum(weights, float(values[0]), float(values[-1]))
