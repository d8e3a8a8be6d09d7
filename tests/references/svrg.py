"""Asynchronous SVRG in float64 (Huo & Huang, arXiv 1604.03584, algorithm 2)."""

import numpy as np

from ray_pcasgd.records import Row
from ray_pcasgd.runs.plan.plan import Plan
from tests.references.peers import SIZE, Array, gradient_of


class SVRGReference:
    """Runs rows on linear regression as the algorithm says: mu over all samples at once, v at the server."""

    def __init__(self, own: Plan, updates: int) -> None:
        config, self.own, self.updates = own.config, own, updates
        self.workers = config.num_agents
        model = config.task.build_model(own.data, config.seed)
        self.x = [np.concatenate([one.detach().double().numpy().ravel() for one in model.parameters()])]
        workers = own.specs[: self.workers]
        self.batches = [
            config.task.batches(own.data, spec.shard, config.batch_size, config.seed, spec.agent) for spec in workers
        ]
        self.shards = [[part.double().numpy() for part in own.data.train.take(spec.shard)] for spec in workers]
        self.total = sum(len(spec.shard) for spec in workers)
        self.sent: dict[tuple[int, int], Array | None] = {}
        self.anchor: Array = self.x[0]
        self.mu = np.zeros(SIZE + 1)
        self.there = dict.fromkeys(range(self.workers), True)

    def is_snapshot(self, version: int) -> bool:
        return version % (self.updates + 1) == 0

    def run(self, row: Row) -> None:
        if row.kind == "rejoined":
            self.there[row.agent] = False
        elif row.agent == self.workers:
            self.update(row)
        else:
            (read,) = row.reads
            i, x = row.agent, self.x[read.version]
            if self.is_snapshot(read.version):
                self.there[i] = True
                self.sent[i, row.step + 1] = None
                return
            batch = [part.double().numpy() for part in self.batches[i].at(row.step)]
            anchor = self.x[read.version - read.version % (self.updates + 1)]
            share = len(self.shards[i][0]) / (self.total / self.workers)
            v = share * (gradient_of(x, *batch) - gradient_of(anchor, *batch)) + self.mu
            self.sent[i, row.step + 1] = v if self.there[i] else np.zeros(SIZE + 1)

    def update(self, row: Row) -> None:
        if not self.is_snapshot(row.step):
            (read,) = row.reads
            v = self.sent[read.neighbor, read.version]
            assert v is not None
            self.x.append(self.x[-1] - 0.05 * v)
            return
        assert all(self.sent[read.neighbor, read.version] is None for read in row.reads)
        of = [self.shards[read.neighbor] for read in row.reads]
        inputs, targets = (np.concatenate([shard[k] for shard in of]) for k in (0, 1))
        self.mu = gradient_of(self.x[-1], inputs, targets)
        self.x.append(self.x[-1])
