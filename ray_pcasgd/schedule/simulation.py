"""What the three planners share: time in whole nanoseconds, a calendar, links whose messages keep their order."""

import heapq
from dataclasses import dataclass
from typing import Generic, TypeVar

from ray_pcasgd.schedule.delays import ComputeTimes, LinkDelay, LinkTimes

_A_SECOND = 1_000_000_000
"""In nanoseconds, which are whole so that equal times are equal."""


def in_seconds(moment: int) -> float:
    """Return a moment, in nanoseconds, in seconds."""
    return moment / _A_SECOND


def row_times(start: int, ready: int, end: int) -> tuple[float, float, float]:
    """Return the three times of a row, in nanoseconds, in seconds."""
    return in_seconds(start), in_seconds(ready), in_seconds(end)


def in_nanoseconds(seconds: float) -> int:
    """Return seconds in whole nanoseconds."""
    return round(seconds * _A_SECOND)


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What a planner of any family is given."""

    num_steps: int
    """Steps that each agent takes."""
    compute: ComputeTimes
    links: tuple[LinkDelay, ...]
    clusters: tuple[int, ...]
    """The cluster of each agent, servers included."""
    seed: int


class Computing:
    """The gradients of one agent, one after another."""

    def __init__(self, timing: Timing, agent: int) -> None:
        self._sample = timing.compute.sampler(timing.seed, agent)

    def ready_at(self, now: int, num_batches: int = 1) -> int:
        """Return when the gradients of the next mini-batches are ready, which are begun now."""
        begun, taken = in_seconds(now), 0.0
        for _ in range(num_batches):
            taken += self._sample(begun + taken)
        return now + in_nanoseconds(taken)


class Channel:
    """One direction of one link; messages never overtake each other."""

    def __init__(self, timing: Timing, sender: int, receiver: int) -> None:
        self._times = LinkTimes(timing.links, timing.clusters, timing.seed, sender, receiver)
        self._last_arrival = 0

    def arrival(self, version: int, now: int) -> int:
        """Return when the message of a version arrives that is sent now."""
        latency = in_nanoseconds(self._times.latency_seconds(version, in_seconds(now)))
        self._last_arrival = max(self._last_arrival, now + latency)
        return self._last_arrival

    def hold_steps(self, position: int, now: int) -> int:
        """Return the steps for which the weights of a message that is sent now, at that position, are held back."""
        return self._times.hold_steps(position, in_seconds(now))


Content = TypeVar("Content")


class Calendar(Generic[Content]):
    """Events to come, the earliest first; at one moment by rank, then in the order in which they were entered."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, tuple[int, ...], int, Content]] = []
        self._count = 0

    def enter(self, moment: int, content: Content, *rank: int) -> None:
        """Enter an event, the lowest rank first."""
        self._count += 1
        heapq.heappush(self._heap, (moment, rank, self._count, content))

    def pop(self) -> tuple[int, Content]:
        """Return the next moment and its first event, which is taken out."""
        moment, _, _, content = heapq.heappop(self._heap)
        return moment, content

    @property
    def next_moment(self) -> int | None:
        """The moment of the next event; ``None`` where there is none."""
        return self._heap[0][0] if self._heap else None
