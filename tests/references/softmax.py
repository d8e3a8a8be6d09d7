"""Softmax regression in float64, by its own formula, and attackers who train on flipped labels ``C - 1 - y``."""

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import TensorDataset

from ray_pcasgd.runs.plan.plan import Plan
from tests.references import servers
from tests.references.averaging import PlainReference
from tests.references.peers import SIZE, Array, Regression

CLASSES = 4


def classification(seed: int) -> dict[str, Any]:
    """Return a task of four classes, whose samples lie around a point each."""
    random = np.random.default_rng(seed)
    labels = random.integers(CLASSES, size=120)
    inputs = random.normal(size=(CLASSES, SIZE))[labels] + 0.5 * random.normal(size=(120, SIZE))
    data = TensorDataset(torch.tensor(inputs, dtype=torch.get_default_dtype()), torch.tensor(labels))
    return {
        "data": {"name": "custom", "train": data, "test": data},
        "model": {"name": "custom", "factory": partial(nn.Linear, SIZE, CLASSES)},
    }


def gradient_of(x: Array, inputs: Array, labels: Array) -> Array:
    """Return that of the mean cross-entropy: the means of ``(p - e_y) z'``, row by row, and of ``p - e_y``."""
    rows, bias = x[: CLASSES * SIZE].reshape(CLASSES, SIZE), x[CLASSES * SIZE :]
    by_rows, by_bias = np.zeros((CLASSES, SIZE)), np.zeros(CLASSES)
    for one, label in zip(inputs, labels, strict=True):
        scores = np.exp(rows @ one + bias)
        wrong = scores / scores.sum() - np.eye(CLASSES)[int(label)]
        by_rows += np.outer(wrong, one) / len(inputs)
        by_bias += wrong / len(inputs)
    return np.concatenate([by_rows.ravel(), by_bias])


def told(own: Plan, agent: int, labels: Array) -> Array:
    """Return what an agent takes for the labels."""
    assert own.config.faults is not None
    return CLASSES - 1 - labels if agent in own.config.faults.agents else labels


class _Softmax(Regression):
    def gradient(self, agent: int, number: int, x: Array) -> Array:
        inputs, labels = self.batch(agent, number)
        return gradient_of(x, inputs, told(self.own, agent, labels))


class FlippingPeers(PlainReference):
    """Peers that average, of which some train on flipped labels and send what comes of that."""

    def __init__(self, own: Plan) -> None:
        super().__init__(own)
        self.task = _Softmax(own)
        self.velocity = {i: np.zeros_like(self.task.start) for i in self.velocity}


class FlippingWorkers(servers.Reference):
    """A server's workers, of which some send gradients at flipped labels."""

    def gradient(self, worker: int, weights: Array) -> Array:
        inputs, labels = (part.double().numpy() for part in self.batches[worker].next())
        return gradient_of(weights, inputs, told(self.plan, worker, labels))
