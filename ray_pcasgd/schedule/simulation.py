"""What the three planners share: time in whole nanoseconds, a calendar, links whose messages keep their order."""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from ray_pcasgd.base.garbage import without_garbage_collection
from ray_pcasgd.schedule.bandwidth import transmission_nanoseconds
from ray_pcasgd.schedule.delays import ComputeTimes, LinkDelay, LinkTimes
from ray_pcasgd.schedule.hosts import Host
from ray_pcasgd.schedule.law_base import InBlocks
from ray_pcasgd.schedule.transfers import Downlink, HostPipes, Transfer, nanoseconds_of

A_SECOND = 1_000_000_000
"""In nanoseconds, which are whole so that equal times are equal."""

_LARGEST_EXACT = 2**53
"""Whole numbers up to it are floating-point numbers too."""


def in_seconds(moment: int) -> float:
    """Return a moment, in nanoseconds, in seconds."""
    return moment / A_SECOND


def seconds_of(moments: np.ndarray) -> np.ndarray:
    """Return moments, in nanoseconds, in seconds, each as ``in_seconds`` does."""
    if len(moments) and moments.max() > _LARGEST_EXACT:
        return np.array([in_seconds(moment) for moment in moments.tolist()])
    result: np.ndarray = moments / A_SECOND
    return result


def row_times(start: int, ready: int, end: int) -> tuple[float, float, float]:
    """Return the three times of a row, in nanoseconds, in seconds."""
    return in_seconds(start), in_seconds(ready), in_seconds(end)


def in_nanoseconds(seconds: float) -> int:
    """Return seconds in whole nanoseconds."""
    return round(seconds * A_SECOND)


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
    hosts: tuple[Host, ...] = ()
    """Machines whose agents share their uplinks and downlinks."""


class Computing:
    """The gradients of one agent, one after another."""

    def __init__(self, timing: Timing, agent: int) -> None:
        self._sample = timing.compute.sampler(timing.seed, agent)
        self._asked_at = 0.0
        """The latest second for which a mini-batch was drawn: moments never fall, but a round may be given up."""

    def ready_at(self, now: int, num_batches: int = 1) -> int:
        """Return when the gradients of the next mini-batches are ready, which are begun now."""
        return now + in_nanoseconds(self._seconds(now, num_batches))

    def _seconds(self, now: int, num_batches: int) -> float:
        begun, taken = in_seconds(now), 0.0
        for _ in range(num_batches):
            moment = begun + taken
            if moment > self._asked_at:
                self._asked_at = moment
            taken += self._sample(self._asked_at)
        return taken

    @property
    def ignores_moments(self) -> bool:
        """Whether how long a gradient takes does not depend on when it is begun."""
        return isinstance(self._sample, InBlocks)

    def round_seconds(self, now: int, batches: Sequence[int]) -> np.ndarray:
        """Return the seconds of rounds of so many mini-batches, one after another, shape (rounds,).

        The first begins now, and none of the others is longer than it.
        """
        sample, longest = self._sample, batches[0]
        if not isinstance(sample, InBlocks):
            return np.array(self._one_after_another(now, batches))
        if longest == 1:
            return sample.many(len(batches))
        seconds = np.zeros(len(batches) * longest)
        drawn = sample.many(sum(batches))
        seconds[: len(drawn)] = drawn
        # In the order of single steps: a sum in another order has other bits.
        result: np.ndarray = np.add.accumulate(seconds.reshape(-1, longest), axis=1)[:, -1]
        return result

    def _one_after_another(self, now: int, batches: Sequence[int]) -> list[float]:
        result = []
        for number in batches:
            result.append(self._seconds(now, number))
            now += in_nanoseconds(result[-1])
        return result


def computing_agents(timing: Timing, num_agents: int) -> list[Computing]:
    """Return the gradients of each agent."""
    with without_garbage_collection():
        return [Computing(timing, agent) for agent in range(num_agents)]


class Channel:
    """One direction of one link, all of whose messages have as many bytes; they never overtake each other.

    A message passes through the uplink of its sender's host, the link, and, after the link's delay, the downlink of
    its receiver's host; a pipe whose bandwidth is not limited takes no time. Uplink and link are passed as messages
    are sent. A downlink takes messages of other links too, in the order in which they come: where there is one, a
    message is to be entered there when it has come over the link.
    """

    __slots__ = (
        "_first",
        "_free",
        "_last",
        "_latency",
        "_nanoseconds",
        "_num_bytes",
        "_times",
        "_uplink",
        "_uplink_nanoseconds",
        "downlink",
        "downlink_nanoseconds",
        "has_steps",
    )

    def __init__(
        self,
        timing: Timing,
        sender: int,
        receiver: int,
        num_bytes: int = 0,
        pipes: HostPipes | None = None,
    ) -> None:
        self._num_bytes = num_bytes
        self._times = times = LinkTimes(timing.links, timing.clusters, timing.seed, sender, receiver)
        # What is the same for all messages is looked up once: most links never change.
        self._nanoseconds = self._transmission(0, 0) if times.has_lasting_bandwidth else None
        self._latency = in_nanoseconds(times.latency_seconds(0, 0.0)) if times.has_lasting_latency else None
        self.has_steps = times.has_steps
        """Whether messages are ever held back by steps."""
        self._uplink, self.downlink = (pipes or HostPipes()).between(sender, receiver)
        self._uplink_nanoseconds = nanoseconds_of(num_bytes, self._uplink)
        self.downlink_nanoseconds = nanoseconds_of(num_bytes, self.downlink)
        """How long a message takes in the downlink."""
        self._free = 0
        """When the link has transmitted its last message."""
        self._first = self._last = 0
        """When the last message came, where delays differ."""

    def send(self, position: int, now: int) -> Transfer:
        """Return when the message that is sent now, at a position of its sender, has come over the link."""
        first = last = now
        if self._uplink is not None:
            first, last = self._uplink.carry(first, last, self._uplink_nanoseconds)
        nanoseconds = self._transmission(position, now) if self._nanoseconds is None else self._nanoseconds
        # The link is a pipe too; one call less for each message.
        if first < self._free:
            first = self._free
        self._free = free = first + nanoseconds
        if last < free:
            last = free
        if self._latency is not None:
            return first + self._latency, last + self._latency
        latency = in_nanoseconds(self._times.latency_seconds(position, in_seconds(now)))
        self._first, self._last = max(self._first, first + latency), max(self._last, last + latency)
        return self._first, self._last

    def _transmission(self, position: int, now: int) -> int:
        """Return how long the link transmits a message."""
        bandwidth = self._times.bandwidth(position, in_seconds(now))
        return 0 if bandwidth is None else transmission_nanoseconds(self._num_bytes, bandwidth)

    def hold_steps(self, position: int, now: int) -> int:
        """Return the steps for which the weights of a message that is sent now, at that position, are held back."""
        return self._times.hold_steps(position, in_seconds(now)) if self.has_steps else 0


Content = TypeVar("Content")


class Calendar(Generic[Content]):
    """Events to come, the earliest first; at one moment by rank, then in the order in which they were entered."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, tuple[int, ...], int, Content | Downlink]] = []
        self._count = 0

    def enter(self, moment: int, content: Content, *rank: int) -> None:
        """Enter an event, the lowest rank, 0 or more each, first."""
        self._push(moment, rank, content)

    def send(self, channel: Channel, position: int, now: int, content: Content, *rank: int) -> None:
        """Enter the arrival of a message that is sent now, at a position of its sender, over a channel."""
        first, last = channel.send(position, now)
        if channel.downlink is None:
            self._push(last, rank, content)
        else:
            channel.downlink.enter(first, last, channel.downlink_nanoseconds, (content, rank))
            self._push(first, _FIRST, channel.downlink)

    def _push(self, moment: int, rank: tuple[int, ...], content: Content | Downlink) -> None:
        self._count += 1
        heapq.heappush(self._heap, (moment, rank, self._count, content))

    def pop(self, until: float = math.inf) -> tuple[int, Content] | None:
        """Return the next moment and its first event, which is taken out; ``None`` where none is due ``until`` then."""
        while self._heap and self._heap[0][0] <= until:
            moment, _, _, content = heapq.heappop(self._heap)
            if not isinstance(content, Downlink):
                return moment, content
            for arrives_at, (event, rank) in content.take(moment):
                self._push(arrives_at, rank, event)
        return None


_FIRST = (-1,)
"""The rank of what comes to downlinks, before the events of its moment."""
