"""Rounds around a server whose messages hold a part of the model, in float64."""

from typing import Any

import numpy as np

from ray_pcasgd.records import Read, Row
from ray_pcasgd.runs.plan.plan import Plan
from tests.references.rounds import RoundsReference
from tests.references.servers import Array, weight_of

PARTS = 3
"""Of the model's 460 numbers: 154, 154 and 152."""


class StreamingReference(RoundsReference):
    """Streaming DiLoCo: each worker has weights of its own, and its message one part of the model, each in its turn."""

    def __init__(self, own: Plan, rounds: tuple[int, ...]) -> None:
        super().__init__(own, rounds)
        self.x = [self.weights[0].copy() for _ in self.batches]
        self.began = [self.weights[0].copy() for _ in self.batches]
        """Where each number was taken in last."""
        self.memories = [self.outer_memory() for _ in range(PARTS)]
        self.most_parts = 0

    def part(self, version: int) -> Array:
        length = -(-len(self.weights[0]) // PARTS)
        return np.arange(len(self.weights[0])) // length == version % PARTS

    def execute(self, row: Row) -> None:
        if row.agent >= len(self.batches):
            self.update(row)
            return
        (read,) = row.reads
        i, here = row.agent, self.part(row.step)
        self.take_in(i, here, self.weights[read.version])
        self.x[i] = self.trained(i, self.x[i])
        self.sent[i, row.step + 1] = (self.message(i), read.version)

    def take_in(self, i: int, here: Array, center: Array) -> None:
        alpha = getattr(self.plan.config.algorithm, "alpha", 0.0)
        self.x[i] = np.where(here, alpha * self.x[i] + (1 - alpha) * center, self.x[i])
        self.began[i] = np.where(here, self.x[i], self.began[i])

    def message(self, i: int) -> Array:
        return self.began[i] - self.x[i]

    def update(self, row: Row) -> None:
        following, parts = self.weights[-1].copy(), {read.version % PARTS for read in row.reads}
        self.most_parts = max(self.most_parts, len(parts))
        for part in parts:
            reads = [read for read in row.reads if read.version % PARTS == part]
            following = np.where(self.part(part), self.moved_by(part, reads), following)
        self.weights.append(following)

    def tau(self, read: Read) -> int:
        tau = len(self.weights) - 1 - self.sent[read.neighbor, read.version][1]
        self.latest = max(self.latest, tau)
        return tau

    def moved_by(self, part: int, reads: list[Read]) -> Array:
        rule: Any = self.plan.config.algorithm
        shares = {read[:2]: self.share(read.neighbor) for read in reads}
        total = np.zeros_like(self.weights[0])
        for read in reads:
            weight = shares[read[:2]] * weight_of(rule.weighting, self.tau(read))
            total += weight * self.sent[read.neighbor, read.version][0]
        self.outer = self.memories[part]
        return self.moved(rule.outer, total / sum(shares.values()))


class FedAsyncInParts(StreamingReference):
    def message(self, i: int) -> Array:
        return self.x[i]

    def gradient(self, worker: int, weights: Array) -> Array:
        rule: Any = self.plan.config.algorithm
        return super().gradient(worker, weights) + rule.proximal * (weights - self.began[worker])

    def moved_by(self, part: int, reads: list[Read]) -> Array:
        rule: Any = self.plan.config.algorithm
        moves = [
            rule.mix * weight_of(rule.weighting, self.tau(read)) * (self.sent[read[:2]][0] - self.weights[-1])
            for read in reads
        ]
        return self.weights[-1] + np.mean(moves, axis=0)  # type: ignore[no-any-return]


class ElasticInParts(StreamingReference):
    """Both sides of a spring move by what they differ in the part."""

    def take_in(self, i: int, here: Array, center: Array) -> None:
        alpha = self.plan.config.algorithm.alpha  # type: ignore[union-attr]
        self.x[i] = np.where(here, self.x[i] - alpha * (self.x[i] - center), self.x[i])

    def message(self, i: int) -> Array:
        return self.x[i]

    def moved_by(self, part: int, reads: list[Read]) -> Array:
        alpha = self.plan.config.algorithm.alpha  # type: ignore[union-attr]
        center = self.weights[-1]
        for read in reads:
            self.tau(read)
        return center + alpha * sum((self.sent[read[:2]][0] - center for read in reads), np.zeros_like(center))
