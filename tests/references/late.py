"""The rules of ``rules.py`` on a plan's rows, whatever the agents' speeds."""

from typing import Any

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
            {read.neighbor: self.direction(read.neighbor, read.version) for read in row.reads},
            there,
            1.0 - sum(there.values()),
            eta_at(row.step),
            lambda x: self.task.loss(row.agent, number, np.array(x), "probes"),
        )


class DisplacementReference(LateReference):
    """Neighbors are rolled forward by their mean displacement between the versions that were read, 0.8 of it kept."""

    def __init__(self, own: Plan, method: Method) -> None:
        super().__init__(own, method)
        start = self.task.start
        self.known: dict[tuple[int, int], tuple[int, Array, Array | None]] = {
            (i, k): (0, start, None) for i in self.paths for k in self.paths
        }

    def moment(self, row: Row) -> Moment:
        found, directions = super().moment(row), {}
        for read in row.reads:
            pair = row.agent, read.neighbor
            version, before, mean = self.known[pair]
            if read.version > version:
                passed, x = read.version - version, np.array(found.heard[read.neighbor])
                velocity = (before - x) / passed
                if mean is not None:
                    velocity = 0.8**passed * mean + (1 - 0.8**passed) * velocity
                self.known[pair] = read.version, x, velocity
            mean = self.known[pair][2]
            directions[read.neighbor] = [0.0] * len(before) if mean is None else (mean / eta_at(row.step)).tolist()
        return found._replace(directions=directions)


class VelocityReference(LateReference):
    """The agent takes its own path for straight: its drift is that of its mean velocity over ten steps or so."""

    def moment(self, row: Row) -> Moment:
        path = [np.array(x) for x in self.paths[row.agent]]
        velocity = np.zeros_like(path[0])
        for step in range(1, len(path)):
            change = path[step] - path[step - 1]
            velocity = (velocity * (step - 1) + change) / step if step <= 10 else 0.9 * velocity + 0.1 * change
        straight = [(path[-1] - (len(path) - 1 - step) * velocity).tolist() for step in range(len(path) - 1)]
        return super().moment(row)._replace(path=[*straight, path[-1].tolist()])


class CurvatureReference(VelocityReference):
    """PC-ASGD's default: the bound by ``u' H u / u' u`` of the late neighbors' mean direction u, now and then."""

    def __init__(self, own: Plan, method: Method) -> None:
        super().__init__(own, method)
        self.stability: Any = own.config.algorithm.stability  # type: ignore[union-attr]
        self.batches = self.task.stream("curvature")
        self.curvature = dict.fromkeys(self.paths, 0.0)
        self.due = dict.fromkeys(self.paths, 0)

    def moment(self, row: Row) -> Moment:
        i, found = row.agent, super().moment(row)
        late = [link for link in found.links if link.staleness and not link.reliable]
        if late and row.step >= self.due[i]:
            u = sum(found.mixing[link.neighbor] * np.array(found.directions[link.neighbor]) for link in late)
            inputs = self.batches[i].at(row.step)[0].double().numpy()
            columns = np.hstack([inputs, np.ones((len(inputs), 1))])
            measured = 2 * float(((columns @ u) ** 2).mean() / (u @ u))
            known = self.curvature[i]
            self.curvature[i], self.due[i] = (
                ((known + measured) / 2 if known else measured),
                row.step + self.stability.every,
            )
        trust = min(1.0, row.step / self.stability.warmup)
        return found._replace(curvature=self.curvature[i], trust=trust)
