"""Kardam's two filters with lists and loops (Damaskinos et al., ICML 2018, arXiv 1802.07928, sections 3.2 and 3.3)."""

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class SlowKardam:
    """The algorithm with lists and loops, from its formulas."""

    def __init__(self, workers: int, attackers: int, window: int, size: int) -> None:
        self.n, self.f, self.window = workers, attackers, window
        self.before: dict[int, tuple[Array, Array]] = {}
        self.growths: dict[int, list[float]] = {}
        self.accepted: list[int] = []
        self.last: tuple[Array, Array] = (np.zeros(size), np.zeros(size))
        self.in_a_row = 0
        self.sent = [0] * workers
        """Since the last gradient that passed both filters."""
        self.unfiltered = False
        """Whether the last one was accepted without the frequency filter."""

    def takes(self, worker: int, gradient: Array, at: Array, present: Array) -> bool:
        if worker in self.before:
            old, place = self.before[worker]
            if (distance := float(np.linalg.norm(at - place))) > 0:
                own = self.growths.setdefault(worker, [])
                own.append(float(np.linalg.norm(gradient - old)) / distance)
        self.before[worker] = gradient, at
        passes = self.passes(gradient, present)
        if not passes:
            self.in_a_row += 1
        self.sent[worker] += 1
        recent = [*self.accepted[-2 * self.f :], worker] if self.f else [worker]
        counts = sorted((recent.count(k) for k in set(recent)), reverse=True)
        is_frequent = sum(counts[: self.f]) > self.f
        self.unfiltered = passes and is_frequent and self.is_left_with_few()
        if not passes or (is_frequent and not self.unfiltered):
            return False
        if not is_frequent:
            self.accepted.append(worker)
            self.sent = [0] * self.n
        self.last, self.in_a_row = (gradient, present), 0
        return True

    def is_left_with_few(self) -> bool:
        """Whether f + 1 workers have sent n times as many as all but 2f others, counted from 1."""
        others = sorted(self.sent)[: self.n - 2 * self.f]
        return sum(number >= self.n * (1 + max(others)) for number in self.sent) > self.f

    def passes(self, gradient: Array, present: Array) -> bool:
        largest = sorted(max(own[-self.window :]) for own in self.growths.values())
        distance = float(np.linalg.norm(present - self.last[1]))
        if not largest or distance == 0 or self.in_a_row >= self.n:
            return True
        quantile = largest[math.ceil(len(largest) * (self.n - self.f) / self.n) - 1]
        return float(np.linalg.norm(gradient - self.last[0])) / distance <= quantile
