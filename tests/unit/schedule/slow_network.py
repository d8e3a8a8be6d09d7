"""When messages arrive, from all that were sent, anew each time: pipe after pipe, each over its whole list."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from ray_pcasgd.schedule.bandwidth import bits_per_second
from ray_pcasgd.schedule.hosts import Host


@dataclass
class Shipment:
    """One message."""

    sent_at: int
    sender: int
    receiver: int
    num_bytes: int
    latency: int
    """Nanoseconds, as all times."""
    bandwidth: str | None
    """Of the link, at the time of sending."""
    head: int = field(init=False)
    """When the first byte is where the message is at present."""
    tail: int = field(init=False)
    """When the last byte is."""


def arrivals(shipments: Sequence[Shipment], hosts: Sequence[Host]) -> list[int]:
    """Return when each message arrives; they are given in the order in which they were sent."""
    for one in shipments:
        one.head = one.tail = one.sent_at
    host_of = {agent: host for host in hosts for agent in host.agents}

    def crosses(one: Shipment) -> bool:
        return host_of.get(one.sender) is None or host_of[one.sender] is not host_of.get(one.receiver)

    def host(agent: int, one: Shipment, rate: Callable[[Host], str | None]) -> tuple[Hashable, str | None]:
        found = host_of.get(agent) if crosses(one) else None
        return id(found), None if found is None else rate(found)

    _pass_pipes(shipments, lambda one: host(one.sender, one, lambda host: host.up))
    _pass_pipes(shipments, lambda one: ((one.sender, one.receiver), one.bandwidth))
    latest: dict[tuple[int, int], tuple[int, int]] = defaultdict(lambda: (0, 0))
    for one in shipments:
        link = (one.sender, one.receiver)
        one.head = max(one.head + one.latency, latest[link][0])
        one.tail = max(one.tail + one.latency, latest[link][1])
        latest[link] = (one.head, one.tail)
    _pass_pipes(shipments, lambda one: host(one.receiver, one, lambda host: host.down))
    return [one.tail for one in shipments]


def _pass_pipes(shipments: Sequence[Shipment], pipe_of: Callable[[Shipment], tuple[Hashable, str | None]]) -> None:
    queues: dict[Hashable, list[tuple[Shipment, str]]] = defaultdict(list)
    for one in shipments:
        name, bandwidth = pipe_of(one)
        if bandwidth is not None:
            queues[name].append((one, bandwidth))
    for queue in queues.values():
        taken = [(0, 0)]
        """Intervals in which the pipe transmits."""
        for one, bandwidth in sorted(queue, key=lambda pair: pair[0].head):
            takes = round(Fraction(one.num_bytes * 8) / bits_per_second(bandwidth) * 10**9)
            start = max(one.head, taken[-1][1])
            taken.append((start, start + takes))
            one.head, one.tail = start, max(one.tail, start + takes)
