"""When messages arrive: all uplinks, links and downlinks at once, window by window."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ray_pcasgd.schedule.bandwidth import transmission_nanoseconds
from ray_pcasgd.schedule.hosts import Host
from ray_pcasgd.schedule.segments import LIMIT, OutOfRangeError, bounds_of, running_maximum, through_queues
from ray_pcasgd.schedule.window_links import Links, Published, Sent

NEVER = LIMIT // 2
"""When what has not yet come to its downlink arrives, as far as is known."""


class Coming(NamedTuple):
    """Messages on their way to downlinks, shape (messages,) each."""

    link: np.ndarray
    version: np.ndarray
    moment: np.ndarray
    """When it was sent."""
    first: np.ndarray
    """The nanosecond when its first byte comes."""
    last: np.ndarray


class Landed(NamedTuple):
    """Messages that have come through downlinks."""

    link: np.ndarray
    version: np.ndarray
    moment: np.ndarray
    arrival: np.ndarray
    """In nanoseconds."""


def _pipes(limits: Sequence[str | None], num_bytes: int) -> np.ndarray:
    """Return the nanoseconds of a message by host, -1 where there is no limit; the last one is no host."""
    numbers = [-1 if one is None else transmission_nanoseconds(num_bytes, one) for one in limits]
    if max(numbers, default=0) >= LIMIT // 4:
        raise OutOfRangeError
    return np.array([*numbers, -1], dtype=np.int64)


class Queues:
    """The queues of a plan, window by window: what each of them has let through, and what is to come."""

    def __init__(self, links: Links, hosts: Sequence[Host]) -> None:
        self._links = links
        self._free = np.zeros(len(links.sender), dtype=np.int64)
        self._came = np.zeros((2, len(links.sender)), dtype=np.int64)
        """When the first and the last byte of each link's last message have come, where messages might overtake."""
        host_of = np.full(len(links.degree), -1, dtype=np.int64)
        for place, host in enumerate(hosts):
            host_of[list(host.agents)] = place
        source, target = host_of[links.sender], host_of[links.receiver]
        up, down = (
            np.where(source == target, -1, _pipes(limits, links.num_bytes)[ends])
            for limits, ends in (([host.up for host in hosts], source), ([host.down for host in hosts], target))
        )
        self._uplinks = _Uplinks(links, host_of, up) if (up >= 0).any() else None
        self._downlinks = _Downlinks(links, target, down) if (down >= 0).any() else None

    def arrivals(self, sent: Sent, published: Published, end: int) -> tuple[np.ndarray, Landed | None]:
        """Return when what is sent in a window arrives, and what else comes through downlinks until its end.

        In nanoseconds; ``NEVER`` for all that passes a downlink.

        Args:
            sent: The messages.
            published: Their versions.
            end: The nanosecond after the window.

        Raises:
            OutOfRangeError: the numbers are too large.

        """
        links = self._links
        first = last = sent.now
        if self._uplinks is not None:
            first, last = self._uplinks.through(sent, published)
        if links.has_services:
            first, ends = through_queues(first, links.services(sent), sent.bounds, self._free)
            last = np.maximum(last, ends)
        elif last.max(initial=0) > LIMIT // 4:
            raise OutOfRangeError
        if links.has_latencies:
            latencies = links.latencies(sent)
            last = last + latencies
            first = last if self._downlinks is None else first + latencies
        if links.may_overtake:
            first, last = (self._in_order(one, sent, came) for one, came in zip((first, last), self._came, strict=True))
        if self._downlinks is None:
            return last, None
        return self._downlinks.through(sent, first, last, end)

    def _in_order(self, moments: np.ndarray, sent: Sent, came: np.ndarray) -> np.ndarray:
        """Let no message of a link overtake the one before."""
        result: np.ndarray = np.maximum(running_maximum(moments, sent.bounds), np.repeat(came, sent.counts))
        used = sent.counts > 0
        came[used] = result[sent.bounds[1:][used] - 1]
        return result


class _Uplinks:
    """What hosts send through. A version's messages come to it at once, and leave one after another."""

    def __init__(self, links: Links, host_of: np.ndarray, takes: np.ndarray) -> None:
        num_agents = len(links.degree)
        passing = np.flatnonzero(takes >= 0)
        # The message to the lower receiver is the first.
        passing = passing[np.lexsort((links.receiver[passing], links.sender[passing]))]
        sender = links.sender[passing]
        messages = np.bincount(sender, minlength=num_agents)
        self._takes = takes
        """The nanoseconds that a link's messages take; -1: they pass no uplink."""
        self._offset = np.zeros(len(takes), dtype=np.int64)
        """The nanoseconds that those take which a version's sender sends before."""
        self._offset[passing] = (np.arange(len(passing)) - bounds_of(messages)[sender]) * takes[passing]
        self._version_takes = np.zeros(num_agents, dtype=np.int64)
        """The nanoseconds that all messages of an agent's version take."""
        np.maximum.at(self._version_takes, sender, self._offset[passing] + takes[passing])
        places, uplink_of = np.unique(host_of, return_inverse=True)
        self._uplink_of = np.where(messages > 0, uplink_of, -1)
        self._free = np.zeros(len(places), dtype=np.int64)

    def through(self, sent: Sent, published: Published) -> tuple[np.ndarray, np.ndarray]:
        """Return when the first and the last byte of each message have left."""
        uplink = self._uplink_of[published.agent]
        order = np.lexsort((published.moment, uplink))
        # Of one moment, the lower agent's version is the first.
        order = order[np.searchsorted(uplink[order], 0) :]
        bounds = bounds_of(np.bincount(uplink[order], minlength=len(self._free)))
        takes = self._version_takes[published.agent[order]]
        begins = published.now.copy()
        begins[order], _ = through_queues(begins[order], takes, bounds, self._free)
        own = np.repeat(self._takes, sent.counts)
        first = np.where(own < 0, sent.now, begins[sent.source] + np.repeat(self._offset, sent.counts))
        return first, first + np.maximum(own, 0)


class _Downlinks:
    """What hosts receive through: messages of many links, in the order in which their first bytes come."""

    def __init__(self, links: Links, host: np.ndarray, takes: np.ndarray) -> None:
        self._links = links
        self._takes = takes
        """The nanoseconds that a link's messages take; -1: they pass no downlink."""
        self._host = host
        """Of each link's receiver."""
        self._free = np.zeros(int(host.max(initial=0)) + 1, dtype=np.int64)
        self._coming = Coming(*[np.zeros(0, dtype=np.int64)] * 5)

    def through(self, sent: Sent, first: np.ndarray, last: np.ndarray, end: int) -> tuple[np.ndarray, Landed]:
        """Return when messages that pass no downlink arrive, and what comes through downlinks until before ``end``."""
        passes = np.repeat(self._takes >= 0, sent.counts)
        link = np.repeat(np.arange(len(self._takes)), sent.counts)
        new = [one[passes] for one in (link, sent.version, sent.moment, first, last)]
        coming = Coming(*map(np.concatenate, zip(self._coming, new, strict=True)))
        # None that is sent later comes before that.
        is_due = coming.first < end
        order = self._order(coming, is_due)
        num_due = int(np.count_nonzero(is_due))
        self._coming = Coming(*(one[order[num_due:]] for one in coming))
        return np.where(passes, NEVER, last), self._land(Coming(*(one[order[:num_due]] for one in coming)))

    def _order(self, coming: Coming, is_due: np.ndarray) -> np.ndarray:
        """Return the order in which downlinks take messages, that which is not yet due last.

        Which comes first is taken first, and of these which was sent first.
        """
        downlink = np.where(is_due, self._host[coming.link], len(self._free))
        begin = int(coming.first.min(initial=LIMIT))
        lasts = int(coming.first.max(initial=0)) - begin + 1
        if lasts * (len(self._free) + 1) < LIMIT:
            keys = downlink * lasts + (coming.first - begin)
            order = np.argsort(keys)
            keys = keys[order]
            if not (keys[1:] == keys[:-1]).any():
                return order
        links = self._links
        return np.lexsort(
            (links.receiver[coming.link], links.sender[coming.link], coming.moment, coming.first, downlink)
        )

    def _land(self, due: Coming) -> Landed:
        """Return when what comes arrives, downlink by downlink in the order in which they take it."""
        bounds = bounds_of(np.bincount(self._host[due.link], minlength=len(self._free)))
        _, ends = through_queues(due.first, self._takes[due.link], bounds, self._free)
        return Landed(due.link, due.version, due.moment, np.maximum(due.last, ends))
