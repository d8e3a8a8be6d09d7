"""Plans who reads which version when: all rows of a window of virtual time at once, in arrays."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice, repeat
from typing import Any, NamedTuple, TypeVar

import numpy as np

from ray_pcasgd.base.rounds import Rounds
from ray_pcasgd.records import Read, Row
from ray_pcasgd.schedule.barrier import AllBarrier, BoundedBarrier
from ray_pcasgd.schedule.segments import LIMIT, bounds_of, spread
from ray_pcasgd.schedule.simulation import Timing, seconds_of
from ray_pcasgd.schedule.window_barrier import BarrierTimes
from ray_pcasgd.schedule.window_links import Links, Published
from ray_pcasgd.schedule.window_queues import Queues
from ray_pcasgd.schedule.window_reads import Knowledge, LinkReads, ReadColumns, Readers
from ray_pcasgd.schedule.window_times import AgentTimes, Window, moment_at, nanoseconds_of

_Record = TypeVar("_Record", Read, Row)

_FEWEST_READS = 2_000
"""Reads of the first window, if links are few; others have more and more."""
_MOST_READS = 100_000
"""Reads of a window, if links are few."""
_READS_OF_LINK = 4
"""Reads of a window for each link, at least: what is done link by link is then little of the work."""
_READS_AT_ONCE = 10_000
"""Reads that stand in memory as objects at once, unless rows are kept."""


class _Rows(NamedTuple):
    """Rows and their reads, shape (rows,) and (reads,)."""

    agent: np.ndarray
    step: np.ndarray
    start: np.ndarray
    """In nanoseconds."""
    ready: np.ndarray
    end: np.ndarray
    """The moment."""
    bounds: np.ndarray
    """Where the reads of each row lie, shape (rows + 1,)."""
    reads: ReadColumns

    def at(self, places: np.ndarray) -> "_Rows":
        """Return the rows at these places."""
        counts = np.diff(self.bounds)[places]
        reads = self.reads.at(spread(self.bounds[places], counts))
        agent, step, start, ready, end = (one[places] for one in self[:5])
        return _Rows(agent, step, start, ready, end, bounds_of(counts), reads)

    def then(self, others: "_Rows") -> "_Rows":
        """Return these rows, and others after them."""
        agent, step, start, ready, end = (np.concatenate(both) for both in zip(self[:5], others[:5], strict=True))
        bounds = np.concatenate([self.bounds, self.bounds[-1] + others.bounds[1:]])
        return _Rows(agent, step, start, ready, end, bounds, self.reads.then(others.reads))


class Windows:
    """The rows of a plan whose agents read all their neighbors, in windows of virtual time.

    When an agent that waits for nobody publishes is a sum of its compute times. From this follows when its messages
    come through their queues, each a recurrence of its own, and from that what is read: no window needs a later one.
    Agents that wait for all their neighbors are let through their barriers first, step by step (``BarrierTimes``).
    """

    def __init__(
        self,
        timing: Timing,
        rounds: Rounds,
        neighbors: Sequence[tuple[int, ...]],
        message_bytes: int,
        combines_first: bool,
        barrier: AllBarrier | BoundedBarrier | None,
    ) -> None:
        self._combines_first = combines_first
        self._neighbors = neighbors
        self._links = Links(timing, rounds, neighbors, message_bytes)
        self._times: AgentTimes | BarrierTimes
        if barrier is None:
            self._times = AgentTimes(timing, rounds, len(neighbors))
        else:
            staleness = barrier.staleness if isinstance(barrier, BoundedBarrier) else 0
            # Delays are drawn twice, from the same streams: to find when steps end, and then for what is read.
            self._times = BarrierTimes(timing, rounds, Links(timing, rounds, neighbors, message_bytes), staleness)
        self._queues = Queues(self._links, timing.hosts)
        self._knowledge = Knowledge(self._links, isinstance(barrier, AllBarrier))
        self._computing: _Rows | None = None
        """The rows of agents that have read, and compute after the last window."""

    def __iter__(self) -> Iterator[tuple[int, Iterable[Row]]]:
        """Yield rows, and how many they are.

        Raises:
            OutOfRangeError: numbers are too large from here on.

        """
        num_agents, num_links = len(self._links.degree), len(self._links.sender)
        longest = LIMIT // moment_at(num_agents + 1) - 1
        reads = _FEWEST_READS
        while True:
            wanted = max(reads, _READS_OF_LINK * num_links, self._knowledge.num_messages)
            window = self._times.window(max(wanted * num_agents // max(num_links, num_agents), 1), longest)
            if window is None:
                return
            yield from _objects(self._rows(window), self._neighbors)
            reads = min(2 * reads, _MOST_READS)

    def _rows(self, window: Window) -> _Rows:
        """Return the rows that end in a window, in their order."""
        published = _published(window)
        readers, starts = self._readers(window, published)
        sent = self._links.send(published)
        arrival, landed = self._queues.arrivals(sent, published, window.end_nanosecond)
        read = self._knowledge.read(window, published, readers, sent, arrival, landed)
        if not self._combines_first:
            order = np.argsort(window.moments[starts + 1], kind="stable")
            return self._arranged(window, readers, starts, read, order)
        rows = self._arranged(window, readers, starts, read, np.arange(len(starts)))
        rows = rows if self._computing is None else self._computing.then(rows)
        has_ended = rows.end < window.end
        order = np.lexsort((rows.agent, rows.end))
        ended = has_ended[order]
        self._computing = rows.at(order[~ended])
        return rows.at(order[ended])

    def _readers(self, window: Window, published: Published) -> tuple[Readers, np.ndarray]:
        """Return who reads in the window, and the place of the moment at which each one's row starts."""
        if not self._combines_first:
            starts = spread(window.bounds[:-1], window.counts)
            step = published.version - 1
            return Readers(published.counts, published.bounds, published.agent, step, published.moment), starts
        # An agent reads in the round after that in which it has published, unless that was its last version.
        is_first = window.begin == 0
        has_more = window.versions + window.counts < self._times.last
        counts = window.counts + np.where(window.versions < self._times.last, has_more - 1 + is_first, 0)
        starts = spread(window.bounds[:-1] + (not is_first), counts)
        agent = np.repeat(np.arange(len(counts)), counts)
        step = window.versions[agent] + starts - window.bounds[agent]
        return Readers(counts, bounds_of(counts), agent, step, window.moments[starts] + 1), starts

    def _arranged(
        self, window: Window, readers: Readers, starts: np.ndarray, read: LinkReads, order: np.ndarray
    ) -> _Rows:
        """Return the rows of readers in an order."""
        agent, start = readers.agent[order], starts[order]
        counts = self._links.degree[agent]
        link = spread(self._links.bounds[agent], counts)
        reads = read.reads.at(read.bounds[link] + np.repeat(order - readers.bounds[agent], counts))
        begun, ready, end = nanoseconds_of(window.moments[start]), window.ready[start + 1], window.moments[start + 1]
        return _Rows(agent, readers.step[order], begun, ready, end, bounds_of(counts), reads)


def _published(window: Window) -> Published:
    counts = window.counts
    agent = np.repeat(np.arange(len(counts)), counts)
    moment = window.moments[spread(window.bounds[:-1] + 1, counts)]
    return Published(
        counts, bounds_of(counts), agent, spread(window.versions + 1, counts), moment, nanoseconds_of(moment)
    )


def _objects(rows: _Rows, neighbors: Sequence[tuple[int, ...]]) -> Iterator[tuple[int, Iterable[Row]]]:
    """Yield rows as objects, which are made as they are asked for, and how many they are."""
    begin = 0
    while begin < len(rows.agent):
        upto = int(np.searchsorted(rows.bounds, rows.bounds[begin] + _READS_AT_ONCE))
        end = min(max(upto, begin + 1), begin + _READS_AT_ONCE, len(rows.agent))
        yield end - begin, _made(rows, slice(begin, end), neighbors)
        begin = end


def _made(rows: _Rows, part: slice, neighbors: Sequence[tuple[int, ...]]) -> Iterable[Row]:
    agents = rows.agent[part].tolist()
    of_reads = slice(rows.bounds[part.start], rows.bounds[part.stop])
    read = chain.from_iterable(map(neighbors.__getitem__, agents))
    made = _made_of(Read, read, *(one[of_reads].tolist() for one in rows.reads))
    counts = np.diff(rows.bounds[part.start : part.stop + 1])
    reads: Iterable[tuple[Read, ...]]
    if counts[0] and (counts == counts[0]).all():
        reads = zip(*[made] * int(counts[0]), strict=True)
    else:
        reads = map(tuple, map(islice, repeat(made), counts.tolist()))
    ends = seconds_of(nanoseconds_of(rows.end[part])).tolist()
    starts, ready = (seconds_of(one[part]).tolist() for one in (rows.start, rows.ready))
    columns = (agents, rows.step[part].tolist(), starts, ready, ends)
    return _made_of(Row, *columns, reads, repeat("step"), repeat(()))


def _made_of(record: type[_Record], *columns: Iterable[Any]) -> Iterator[_Record]:
    """Yield records of these columns, in a fourth of the time that calls of the class take.

    Its own ``__new__`` is Python's.
    """
    new: Any = tuple.__new__
    return map(new, repeat(record), zip(*columns, strict=False))
