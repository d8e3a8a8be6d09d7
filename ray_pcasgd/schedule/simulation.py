"""What the three planners share: time in whole nanoseconds, a calendar, links whose messages keep their order."""

import heapq
from dataclasses import dataclass
from typing import Generic, TypeVar

from ray_pcasgd.schedule.bandwidth import transmission_nanoseconds
from ray_pcasgd.schedule.delays import ComputeTimes, LinkDelay, LinkTimes
from ray_pcasgd.schedule.hosts import Host
from ray_pcasgd.schedule.transfers import HostPipes, Pipe, Transfer

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
        begun, taken = in_seconds(now), 0.0
        for _ in range(num_batches):
            moment = begun + taken
            if moment > self._asked_at:
                self._asked_at = moment
            taken += self._sample(self._asked_at)
        return now + in_nanoseconds(taken)


class Channel:
    """One direction of one link, all of whose messages have as many bytes; they never overtake each other.

    A message passes through the uplink of its sender's host, the link, and, after the link's delay, the downlink of
    its receiver's host; a pipe whose bandwidth is not limited takes no time. Uplink and link are passed as messages
    are sent. A downlink takes messages of other links too, in the order in which they come: where there is one, a
    message comes to it (``send``), and is to be taken through it (``land``) when its first byte has come.
    """

    def __init__(
        self,
        timing: Timing,
        sender: int,
        receiver: int,
        num_bytes: int = 0,
        pipes: HostPipes | None = None,
    ) -> None:
        self._times = LinkTimes(timing.links, timing.clusters, timing.seed, sender, receiver)
        pipes = pipes or HostPipes()
        self._nanoseconds = {rate: transmission_nanoseconds(num_bytes, rate) for rate in self._times.bandwidths}
        lasting = self._times.lasting_bandwidth
        self._lasting_nanoseconds = None if lasting is None else self._nanoseconds[lasting]
        """Of a link whose bandwidth never changes: most do not, and looking it up takes as long as all the rest."""
        self._link = Pipe()
        self._up, self._down = pipes.uplink(sender, receiver), pipes.downlink(sender, receiver)
        self._up_nanoseconds, self._down_nanoseconds = (
            0 if one is None else one.nanoseconds(num_bytes) for one in (self._up, self._down)
        )
        self.has_downlink = self._down is not None
        """Whether messages pass through a downlink."""
        self._is_limited = bool(self._nanoseconds) or self._up is not None
        self._has_seconds, self._has_steps = self._times.has_seconds, self._times.has_steps
        self._first = self._last = 0
        """When the last message came over the link."""

    def send(self, version: int, now: int) -> Transfer:
        """Return when the message of a version that is sent now has come over the link."""
        first = last = now
        if self._is_limited:
            first, last = self._transmitted(version, now)
        if self._has_seconds:
            latency = in_nanoseconds(self._times.latency_seconds(version, in_seconds(now)))
            first, last = first + latency, last + latency
        self._first = first = first if first > self._first else self._first
        self._last = last = last if last > self._last else self._last
        return first, last

    def _transmitted(self, version: int, now: int) -> Transfer:
        passed = (now, now)
        if self._up is not None:
            passed = self._up.pipe.carry(passed, self._up_nanoseconds)
        if self._lasting_nanoseconds is not None:
            return self._link.carry(passed, self._lasting_nanoseconds)
        bandwidth = self._times.bandwidth(version, in_seconds(now)) if self._nanoseconds else None
        return passed if bandwidth is None else self._link.carry(passed, self._nanoseconds[bandwidth])

    def land(self, came: Transfer) -> int:
        """Return when a message arrives that has come to the downlink so; to be called in the order of ``first``."""
        assert self._down is not None
        return self._down.pipe.carry(came, self._down_nanoseconds)[1]

    def hold_steps(self, position: int, now: int) -> int:
        """Return the steps for which the weights of a message that is sent now, at that position, are held back."""
        return self._times.hold_steps(position, in_seconds(now)) if self._has_steps else 0


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


class Downlinks(Generic[Content]):
    """Messages that are coming to downlinks of hosts, which take them in the order in which they come."""

    def __init__(self) -> None:
        self._coming: list[tuple[int, int, int, Channel, Content]] = []
        """By when the first byte comes, then in the order in which they were entered; and when the last one comes."""
        self._count = 0

    def enter(self, channel: Channel, came: Transfer, content: Content) -> None:
        """Enter a message by when it has come over its link; of those that come at once, the first one is first."""
        self._count += 1
        heapq.heappush(self._coming, (came[0], self._count, came[1], channel, content))

    def take(self, until: int | None) -> tuple[int, Content] | None:
        """Return when the next message arrives of those that come until a moment (``None``: ever), if there is one.

        No message may be sent later that comes earlier.
        """
        if not self._coming or (until is not None and self._coming[0][0] > until):
            return None
        first, _, last, channel, content = heapq.heappop(self._coming)
        return channel.land((first, last)), content
