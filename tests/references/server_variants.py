"""What takes the place of a plain mean, a plain view or a plain optimizer at a server, in float64."""

from typing import Any

import numpy as np

from ray_pcasgd.base.randomness import generator
from ray_pcasgd.records import Row
from ray_pcasgd.runs.plan.plan import Plan
from tests.references.attacks import lie
from tests.references.kardam import SlowKardam
from tests.references.screens import screened
from tests.references.servers import Array, Reference, weight_of
from tests.references.yellowfin import YellowFinReference


class KardamReference(Reference):
    """What a filter rejects moves nothing; what passes counts ``L(tau) g``."""

    def __init__(self, own: Plan) -> None:
        super().__init__(own)
        correction: Any = own.config.algorithm.correction  # type: ignore[union-attr]
        size = len(self.weights[0])
        self.filters = SlowKardam(len(self.batches), correction.attackers, correction.window, size)
        self.num_rejected = 0

    def update(self, row: Row) -> None:
        (read,) = row.reads
        gradient, version = self.messages[read[:2]]
        if self.filters.takes(read.neighbor, gradient, self.weights[version], self.weights[-1]):
            super().update(row)
            return
        self.weights.append(self.weights[-1])
        self.num_batches += 1
        self.num_rejected += 1

    def corrected(self, worker: int, g: Array, gap: Array, tau: int) -> Array:
        return weight_of(self.plan.config.algorithm.correction.weighting, tau) * g  # type: ignore[union-attr]


class ScreenedServer(Reference):
    """A screen takes the place of the mean of the corrected gradients; clipping is around the last one."""

    def __init__(self, own: Plan) -> None:
        super().__init__(own)
        self.center = np.zeros_like(self.weights[0])

    def mean(self, row: Row, corrected: list[Array]) -> Array:
        rule: Any = self.plan.config.algorithm
        number = len(corrected)
        shares, vectors = np.full(number, 1 / number), np.array(corrected)
        self.center = screened(rule.screen, self.center, vectors, rule.num_attackers, shares, center_votes=False)
        return self.center


class LiedToServer(Reference):
    """Attackers among the workers, who know what the server has taken of the honest last, this update included."""

    def __init__(self, own: Plan) -> None:
        super().__init__(own)
        assert own.config.faults is not None
        self.faults = own.config.faults
        self.last: dict[int, Array] = {}
        self.old: dict[int, Array] = {}

    def update(self, row: Row) -> None:
        liars, attack = self.faults.agents, self.faults.attack
        for read in row.reads:
            if read.neighbor not in liars:
                self.last[read.neighbor] = self.messages[read[:2]][0]
        honest = [self.last[k] for k in sorted(self.last)]
        for read in row.reads:
            k, number = read[:2]
            if k in liars:
                own, version = self.messages[k, number]
                random = generator(self.plan.config.seed, "attack", k, number)
                self.messages[k, number] = (lie(attack, own, honest, self.old.get(k, own), random), version)
        super().update(row)

    def execute(self, row: Row) -> None:
        super().execute(row)
        if row.agent in self.faults.agents and row.kind == "step":
            number, period = row.step + 1, getattr(self.faults.attack, "period", 1)
            if number == 1 or number % period == 0:
                self.old[row.agent] = self.messages[row.agent, number][0]


class ViewReference(Reference):
    """Workers compute at views, of which each block of numbers is that of a version drawn for it (PODC 2018)."""

    def at(self, version: int) -> Array:
        view: Any = self.plan.config.algorithm.view  # type: ignore[union-attr]
        size = len(self.weights[0])
        drawn = generator(self.plan.config.seed, "view", version)
        ages = drawn.integers(min(version, view.delay) + 1, size=-(-size // view.block))
        return np.array([self.weights[version - ages[place // view.block]][place] for place in range(size)])


def momentum_of(own: Any, k: int) -> float:
    """Return the momentum a^k: constant, or (k - 1) / (k + 2)."""
    if k == 0:
        return 0.0
    return (k - 1) / (k + 2) if own.momentum is None else float(own.momentum)


def b(own: Any, first: int, last: int) -> float:
    """B(l, k) as the double sum that it is."""
    products = (np.prod([momentum_of(own, q) for q in range(first, i + 1)]) for i in range(first, last + 1))
    return float(sum(products))


class NesterovReference(Reference):
    """``x^{k+1} = y^k - eta g``, and workers compute at ``y^j + B(j+1, j+tau) (y^j - x^j)`` (arXiv 1802.09747)."""

    def __init__(self, own: Plan) -> None:
        super().__init__(own)
        rule: Any = own.config.algorithm
        self.own: Any = rule.nesterov
        self.delay = rule.delay_of(len(self.batches))

    def y(self, k: int) -> Array:
        return self.weights[k] + momentum_of(self.own, k) * (self.weights[k] - self.weights[max(0, k - 1)])

    def at(self, version: int) -> Array:
        ahead = b(self.own, version + 1, version + self.delay) if self.own.compensate else 0.0
        return self.y(version) + ahead * (self.y(version) - self.weights[version])

    def update(self, row: Row) -> None:
        gradients = [self.messages[read[:2]][0] for read in row.reads]
        eta = self.step_size(self.num_batches // len(self.batches))
        self.weights.append(self.y(len(self.weights) - 1) - eta * np.mean(gradients, axis=0))
        self.num_batches += len(row.reads)


class YellowFinServer(Reference):
    """YellowFin over the mean gradient; how the weights have moved is asked around where gradients were computed."""

    def __init__(self, own: Plan) -> None:
        super().__init__(own)
        self.tuner = YellowFinReference(own.config.optimizer, self.weights[0])  # type: ignore[arg-type]
        self.before: list[int] = []

    def update(self, row: Row) -> None:
        x, trail = self.weights, None
        if self.before:
            after = np.mean([x[s + 1] - x[s] for s in self.before], axis=0)
            trail = (after, np.mean([x[s] - x[max(0, s - 1)] for s in self.before], axis=0))
        mean = np.mean([self.messages[read[:2]][0] for read in row.reads], axis=0)
        eta = self.step_size(self.num_batches // len(self.batches))
        moved = self.tuner.step(x[-1], mean, eta, trail)
        self.before = [len(x) - 1 - read.staleness for read in row.reads]
        x.append(x[-1] - eta * moved)
        self.num_batches += len(row.reads)
