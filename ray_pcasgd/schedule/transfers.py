"""What bytes cost: pipes that transmit one message after another, and the uplinks and downlinks of hosts."""

from collections.abc import Sequence
from typing import NamedTuple

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

    def __init__(self) -> None:
        self._free = 0

    def carry(self, came: Transfer, nanoseconds: int) -> Transfer:
        """Return when a message leaves the pipe that comes to it so, and that it takes so long to transmit."""
        first, last = came
        # Comparisons, here and in channels, take half as long as max().
        first = first if first > self._free else self._free
        self._free = free = first + nanoseconds
        return first, (last if last > free else free)


class HostPipe(NamedTuple):
    """A host's uplink or downlink."""

    pipe: Pipe
    bandwidth: str

    def nanoseconds(self, num_bytes: int) -> int:
        """Return the time that a message takes."""
        return transmission_nanoseconds(num_bytes, self.bandwidth)


class HostPipes:
    """The uplinks and downlinks of a run's hosts, each with a queue of its own."""

    def __init__(self, hosts: Sequence[Host] = ()) -> None:
        self._host_of = {agent: place for place, host in enumerate(hosts) for agent in host.agents}
        self._up, self._down = (
            {place: HostPipe(Pipe(), bandwidth) for place, bandwidth in enumerate(bandwidths) if bandwidth is not None}
            for bandwidths in ([host.up for host in hosts], [host.down for host in hosts])
        )

    def uplink(self, sender: int, receiver: int) -> HostPipe | None:
        """Return the uplink that messages of a link pass through, if any."""
        return self._up.get(self._host_of.get(sender, -1)) if self._leaves(sender, receiver) else None

    def downlink(self, sender: int, receiver: int) -> HostPipe | None:
        """Return the downlink that messages of a link pass through, if any."""
        return self._down.get(self._host_of.get(receiver, -1)) if self._leaves(sender, receiver) else None

    def _leaves(self, sender: int, receiver: int) -> bool:
        host = self._host_of.get(sender)
        return host is None or host != self._host_of.get(receiver)
