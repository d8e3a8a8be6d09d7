"""FedGLOMO and FedLOMO in float64 (Das et al., arXiv 2012.04061)."""

from collections.abc import Callable
from typing import Any

import numpy as np

from ray_pcasgd.records import Row
from ray_pcasgd.runs.plan.plan import Plan
from tests.references.peers import SIZE, Array, gradient_of


class FedGLOMOReference:
    """Runs rows on linear regression as the formulas say; ``eta_at`` is the step size at a worker's own step."""

    def __init__(self, own: Plan, eta_at: Callable[[int], float]) -> None:
        config, self.own, self.eta_at = own.config, own, eta_at
        self.workers = config.num_agents
        self.rule: Any = config.algorithm
        given = config.local_steps
        self.rounds = given if isinstance(given, tuple) else (given,) * self.workers
        model = config.task.build_model(own.data, config.seed)
        self.x = [np.concatenate([one.detach().double().numpy().ravel() for one in model.parameters()])]
        workers = own.specs[: self.workers]
        self.batches = [
            config.task.batches(own.data, spec.shard, config.batch_size, config.seed, spec.agent) for spec in workers
        ]
        self.shards = [[part.double().numpy() for part in own.data.train.take(spec.shard)] for spec in workers]
        self.taken = [0] * self.workers
        self.before: list[Array | None] = [None] * self.workers
        self.sent: dict[tuple[int, int], tuple[Array, Array]] = {}
        self.u = np.zeros(SIZE + 1)
        self.took: set[int] = set()
        self.dropped = 0

    def gradient(self, x: Array, batch: list[Array]) -> Array:
        decay = self.own.config.optimizer.weight_decay * x  # type: ignore[union-attr]
        return gradient_of(x, *batch) + decay

    def descent(self, x: Array, i: int) -> Array:
        """Return where the worker's round leads from x."""
        w, before, v = x, x, np.zeros_like(x)
        for step in range(self.rounds[i]):
            number = self.taken[i] + step
            batch = [part.double().numpy() for part in self.batches[i].at(number)]
            if step == 0:
                v = self.gradient(w, self.shards[i] if self.rule.first == "shard" else batch)
            else:
                v = self.gradient(w, batch) + v - self.gradient(before, batch)
            before, w = w, w - self.eta_at(number) * v
        return w

    def run(self, row: Row) -> None:
        if row.kind == "rejoined":
            self.before[row.agent] = None
            self.taken[row.agent] = (row.step + 1) * self.rounds[row.agent]
        elif row.agent >= self.workers:
            self.update(row)
        else:
            (read,) = row.reads[:1]
            i, x, before = row.agent, self.x[read.version], self.before[row.agent]
            delta = x - self.descent(x, i)
            change = np.zeros_like(delta) if before is None else delta - (before - self.descent(before, i))
            self.sent[i, row.step + 1] = delta, change
            self.before[i] = x
            self.taken[i] += self.rounds[i]

    def update(self, row: Row) -> None:
        deltas = [self.sent[read.neighbor, read.version][0] for read in row.reads]
        changes = [self.sent[read.neighbor, read.version][1] * (read.neighbor in self.took) for read in row.reads]
        beta, first = self.rule.beta, not self.took
        self.dropped += sum(read.neighbor not in self.took for read in row.reads)
        mean = np.mean(deltas, axis=0)
        self.u = mean if first else beta * mean + (1 - beta) * self.u + (1 - beta) * np.mean(changes, axis=0)
        self.took = {read.neighbor for read in row.reads}
        self.x.append(self.x[-1] - self.u)
