"""Averaging between peers in float64, by the formulas of each method: what ``Reference`` has for PC-ASGD."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ray_pcasgd.base.randomness import generator
from ray_pcasgd.runs.plan.plan import Plan
from tests.references.attacks import lie
from tests.references.peers import Array, Reference
from tests.references.screens import screened

Matrix = Callable[[int], Array]
"""The mixing matrix of a step."""


def one_peer(number: int) -> Matrix:
    """At step t each reads the one 2^(t mod T) places after it, and keeps half of its own (Ying et al. 2021)."""
    distances = [2**power for power in range(number) if 2**power < number]

    def at(step: int) -> Array:
        mixing = np.zeros((number, number))
        for i in range(number):
            mixing[i, i] = mixing[i, (i + distances[step % len(distances)]) % number] = 0.5
        return mixing

    return at


def hierarchical(groups: Sequence[Sequence[int]], inside: int) -> Matrix:
    """``inside`` steps within groups, then one of the groups' first agents, of their second ones, and so on."""
    number = sum(map(len, groups))

    def at(step: int) -> Array:
        mixing = np.zeros((number, number))
        for group in groups:
            for rank, i in enumerate(group):
                others = [one[rank] for one in groups if len(one) > rank]
                for k in group if step % (inside + 1) < inside else others:
                    mixing[i, k] = 1 / (len(group) if step % (inside + 1) < inside else len(others))
        return mixing

    return at


class PlainReference(Reference):
    """``x_i <- sum_k W(t)_ik x_k - eta u_i``; who is not read leaves its weight to the agent."""

    def __init__(self, own: Plan, matrix: Matrix | None = None) -> None:
        super().__init__(own, None)
        self.matrix = matrix

    def averaged(self, i: int, version: int, reads: Any) -> Array:
        if self.matrix is None:
            spec = self.own.specs[i]
            weights = dict(zip(spec.neighbors, spec.mixing, strict=True))  # type: ignore[attr-defined]
        else:
            weights = dict(enumerate(self.matrix(version)[i]))
        others = {read.neighbor: self.sent("weights", *read[:2], self.versions[read[:2]]) for read in reads}
        own = 1 - sum(weights[k] for k in others)
        nothing = np.zeros_like(self.task.start)
        return own * self.versions[i, version] + sum((weights[k] * x for k, x in others.items()), nothing)

    def taken(self, i: int, version: int, reads: Any) -> Array:
        return self.averaged(i, version, reads) - self.displacement[i, version]


class DCS3GDReference(PlainReference):
    """``g + lambda_i g .* g .* D_i``, D_i the way to the average, before momentum (Rigazzi 2019, eqs. 9 to 17)."""

    def __init__(self, own: Plan) -> None:
        super().__init__(own)
        self.lambda_0: float = own.config.algorithm.lambda_0  # type: ignore[union-attr]
        self.gradients: dict[tuple[int, int], Array] = {}

    def compute(self, i: int, version: int, start: Array | None = None) -> None:
        self.gradients[i, version] = self.task.gradient(i, version, self.versions[i, version])

    def taken(self, i: int, version: int, reads: Any) -> Array:
        x, g = self.versions[i, version], self.gradients[i, version]
        mean = self.averaged(i, version, reads)
        change, length = g * g * (mean - x), 0.0
        if np.linalg.norm(mean - x) > 1e-9 * np.linalg.norm(x):  # else it is rounding
            length = float(np.linalg.norm(change))
        corrected = g + (self.lambda_0 * float(np.linalg.norm(g)) / length * change if length else 0.0)
        self.velocity[i] = 0.9 * self.velocity[i] + corrected + 0.01 * x
        return mean - self.eta(version) * self.velocity[i]


class ImportanceReference(PlainReference):
    """The step counts q / p: the share of the samples over that of the steps (Du, You, Mo 2020), one step added."""

    def taken(self, i: int, version: int, reads: Any) -> Array:
        samples = [len(self.own.specs[k].shard) for k in (i, *(read.neighbor for read in reads))]
        steps = [version + 1, *(read.version + read.staleness + 1 for read in reads)]
        weight = min(10.0, (samples[0] / sum(samples)) / (steps[0] / sum(steps)))
        return self.averaged(i, version, reads) - weight * self.displacement[i, version]


class GossipReference(PlainReference):
    """``x_i <- (x_i + x_k) / 2`` with each that is read, one after another (Jin et al. 2016)."""

    def averaged(self, i: int, version: int, reads: Any) -> Array:
        x = self.versions[i, version]
        for read in reads:
            x = (x + self.versions[read[:2]]) / 2
        return x


class ScreenedReference(PlainReference):
    """BRIDGE: ``y_i - eta u_i``, y_i what the screen makes of what was read, or of its prediction."""

    def averaged(self, i: int, version: int, reads: Any) -> Array:
        rule: Any = self.own.config.algorithm
        spec, x, eta = self.own.specs[i], self.versions[i, version], self.eta(version)
        weights = dict(zip(spec.neighbors, spec.mixing, strict=True))  # type: ignore[attr-defined]
        others, shares = [], []
        for read in reads:
            k, v, tau = read[:3]
            x_k = self.sent("weights", k, v, self.versions[k, v])
            if tau and rule.late == "clip":
                continue
            if tau and rule.late == "predict":
                x_k = x_k - eta * tau * self.displacement[k, v] / self.step_sizes[k, v]
            others.append(x_k)
            shares.append(weights[k])
        if len(others) < rule.screen.least(rule.attackers, center_votes=True):
            return x
        return screened(rule.screen, x, np.array(others), rule.attackers, np.array(shares), center_votes=True)


def lying(kind: type[PlainReference], own: Plan) -> PlainReference:
    """Return a reference of a run with attackers, who send lies from version 1 on."""
    assert own.config.faults is not None
    attack, liars, seed = own.config.faults.attack, own.config.faults.agents, own.config.seed

    class Lying(kind):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            super().__init__(own)
            self.known: dict[int, dict[int, Array]] = {i: {} for i in liars}
            self.old: dict[int, Array] = {}
            self.told: dict[tuple[int, int], Array] = {}
            self.sent = lambda what, agent, version, vector: self.told.get((agent, version), vector)

        def taken(self, i: int, version: int, reads: Any) -> Array:
            following: Array = super().taken(i, version, reads)
            if i in liars:
                for read in reads:
                    if read.neighbor not in liars:
                        self.known[i][read.neighbor] = self.versions[read[:2]]
                number = version + 1
                if number == 1 or number % getattr(attack, "period", 1) == 0:
                    self.old[i] = following
                random = generator(seed, "attack", i, number)
                honest = [self.known[i][k] for k in sorted(self.known[i])]
                self.told[i, number] = lie(attack, following, honest, self.old[i], random)
            return following

    return Lying()
