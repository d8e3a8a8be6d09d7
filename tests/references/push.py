"""Push-sum in float64: every share is sent once, and no mass is lost (Assran et al. 2019, algorithm 1)."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from ray_pcasgd.records import Row

Array = NDArray[np.float64]


class PushReference:
    """Agents' biased weights ``x`` and masses ``w``; ``sent`` is what is under way, by sender, reader and version."""

    def __init__(self, start: Array, shares: Array, rows: Iterable[Row], num_steps: int) -> None:
        self.shares, self.num_steps = shares, num_steps
        self.number = len(shares)
        self.held = {row[:2]: row.held for row in rows}
        self.x = [start.copy() for _ in range(self.number)]
        self.w = [1.0] * self.number
        self.sent: dict[tuple[int, int, int], tuple[Array, float]] = {}
        for k in range(self.number):
            self.send(k, 0)

    def send(self, k: int, version: int) -> None:
        """Split a version; what is left in ``x`` and ``w`` is the agent's own share, and what it could not send."""
        kept = self.shares[k, k]
        for i in range(self.number):
            if i != k and self.shares[i, k]:
                if i in self.held[k, version]:
                    kept += self.shares[i, k]
                else:
                    self.sent[k, i, version] = self.shares[i, k] * self.x[k], self.shares[i, k] * self.w[k]
        self.x[k], self.w[k] = kept * self.x[k], kept * self.w[k]

    def take(self, row: Row, moved: Array) -> Array:
        """Take in what a row reads, then ``moved``, less where there is little mass; return the step that was taken."""
        i = row.agent
        for read in row.reads:
            vector, mass = self.sent.pop((read.neighbor, i, read.version))
            self.x[i], self.w[i] = self.x[i] + vector, self.w[i] + mass
        # Steps grow as the mass falls, down to a quarter of it.
        step: Array = min(1.0, self.w[i] / 0.25) * moved
        self.x[i] = self.x[i] - step
        self.weights, self.mass = self.x[i] / self.w[i], self.w[i]
        if row.step + 1 < self.num_steps:
            self.send(i, row.step + 1)
        return step
