"""Agents that are averaged pair by pair, in float64, event after event: AD-PSGD, and A2CiD2's twins."""

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import expm

from ray_pcasgd.records import Row
from ray_pcasgd.rules.acid import ACiD

Array = NDArray[np.float64]


class PairReference:
    """AD-PSGD (Lian et al. 2018, algorithm 1): both of a pair become its mean; then who asked takes its step."""

    def __init__(self, start: Array, number: int) -> None:
        self.start, self.x = start, [start.copy() for _ in range(number)]
        self.at = [0] * number
        self.before: dict[tuple[int, int], Array] = {}

    def take(self, row: Row, moved: Array) -> None:
        i = row.agent
        # What it is averaged with is where that one is, or was when it sent its answer.
        self.before[i, self.at[i]] = self.x[i]
        found = [self.before.get(read[:2], self.x[read.neighbor]) for read in row.reads]
        if row.kind == "rejoined":
            self.x[i] = np.mean(found, axis=0) if found else self.start
        elif found:
            self.x[i] = (self.x[i] + found[0]) / 2
        if row.kind == "step":
            self.x[i] = self.x[i] - moved
        self.at[i] = row.step + 1


class ACiDReference:
    """The agents of algorithm 1 in float64, event after event; matrix exponentials are SciPy's."""

    def __init__(self, start: Array, number: int, settings: ACiD, rows: list[Row]) -> None:
        assert settings.mixing_rate is not None
        assert settings.twin_step is not None
        self.eta, self.step, self.given = settings.mixing_rate, settings.twin_step, settings.gradient_seconds
        self.pairs = [np.stack([start, start]) for _ in range(number)]
        self.clock = [0.0] * number
        self.seconds: list[list[float]] = [[] for _ in range(number)]
        self.rows = {row[:2]: row for row in rows if row.kind != "rejoined"}
        self.sent: dict[tuple[int, int], Array] = {}
        self.left = {(agent, 0): self.pairs[agent] for agent in range(number)}
        """Weights and twin of each version as its agent came to it."""

    def unit(self, agent: int) -> float:
        if self.given is not None:
            return self.given
        mean = 0.0
        for number, seconds in enumerate(self.seconds[agent]):
            mean = seconds if number == 0 else 0.5 * mean + 0.5 * seconds
        return mean

    def flow(self, agent: int, moment: float) -> None:
        unit = self.unit(agent)
        t = (moment - self.clock[agent]) / unit if unit else 0.0
        self.pairs[agent] = expm(t * self.eta * np.array([[-1, 1], [1, -1.0]])) @ self.pairs[agent]
        self.clock[agent] = moment

    def send(self, agent: int, version: int, asked: Row) -> None:
        """Let an agent come to the moment at which it averages next: its row says that, or else whom it has asked."""
        if (agent, version) in self.sent:
            return
        row = self.rows.get((agent, version))
        if row is None or row.kind == "step":
            step = asked if row is None else row
            self.seconds[agent].append(step.ready - step.start)
            self.flow(agent, step.ready)
        else:
            self.flow(agent, row.end)
        self.sent[agent, version] = self.pairs[agent][0]

    def take(self, row: Row, moved: Array) -> None:
        i = row.agent
        if row.kind == "rejoined":
            found = [self.left[read[:2]] for read in row.reads]
            self.pairs[i] = np.mean(found, axis=0) if found else self.left[i, 0]
            self.clock[i], self.seconds[i] = row.end, []
            self.left[i, row.step + 1] = self.pairs[i]
            return
        self.send(i, row.step, row)
        for k, version, *_ in row.reads:
            self.send(k, version, row)
            delta = self.sent[i, row.step] - self.sent[k, version]
            self.pairs[i] = self.pairs[i] - np.stack([delta / 2, self.step * delta])
        if row.kind == "step":
            self.flow(i, row.end)
            self.pairs[i] = self.pairs[i] - moved
        self.left[i, row.step + 1] = self.pairs[i]
