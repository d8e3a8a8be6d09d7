"""When messages arrive: all uplinks, links and downlinks at once, window by window."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ray_pcasgd.schedule.bandwidth import transmission_nanoseconds
from ray_pcasgd.schedule.hosts import Host
from ray_pcasgd.schedule.segments import LIMIT, OutOfRangeError, bounds_of, merged, running_maximum, through_queues
from ray_pcasgd.schedule.window_links import Links, Published, Sent

NEVER = LIMIT // 2
"""When what has not yet come to its downlink arrives, as far as is known."""


class Coming(NamedTuple):
    """Messages in transit to downlinks, shape (messages,) each."""

    link: np.ndarray
    version: np.ndarray
    moment: np.ndarray
    """When it was sent."""
    first: np.ndarray
    """The nanosecond when its first byte comes."""
    last: np.ndarray


class _All(NamedTuple):
    """Messages that were in transit to downlinks before a window, and after them those that are sent in it."""

    earlier: Coming
    sent: Coming
    passing: np.ndarray
    """The places of those that are sent which pass a downlink."""

    def at(self, places: np.ndarray) -> Coming:
        """Return the messages at these places; most of them are never asked for."""
        is_sent = places >= len(self.earlier.link)
        old, new = np.flatnonzero(~is_sent), np.flatnonzero(is_sent)
        of_earlier, of_sent = places[old], self.passing[places[new] - len(self.earlier.link)]
        both = zip(self.earlier, self.sent, strict=True)
        return Coming(*[merged(before[of_earlier], old, now[of_sent], new) for before, now in both])


class Landed(NamedTuple):
    """Messages of earlier windows that were in transit to downlinks."""

    link: np.ndarray
    version: np.ndarray
    moment: np.ndarray
    arrival: np.ndarray
    """In nanoseconds; ``NEVER``: it is still in transit."""


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
        """Return when what is sent in a window arrives, and what was in transit to downlinks before it.

        In nanoseconds; ``NEVER`` for what does not come to its downlink before the window's end.

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
        self._passes = takes >= 0
        """Whether a link's messages pass a downlink."""
        self._host = host
        """Of each link's receiver."""
        self._of_passing = host[self._passes]
        num_hosts = int(host.max(initial=0)) + 1
        self._takes = np.zeros(num_hosts, dtype=np.int64)
        """The nanoseconds that a message takes, by host."""
        self._takes[self._of_passing] = takes[self._passes]
        self._free = np.zeros(num_hosts, dtype=np.int64)
        self._coming = Coming(*[np.zeros(0, dtype=np.int64)] * 5)

    def through(self, sent: Sent, first: np.ndarray, last: np.ndarray, end: int) -> tuple[np.ndarray, Landed]:
        """Return when what is sent arrives, and what was sent earlier, as far as that comes before ``end``."""
        earlier, arrival = self._coming, last.copy()
        link = np.repeat(np.arange(len(self._host)), sent.counts)
        passing = np.flatnonzero(np.repeat(self._passes, sent.counts))
        coming = _All(earlier, Coming(link, sent.version, sent.moment, first, last), passing)
        came = np.concatenate([earlier.first, first[passing]])
        host = np.concatenate([self._host[earlier.link], np.repeat(self._of_passing, sent.counts[self._passes])])
        # None that is sent later comes before the end; what is not due has a place after all hosts.
        host[came >= end] = len(self._takes)
        counts = np.bincount(host, minlength=len(self._takes) + 1)[:-1]
        order, num_due = self._order(coming, came, host), int(counts.sum())
        due, self._coming = order[:num_due], coming.at(order[num_due:])
        ends = np.full(len(came), NEVER)
        _, ends[due] = through_queues(came[due], np.repeat(self._takes, counts), bounds_of(counts), self._free)
        of_earlier, of_new = np.split(ends, [len(earlier.link)])
        arrival[passing] = np.maximum(arrival[passing], of_new)
        return arrival, Landed(earlier.link, earlier.version, earlier.moment, np.maximum(earlier.last, of_earlier))

    def _order(self, coming: _All, came: np.ndarray, host: np.ndarray) -> np.ndarray:
        """Return the order of what comes: host by host what comes first, and of these what was sent first."""
        begin = int(came.min(initial=LIMIT))
        lasts = int(came.max(initial=0)) - begin + 1
        if lasts * (len(self._takes) + 1) >= LIMIT:
            return np.lexsort((*self._when_sent(coming, np.arange(len(came))), came, host))
        keys = host * lasts
        keys += came - begin
        order = np.argsort(keys)
        keys = keys[order]
        is_tied = keys[1:] == keys[:-1]
        if is_tied.any():
            places = np.flatnonzero(np.append(is_tied, False) | np.append(False, is_tied))
            tied = order[places]
            order[places] = tied[np.lexsort((*self._when_sent(coming, tied), keys[places]))]
        return order

    def _when_sent(self, coming: _All, places: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return by what messages are sorted as they are sent, the least important first."""
        link, _, moment, *_ = coming.at(places)
        return self._links.receiver[link], self._links.sender[link], moment
