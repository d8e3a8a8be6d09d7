"""Ringmaster, Rennala, Malenia, Ringleader and IA2SGD as simulations written from the papers: events, no schedule."""

import heapq
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Workers:
    """Who finishes next, and at which point."""

    def __init__(
        self, seconds: Sequence[float], start: Array, gradient: Callable[[int, Array], Array], step_size: float
    ) -> None:
        self.seconds, self.gradient, self.step_size = seconds, gradient, step_size
        self.number = len(seconds)
        self.points: list[Array] = [start]
        self.heap = [(own, k, 0) for k, own in enumerate(seconds)]
        heapq.heapify(self.heap)

    def next(self) -> tuple[int, int, Array]:
        """Return who finishes, the version that it has computed at, and its gradient; it has to be started again."""
        self.now, worker, version = heapq.heappop(self.heap)
        return worker, version, self.gradient(worker, self.points[version])

    def start(self, worker: int, version: int) -> None:
        heapq.heappush(self.heap, (self.now + self.seconds[worker], worker, version))

    def stop(self, worker: int) -> None:
        self.heap = [one for one in self.heap if one[1] != worker]
        heapq.heapify(self.heap)

    def update(self, direction: Array) -> int:
        self.points.append(self.points[-1] - self.step_size * direction)
        return len(self.points) - 1


def ringmaster(own: Workers, updates: int, threshold: int, stops: bool) -> list[Array]:
    """Algorithms 4 and 5, with a counter of delays for each worker."""
    delays = [0] * own.number
    while len(own.points) <= updates:
        worker, _, gradient = own.next()
        if delays[worker] < threshold:
            own.update(gradient)
            delays = [delay + 1 for delay in delays]
        own.start(worker, len(own.points) - 1)
        delays[worker] = 0
        for late in [k for k, delay in enumerate(delays) if stops and delay >= threshold]:
            own.stop(late)
            own.start(late, len(own.points) - 1)
            delays[late] = 0
    return own.points


def rennala(own: Workers, updates: int, size: int) -> list[Array]:
    batch = list[Array]()
    while len(own.points) <= updates:
        worker, version, gradient = own.next()
        if version == len(own.points) - 1:
            batch.append(gradient)
        if len(batch) == size:
            own.update(np.mean(batch, axis=0))
            batch = []
        own.start(worker, len(own.points) - 1)
    return own.points


def mean_of_table(table: dict[int, list[Array]]) -> Array:
    """Return the mean of the workers' own means; all of them are in the table."""
    return np.asarray(np.mean([np.mean(entry, axis=0) for entry in table.values()], axis=0))


def malenia(own: Workers, updates: int, target: float) -> list[Array]:
    table = dict[int, list[Array]]()
    while len(own.points) <= updates:
        worker, version, gradient = own.next()
        if version == len(own.points) - 1:
            table.setdefault(worker, []).append(gradient)
            if len(table) == own.number and len(table) / sum(1 / len(one) for one in table.values()) >= target:
                own.update(mean_of_table(table))
                table = {}
        own.start(worker, len(own.points) - 1)
    return own.points


def ringleader(own: Workers, updates: int) -> list[Array]:
    """Algorithm 1: two tables, two phases, and each worker's own point."""
    table = dict[int, list[Array]]()
    while len(own.points) <= updates:
        while True:
            worker, version, gradient = own.next()
            table.setdefault(worker, []).append(gradient)
            if len(table) == own.number:
                break
            own.start(worker, version)
        own.start(worker, own.update(mean_of_table(table)))
        left, following = set(range(own.number)) - {worker}, dict[int, list[Array]]()
        while left:
            worker, version, gradient = own.next()
            if worker in left:
                left.remove(worker)
                table[worker].append(gradient)
                own.start(worker, own.update(mean_of_table(table)))
            else:
                following.setdefault(worker, []).append(gradient)
                own.start(worker, version)
        table = following
    return own.points


def ia2sgd(own: Workers, updates: int) -> list[Array]:
    table = dict[int, list[Array]]()
    while len(own.points) <= updates:
        worker, _, gradient = own.next()
        if len(own.points) == 1:
            table.setdefault(worker, []).append(gradient)
        else:
            table[worker] = [gradient]
        if len(table) == own.number:
            own.update(mean_of_table(table))
        own.start(worker, len(own.points) - 1)
    return own.points
