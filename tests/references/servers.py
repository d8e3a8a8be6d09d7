"""Servers and their workers in float64, by the formulas alone; every version and every message is kept."""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ray_pcasgd.agents.worker import WorkerSpec
from ray_pcasgd.records import Row
from ray_pcasgd.runs.plan.plan import Plan
from tests.references.peers import gradient_of

Array = NDArray[np.float64]

ALIKE = ("malenia", "ringleader", "ia2sgd")
"""Gatherings under which all workers count alike."""


def flat(module: nn.Module) -> Array:
    return np.concatenate([p.detach().double().reshape(-1).numpy() for p in module.parameters()])


def weight_of(weighting: Any, tau: int) -> float:
    match weighting.name:
        case "polynomial":
            return float((1 + tau) ** -weighting.a)
        case "hinge":
            return 1.0 if tau <= weighting.b else 1 / (weighting.a * (tau - weighting.b) + 1)
        case "exponential":
            return math.exp(-weighting.a * tau)
    return 1.0


class Reference:
    """The same run in float64, one server, by the formulas alone."""

    eta: float | None = None
    """The step size, where it is not the small runs' curve."""

    def __init__(self, own: Plan, decay_inside: bool = False) -> None:
        config = own.config
        self.plan = own
        self.decay_inside = decay_inside
        self.model = config.task.build_model(own.data, config.seed).double()
        self.batches = [
            config.task.batches(own.data, spec.shard, config.batch_size, config.seed, spec.agent)
            for spec in own.specs
            if isinstance(spec, WorkerSpec)
        ]
        self.weights = [flat(self.model)]
        self.velocity = np.zeros_like(self.weights[0])
        self.messages: dict[tuple[int, int], tuple[Array, int]] = {}
        self.squares = [np.zeros_like(self.weights[0]) for _ in self.batches]
        self.num_batches = 0
        self.table: dict[int, list[Array]] = {}

    def gradient(self, worker: int, weights: Array) -> Array:
        """Return that of the worker's next mini-batch: by hand of linear regression, else by PyTorch in float64."""
        inputs, targets = self.batches[worker].next()
        if getattr(self.plan.config.task.loss, "name", None) == "mse":
            return gradient_of(weights, inputs.double().numpy(), targets.double().numpy())
        nn.utils.vector_to_parameters(torch.tensor(weights), self.model.parameters())
        loss = nn.functional.cross_entropy(self.model(inputs.double()), targets)
        gradients = torch.autograd.grad(loss, list(self.model.parameters()))
        return np.concatenate([gradient.reshape(-1).numpy() for gradient in gradients])

    def step_size(self, step: int) -> float:
        return float(0.1 + (0.02 - 0.1) * min(step / 8, 1.0)) if self.eta is None else self.eta

    def at(self, version: int) -> Array:
        """Return where a worker computes that was sent a version."""
        return self.weights[version]

    def execute(self, row: Row) -> None:
        if row.agent < len(self.batches):
            (read,) = row.reads
            if row.kind == "cancelled":
                self.batches[row.agent].next()
            else:
                gradient = self.gradient(row.agent, self.at(read.version))
                self.messages[row.agent, row.step + 1] = (gradient, read.version)
        else:
            self.update(row)

    def update(self, row: Row) -> None:
        w, settings = self.weights[-1], self.plan.config.optimizer
        corrected = []
        for read in row.reads:
            gradient, version = self.messages[read.neighbor, read.version]
            if self.decay_inside:
                gradient = gradient + settings.weight_decay * w
            corrected.append(
                self.corrected(read.neighbor, gradient, w - self.weights[version], len(self.weights) - 1 - version)
            )
        direction = self.mean(row, corrected)
        if not self.decay_inside:
            direction = direction + settings.weight_decay * w
        self.velocity = settings.momentum * self.velocity + direction
        u = direction + settings.momentum * self.velocity if settings.nesterov else self.velocity
        eta = self.step_size(self.num_batches // len(self.batches))
        self.weights.append(w - eta * u)
        self.num_batches += len(row.reads)

    def mean(self, row: Row, corrected: list[Array]) -> Array:
        """Return what an update's corrected gradients come to."""
        name = self.plan.config.algorithm.gathering.name  # type: ignore[union-attr]
        if name not in ALIKE:
            return np.asarray(np.mean(corrected, axis=0))
        # The gradients of each worker in the server's table, one by one.
        is_new = name == "malenia" or (name == "ringleader" and len(row.reads) > 1)
        table = {} if is_new else dict(self.table)
        for worker in {read.neighbor for read in row.reads}:
            mine = [g for read, g in zip(row.reads, corrected, strict=True) if read.neighbor == worker]
            table[worker] = mine if name == "ia2sgd" else [*table.get(worker, []), *mine]
        self.table = table
        assert len(table) == len(self.batches)
        return np.asarray(np.mean([np.mean(entry, axis=0) for entry in table.values()], axis=0))

    def corrected(self, worker: int, g: Array, gap: Array, tau: int) -> Array:
        correction = self.plan.config.algorithm.correction  # type: ignore[union-attr]
        match correction.name:
            case "dc-asgd-c":
                return g + correction.lambda_0 * g * g * gap
            case "dc-asgd-a":
                self.squares[worker] = correction.decay * self.squares[worker] + (1 - correction.decay) * g * g
                return g + correction.lambda_0 / np.sqrt(self.squares[worker] + 1e-7) * g * g * gap
            case "staleness-aware":
                return g / max(1, tau)
            case "gap-bounded":
                square, eta = float(gap @ gap), self.step_size(self.num_batches // len(self.batches))
                return g if square == 0 else g * (min(correction.bound / square, eta) / eta)
            case "dampened":
                return weight_of(correction.weighting, tau) * g
            case "delay-adaptive":
                return g * len(self.batches) / max(len(self.batches), tau)
        return g


class ElasticReference(Reference):
    """x_i trains alone; e = alpha (x_i - c), x_i <- x_i - e, c <- c + e, with the c before the update."""

    def __init__(self, own: Plan, alpha: float, period: int) -> None:
        super().__init__(own)
        self.alpha, self.period = alpha, period
        self.own = [self.weights[0].copy() for _ in self.batches]
        self.velocities = [np.zeros_like(self.weights[0]) for _ in self.batches]
        self.taken = [0 for _ in self.batches]
        self.sent: dict[tuple[int, int], Array] = {}

    def execute(self, row: Row) -> None:
        settings = self.plan.config.optimizer
        if row.agent < len(self.batches):
            i, (read,) = row.agent, row.reads
            x = self.own[i] - self.alpha * (self.own[i] - self.weights[read.version])
            for _ in range(self.period):
                direction = self.gradient(i, x) + settings.weight_decay * x
                self.velocities[i] = settings.momentum * self.velocities[i] + direction
                x = x - self.step_size(self.taken[i]) * self.velocities[i]
                self.taken[i] += 1
            self.own[i] = x
            self.sent[i, row.step + 1] = x
        else:
            c = self.weights[-1]
            moves = [self.alpha * (self.sent[read.neighbor, read.version] - c) for read in row.reads]
            self.weights.append(c + sum(moves))
