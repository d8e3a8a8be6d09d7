"""The rules of ``rules.py`` on a plan's rows, whatever the agents' speeds."""

import numpy as np

from ray_pcasgd.records import Read, Row
from ray_pcasgd.runs.plan.plan import Plan
from tests.references.peers import Array, Regression, eta_at
from tests.references.rules import Memory, Method, Moment, Vector, step_of
from tests.unit.scenarios import Link


class LateReference:
    """Agents that step by their mini-batch gradients, without momentum, and read what the rows say."""

    def __init__(self, own: Plan, method: Method) -> None:
        self.own, self.method, self.task = own, method, Regression(own)
        start = self.task.start
        self.paths: dict[int, list[Vector]] = {spec.agent: [start.tolist()] for spec in own.specs}
        first = method.candidates[0]
        self.memories = {i: Memory(smoothed=[0.0] * len(start), choice=first) for i in self.paths}

    def run(self) -> dict[tuple[int, int], Array]:
        """Return all versions of all agents."""
        for row in self.own.schedule:
            assert row is not None
            x, _, _ = step_of(self.method, self.moment(row), self.memories[row.agent])
            self.paths[row.agent].append(x)
        return {(i, v): np.array(x) for i, path in self.paths.items() for v, x in enumerate(path)}

    def direction(self, agent: int, version: int) -> Vector:
        vector: Vector = self.task.gradient(agent, version, np.array(self.paths[agent][version])).tolist()
        return vector

    def trusts(self, agent: int, read: Read) -> bool:
        if self.own.config.reliability.name == "declared":
            return self.own.clusters[agent] == self.own.clusters[read.neighbor]
        return read.staleness == 0

    def moment(self, row: Row) -> Moment:
        spec, number = self.own.specs[row.agent], row.step // self.method.probe_every
        links = [Link(read.neighbor, read.staleness, read.age, self.trusts(row.agent, read)) for read in row.reads]
        mixing = dict(zip(spec.neighbors, spec.mixing, strict=True))  # type: ignore[attr-defined]
        there = {read.neighbor: mixing[read.neighbor] for read in row.reads}
        return Moment(
            row.agent,
            row.step,
            links,
            self.paths[row.agent],
            self.direction(row.agent, row.step),
            {read.neighbor: self.paths[read.neighbor][read.version] for read in row.reads},
            {read.neighbor: self.direction(read.neighbor, read.version) for read in row.reads if read.staleness},
            there,
            1.0 - sum(there.values()),
            eta_at(row.step),
            lambda x: self.task.loss(row.agent, number, np.array(x), "probes"),
        )
