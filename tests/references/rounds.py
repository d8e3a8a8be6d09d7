"""Rounds of local steps around a server in float64: DiLoCo's family, and FedAsync."""

from typing import Any

import numpy as np

from ray_pcasgd.records import Row
from ray_pcasgd.runs.plan.plan import Plan
from tests.references.servers import Array, Reference, weight_of


class RoundsReference(Reference):
    """Workers: H_i steps of SGD with momentum each from what they read; the server: what its outer optimizer says."""

    def __init__(self, own: Plan, rounds: tuple[int, ...]) -> None:
        super().__init__(own)
        self.rounds = rounds
        self.velocities = [np.zeros_like(self.weights[0]) for _ in self.batches]
        self.taken = [0 for _ in self.batches]
        self.sent: dict[tuple[int, int], tuple[Array, int]] = {}
        self.latest = 0
        self.outer = self.outer_memory()

    def outer_memory(self) -> dict[str, Any]:
        return {"b": np.zeros_like(self.weights[0]), "sum": np.zeros_like(self.weights[0]), "t": 0}

    def execute(self, row: Row) -> None:
        if row.agent < len(self.batches):
            (read,) = row.reads
            start = self.weights[read.version]
            self.sent[row.agent, row.step + 1] = (start - self.trained(row.agent, start), read.version)
        else:
            self.update(row)

    def trained(self, i: int, x: Array) -> Array:
        settings = self.plan.config.optimizer
        for _ in range(self.rounds[i]):
            direction = self.gradient(i, x) + settings.weight_decay * x
            self.velocities[i] = settings.momentum * self.velocities[i] + direction
            u = direction + settings.momentum * self.velocities[i] if settings.nesterov else self.velocities[i]
            x = x - self.step_size(self.taken[i]) * u
            self.taken[i] += 1
        return x

    def share(self, worker: int) -> float:
        return float(len(self.plan.specs[worker].shard)) if self.plan.config.algorithm.average == "samples" else 1.0  # type: ignore[union-attr]

    def update(self, row: Row) -> None:
        rule: Any = self.plan.config.algorithm
        total, shares = np.zeros_like(self.weights[0]), 0.0
        for read in row.reads:
            delta, version = self.sent[read.neighbor, read.version]
            tau = len(self.weights) - 1 - version
            self.latest = max(self.latest, tau)
            total += self.share(read.neighbor) * weight_of(rule.weighting, tau) * delta
            shares += self.share(read.neighbor)
        self.weights.append(self.moved(rule.outer, total / shares))

    def moved(self, outer: Any, g: Array) -> Array:
        theta, memory, mu = self.weights[-1], self.outer, outer.momentum
        if outer.name == "sgd":
            memory["b"] = mu * memory["b"] + g
            return theta - outer.step_size * (g + mu * memory["b"] if outer.nesterov else memory["b"])  # type: ignore[no-any-return]
        n, c = outer.every or len(self.batches), outer.spread
        memory["sum"] = memory["sum"] + g
        memory["t"] += 1
        if memory["t"] % n:
            return theta - outer.step_size * (c * mu * memory["b"] + g / n)  # type: ignore[no-any-return]
        memory["b"] = mu * memory["b"] + memory["sum"] / n
        memory["sum"] = np.zeros_like(g)
        return theta - outer.step_size * ((1 - c * n + c) * mu * memory["b"] + g / n)  # type: ignore[no-any-return]


class FedAsyncReference(RoundsReference):
    """theta <- (1 - a s(tau)) theta + a s(tau) x, one after another; workers' loss has rho/2 |x - theta|^2."""

    def execute(self, row: Row) -> None:
        if row.agent < len(self.batches):
            (read,) = row.reads
            self.anchor = self.weights[read.version]
            self.sent[row.agent, row.step + 1] = (self.trained(row.agent, self.anchor), read.version)
        else:
            self.update(row)

    def gradient(self, worker: int, weights: Array) -> Array:
        rule: Any = self.plan.config.algorithm
        return super().gradient(worker, weights) + rule.proximal * (weights - self.anchor)

    def update(self, row: Row) -> None:
        rule: Any = self.plan.config.algorithm
        (read,) = row.reads
        x, version = self.sent[read.neighbor, read.version]
        tau = len(self.weights) - 1 - version
        self.latest = max(self.latest, tau)
        a = rule.mix * weight_of(rule.weighting, tau)
        self.weights.append((1 - a) * self.weights[-1] + a * x)
