"""What bytes cost: pipes that transmit one message after another, and the uplinks and downlinks of hosts."""

import heapq
from collections.abc import Iterator, Sequence
from typing import Any

from ray_pcasgd.schedule.bandwidth import transmission_nanoseconds
from ray_pcasgd.schedule.hosts import Host

Transfer = tuple[int, int]
"""When the first and when the last byte of a message passes a place, in nanoseconds."""


class Pipe:
    """An uplink, one direction of a link, or a downlink: messages in the order in which their first bytes come.

    A message of B bytes that comes at ``[first, last]`` starts at ``s = max(first, free)``, takes the pipe until
    ``free = s + B / bandwidth``, and has left it at ``max(last, free)``.

    **Choice**: pipes in a row pass bytes on as they come (cut-through), so that the slowest of them decides, as in a
    TCP stream; and a message takes each pipe for its own bytes alone, so that one that comes slowly leaves room for
    others. Queues have no limit, and nothing is lost.
    """

    __slots__ = ("_free",)

    def __init__(self) -> None:
        self._free = 0

    def carry(self, first: int, last: int, nanoseconds: int) -> Transfer:
        """Return when a message leaves the pipe that comes to it so, and that it takes so long to transmit."""
        # Comparisons, here and in channels, take half as long as max().
        if first < self._free:
            first = self._free
        self._free = free = first + nanoseconds
        return first, (last if last > free else free)


class Uplink(Pipe):
    """What a host sends through."""

    __slots__ = ("bandwidth",)

    def __init__(self, bandwidth: str) -> None:
        super().__init__()
        self.bandwidth = bandwidth


class Downlink:
    """What a host receives through: messages of many links, in the order in which their first bytes come.

    A message comes to it as it is sent (``enter``), and is taken through it when its first byte has come (``take``),
    since none that is sent later can come earlier.
    """

    def __init__(self, bandwidth: str, place: int) -> None:
        self.bandwidth = bandwidth
        self.place = place
        """Of its host among the run's hosts."""
        self._pipe = Pipe()
        self._coming: list[tuple[int, int, int, int, Any]] = []
        """By when the first byte comes, then in the order in which they were entered; when the last byte comes, the
        nanoseconds that the message takes, and what it holds."""
        self._count = 0

    def enter(self, first: int, last: int, nanoseconds: int, content: Any) -> None:
        """Enter a message by when it has come over its link, and how long it takes here; what it holds is kept."""
        self._count += 1
        heapq.heappush(self._coming, (first, self._count, last, nanoseconds, content))

    def take(self, until: int) -> Iterator[tuple[int, Any]]:
        """Let through what has come until a moment; yield when each message arrives, and what it holds."""
        coming = self._coming
        while coming and coming[0][0] <= until:
            first, _, last, nanoseconds, content = heapq.heappop(coming)
            yield self._pipe.carry(first, last, nanoseconds)[1], content

    @property
    def coming(self) -> Iterator[tuple[int, Any]]:
        """When the first byte of each message comes, and what it holds."""
        return ((first, content) for first, _, _, _, content in self._coming)


class HostPipes:
    """The uplinks and downlinks of a run's hosts, each with a queue of its own."""

    def __init__(self, hosts: Sequence[Host] = ()) -> None:
        self._host_of = {agent: place for place, host in enumerate(hosts) for agent in host.agents}
        self._up = {place: Uplink(host.up) for place, host in enumerate(hosts) if host.up is not None}
        self.downlinks = {
            place: Downlink(host.down, place) for place, host in enumerate(hosts) if host.down is not None
        }
        """By host."""

    def downlink_of(self, agent: int) -> Downlink | None:
        """Return the downlink of an agent's host, if it has one."""
        return self.downlinks.get(self._host_of.get(agent, -1))

    def between(self, sender: int, receiver: int) -> tuple[Uplink | None, Downlink | None]:
        """Return what messages of a link pass through, if anything: the sender's uplink, the receiver's downlink."""
        source, target = self._host_of.get(sender, -1), self._host_of.get(receiver, -1)
        return (None, None) if source == target else (self._up.get(source), self.downlinks.get(target))


def nanoseconds_of(num_bytes: int, pipe: Uplink | Downlink | None) -> int:
    """Return the time that a message takes in a pipe of a host; without one, none."""
    return 0 if pipe is None else transmission_nanoseconds(num_bytes, pipe.bandwidth)
