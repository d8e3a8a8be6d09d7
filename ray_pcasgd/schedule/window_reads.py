"""What agents read: all reads of a window of virtual time at once."""

from typing import Literal, NamedTuple

import numpy as np

from ray_pcasgd.schedule.segments import bounds_of, merged, spread
from ray_pcasgd.schedule.window_links import Links, Published, Sent
from ray_pcasgd.schedule.window_queues import Landed
from ray_pcasgd.schedule.window_times import Window, since_of


class Readers(NamedTuple):
    """Who reads in a window, agent by agent, each one's reads in their order."""

    counts: np.ndarray
    """Reads of each agent, shape (agents,)."""
    bounds: np.ndarray
    """Where they lie, shape (agents + 1,)."""
    agent: np.ndarray
    """Shape (reads,)."""
    step: np.ndarray
    moment: np.ndarray


class ReadColumns(NamedTuple):
    """What stands in reads, but for their neighbors, shape (reads,) each."""

    version: np.ndarray
    staleness: np.ndarray
    age: np.ndarray

    def at(self, places: np.ndarray) -> "ReadColumns":
        """Return the reads at these places."""
        return ReadColumns(self.version[places], self.staleness[places], self.age[places])

    def then(self, others: "ReadColumns") -> "ReadColumns":
        """Return these reads, and others after them."""
        return ReadColumns(*[np.concatenate(both) for both in zip(self, others, strict=True)])


class LinkReads(NamedTuple):
    """What is read over each link: one link's reads after another's, each in their order."""

    bounds: np.ndarray
    """Where each link's reads lie, shape (links + 1,)."""
    reads: ReadColumns


class _Messages(NamedTuple):
    """Messages of all links, one link's after another's, by rising version, shape (messages,) each."""

    since: np.ndarray
    """The first moment from which on it has arrived."""
    reader_step: np.ndarray
    """The step that the reader was at when it was sent."""
    known_at: np.ndarray
    """The version of its sender that must be known before it is read; of shape (0,) where that is its own."""


class Knowledge:
    """What readers have, or will have, of their neighbors: what was read last, and all that was sent since then."""

    def __init__(self, links: Links, is_capped: bool) -> None:
        self._links = links
        self._is_capped = is_capped
        """Whether no version is read that is newer than the reader's own step."""
        num_links = len(links.sender)
        self._oldest = np.zeros(num_links, dtype=np.int64)
        """Version of each link's first message."""
        self._bounds = np.arange(num_links + 1)
        start = np.zeros(num_links, dtype=np.int64)
        self._messages = _Messages(start - 1, start, start if links.has_holds else start[:0])

    @property
    def num_messages(self) -> int:
        """Messages that are kept."""
        return len(self._messages.since)

    def read(
        self,
        window: Window,
        published: Published,
        readers: Readers,
        sent: Sent,
        arrival: np.ndarray,
        landed: Landed | None,
    ) -> LinkReads:
        """Return what is read in a window, given what is sent in it and when that arrives; go on to the next window."""
        clock = _Clock(window)
        reader_step = self._reader_steps(clock, window, published, sent)
        self._take(sent, since_of(arrival, sent.moment), reader_step)
        if landed is not None:
            places = self._bounds[landed.link] + landed.version - self._oldest[landed.link]
            self._messages.since[places] = since_of(landed.arrival, landed.moment)
        readable = self._readable()
        known = self._known(clock, window, published, readers, sent, reader_step)
        columns = self._columns(clock, window, readers, known, readable)
        self._forget(window, readable)
        return columns

    def _reader_steps(self, clock: "_Clock", window: Window, published: Published, sent: Sent) -> np.ndarray:
        """Return the version that the reader has come to as each message is sent, in that very round too."""
        receiver = self._links.receiver
        moments = sent.moment - window.begin
        steps = clock.places(clock.moments(published), receiver, sent.counts, moments, side="right")
        steps += np.repeat(window.versions[receiver] - published.bounds[receiver], sent.counts)
        return steps

    def _known(
        self,
        clock: "_Clock",
        window: Window,
        published: Published,
        readers: Readers,
        sent: Sent,
        reader_step: np.ndarray,
    ) -> np.ndarray:
        """Return the version that the sender has come to before each read, link by link."""
        links = self._links
        sender, counts = links.sender, readers.counts[links.receiver]
        if links.reverse is not None and readers.moment is published.moment and not _has_equal(published.moment):
            # Who reads as it publishes has sent that over the link in the other direction: its reader's step is asked.
            known: np.ndarray = reader_step[spread(sent.bounds[links.reverse], counts)]
            return known
        moments = (readers.moment - window.begin)[spread(readers.bounds[links.receiver], counts)]
        known = clock.places(clock.moments(published), sender, counts, moments)
        known += np.repeat(window.versions[sender] - published.bounds[sender], counts)
        return known

    def _take(self, sent: Sent, since: np.ndarray, reader_step: np.ndarray) -> None:
        """Keep what is sent, after what is there."""
        there = np.diff(self._bounds)
        bounds = bounds_of(there + sent.counts)
        old, new = spread(bounds[:-1], there), spread(bounds[:-1] + there, sent.counts)
        known_at = self._links.known_at(sent) if self._links.has_holds else since[:0]
        before, self._bounds = self._messages, bounds
        self._messages = _Messages(
            merged(before.since, old, since, new),
            merged(before.reader_step, old, reader_step, new),
            merged(before.known_at, old, known_at, new) if self._links.has_holds else known_at,
        )

    def _readable(self) -> np.ndarray | None:
        """Return the newest message that may be read once each one has arrived; ``None``: that itself.

        A message that was held back becomes readable with a later one of its sender's.
        """
        if not self._links.has_holds:
            return None
        counts = np.diff(self._bounds)
        releases = np.repeat(self._bounds[:-1] - self._oldest, counts) + self._messages.known_at
        is_there = np.flatnonzero(releases < np.repeat(self._bounds[1:], counts))
        readable = np.zeros(self._bounds[-1], dtype=np.int64)
        # The first message of each link has been read, or is the start. Of several places the last value stays.
        readable[self._bounds[:-1]] = self._bounds[:-1]
        readable[releases[is_there]] = is_there
        result: np.ndarray = np.maximum.accumulate(readable)
        return result

    def _columns(
        self,
        clock: "_Clock",
        window: Window,
        readers: Readers,
        known: np.ndarray,
        readable: np.ndarray | None,
    ) -> LinkReads:
        receiver = self._links.receiver
        there, counts = np.diff(self._bounds), readers.counts[receiver]
        bounds = bounds_of(counts)
        sees_first = clock.places(clock.moments(readers), receiver, there, clock.clipped(self._messages.since))
        sees_first += np.repeat(bounds[:-1] - readers.bounds[receiver], there)
        # Each message counts from that read on; one that is not yet seen counts from the next link's first read on, as
        # all others of its link do. So the sum is the place after that of the newest message.
        newest = np.cumsum(np.bincount(sees_first, minlength=bounds[-1] + 1))[: bounds[-1]] - 1
        reads = spread(readers.bounds[receiver], counts)
        step = readers.step[reads]
        # The place of a link's message is its version, less this.
        less = np.repeat(self._oldest - self._bounds[:-1], counts)
        if self._is_capped:
            newest = np.minimum(newest, step - less)
        if readable is not None:
            newest = readable[newest]
        if self._is_capped:
            known = np.minimum(known, step)
        age = step - self._messages.reader_step[newest]
        version = newest + less
        known -= version
        return LinkReads(bounds, ReadColumns(version, known, age))

    def _forget(self, window: Window, readable: np.ndarray | None) -> None:
        """Forget what is older than that which is read next, if nothing more arrives."""
        before = bounds_of(self._messages.since < window.end)
        newest = self._bounds[:-1] + before[self._bounds[1:]] - before[self._bounds[:-1]] - 1
        if self._is_capped:
            step = (window.versions + window.counts)[self._links.receiver]
            newest = np.minimum(newest, self._bounds[:-1] + step - self._oldest)
        if readable is not None:
            newest = readable[newest]
        self._oldest = self._oldest + newest - self._bounds[:-1]
        left = self._bounds[1:] - newest
        kept = spread(newest, left)
        since, reader_step, known_at = self._messages
        known_at = known_at[kept] if self._links.has_holds else known_at
        self._messages = _Messages(since[kept], reader_step[kept], known_at)
        self._bounds = bounds_of(left)


def _has_equal(moments: np.ndarray) -> bool:
    """Return whether two of the moments are equal."""
    rising = np.sort(moments)
    return bool((rising[1:] == rising[:-1]).any())


class _Clock:
    """Finds what is before which moments of a window, of all agents at once: each one's moments are after the other's.

    The window is so short that these numbers have 64 bits.
    """

    def __init__(self, window: Window) -> None:
        self._begin = window.begin
        self._width = window.end - window.begin + 1

    def moments(self, of: Published | Readers) -> np.ndarray:
        """Return the moments of all agents, rising."""
        result: np.ndarray = of.agent * self._width + (of.moment - self._begin)
        return result

    def clipped(self, moments: np.ndarray) -> np.ndarray:
        """Return moments since the window's begin, those outside the window as 0 or its end."""
        result: np.ndarray = moments - self._begin
        np.clip(result, 0, self._width - 1, out=result)
        return result

    def places(
        self,
        among: np.ndarray,
        agents: np.ndarray,
        counts: np.ndarray,
        since_begin: np.ndarray,
        side: Literal["left", "right"] = "left",
    ) -> np.ndarray:
        """Return the place among all moments of each that is given, ``counts`` of them for each of these agents."""
        keys = np.repeat(agents * self._width, counts)
        keys += since_begin
        return np.searchsorted(among, keys, side)
