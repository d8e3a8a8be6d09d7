"""Which version a live agent reads, the newest that has come, and how it estimates its staleness."""

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, MutableSequence
from statistics import median_low
from typing import Any, NamedTuple

from ray_pcasgd.agents.mailbox import Header, Mailbox
from ray_pcasgd.records import Read

TRANSITS = 96
"""Messages over which a link's transit time is the median: more than twice as many as can wait for a stopped reader."""

LEAST_LAG = 2
"""Steps that a neighbor may be behind in any case."""


class OwnTimes(NamedTuple):
    """When the reader itself published its versions."""

    first_version: int
    sent_at: MutableSequence[float]
    """Wall-clock seconds of ``first_version`` and the versions after it, as long as the run: 8 bytes each."""

    def pace(self, steps: int) -> float:
        """Return the mean seconds between the newest versions, over ``steps`` of them; 0 before there are two."""
        recent = self.sent_at[-steps - 1 :]
        return (recent[-1] - recent[0]) / (len(recent) - 1) if len(recent) > 1 else 0.0

    def steps_since(self, moment: float) -> int:
        """Return how many steps the reader has taken since that moment."""
        return len(self.sent_at) - bisect_right(self.sent_at, moment)


class NeighborTracker:
    """How far a neighbor has come, as its messages tell: its newest version, and how long its messages take.

    A message counts from the moment that it is here, also where an injected delay still holds it back: the tracker
    knows what the reader's process knows. Nobody can know more than that, so what it adds for steps that no message
    has told of yet is bounded by what a message takes to come, and by the last version that there will be.
    """

    def __init__(self, last_version: int) -> None:
        self.last_version = last_version
        """The version at which the neighbor has taken all its steps."""
        self.newest: Header | None = None
        """Of the highest version that a message has told of."""
        self._transits: deque[float] = deque(maxlen=TRANSITS)

    def take(self, header: Header, now: float) -> None:
        """Take in a message that has come at wall-clock second ``now``."""
        self._transits.append(now - header.sent_at)
        if self.newest is None or header.version >= self.newest.version:
            self.newest = header

    @property
    def transit_seconds(self) -> float:
        """Seconds from sending to arrival, by both clocks: the median of the last messages.

        Not their mean: what kept a few of them waiting, a reader that was stopped above all, does not show how
        long the messages take that are under way now. The clocks of two machines differ, so it may be negative.
        """
        return median_low(self._transits) if self._transits else 0.0

    def missed(self, now: float) -> int:
        """Return how many steps the neighbor has taken since its newest known version, as far as there is evidence.

        The seconds since that version was sent, in the sender's own mean step times, but no more than a message takes
        to come: a step before that would be known. A neighbor that is silent for longer is slow, and not ahead.
        """
        newest = self.newest
        if newest is None or newest.final or newest.step_seconds <= 0:
            return 0
        seconds = max(0.0, min(now - newest.sent_at, self.transit_seconds))
        return max(0, int(min(seconds / newest.step_seconds, self.last_version - newest.version)))

    def lag(self, step: int, now: float) -> int:
        """Return how many steps the neighbor is behind a reader at ``step``, negative where it is ahead."""
        told = 0 if self.newest is None else self.newest.version
        return step - told - self.missed(now)

    def has_finished(self) -> bool:
        """Return whether the neighbor is known to take no more steps."""
        return self.newest is not None and self.newest.final

    def lateness(self, now: float) -> float:
        """Return the age of the newest message in seconds, beyond what messages take to come."""
        return 0.0 if self.newest is None else now - self.newest.sent_at - self.transit_seconds


def is_lagging(lag: int, step: int, max_lag: float | None) -> bool:
    """Return whether a neighbor is too far behind a reader at ``step`` to be read.

    **Choice**: mixed unchanged, a version of fewer steps pulls its reader back, and the more so the shorter the run.

    >>> is_lagging(3, 50, 0.05), is_lagging(2, 20, 0.05), is_lagging(40, 1000, 0.05), is_lagging(40, 50, None)
    (True, False, False, False)
    """
    return max_lag is not None and lag > max(LEAST_LAG, max_lag * step)


def choose_read(
    mailbox: Mailbox[Any],
    neighbor: int,
    cap: int | None,
    now: float,
    tracker: NeighborTracker,
    own: OwnTimes,
    may_read: Callable[[Read], bool],
    only_news: bool = False,
) -> Read | None:
    """Return what to read of one neighbor at wall-clock second ``now``, or None where it has to be left out.

    The newest version, none newer than ``cap``, of which everything that is needed is here: ``may_read(read)``. A
    stale version whose direction has not come yet so gives way to the one before it. Where ``only_news`` is read, not
    every version is sent: delays in steps then end by the sender's step time, not with a later message.
    """
    readable = mailbox.readable(neighbor, cap, now if only_news else None)
    if readable is None:
        return None
    reads = _reads(mailbox, neighbor, cap, now, tracker, own)
    return next((read for read in reversed(reads) if read.version <= readable and may_read(read)), None)


def choose_all(
    mailbox: Mailbox[Any],
    neighbor: int,
    cap: int | None,
    now: float,
    tracker: NeighborTracker,
    own: OwnTimes,
    may_read: Callable[[Read], bool],
) -> list[Read]:
    """Return every version of one neighbor that may be read at wall-clock second ``now``, oldest first."""
    reads = _reads(mailbox, neighbor, cap, now, tracker, own)
    return [read for read in reads if mailbox.is_readable(neighbor, read.version, cap) and may_read(read)]


def _reads(
    mailbox: Mailbox[Any], neighbor: int, cap: int | None, now: float, tracker: NeighborTracker, own: OwnTimes
) -> list[Read]:
    """Return the versions of a neighbor that are here as reads, oldest first."""
    newest = mailbox.newest(neighbor)
    if newest is None:
        return []
    if cap is None:
        told = newest.version if tracker.newest is None else max(newest.version, tracker.newest.version)
        reached = told + tracker.missed(now)
    else:
        reached = min(newest.version, cap)
    reads = []
    for version in sorted(mailbox.versions(neighbor)):
        message = mailbox.get(neighbor, version)
        assert message is not None
        age = own.steps_since(message.header.sent_at)
        reads.append(Read(neighbor, version, reached - version, age))
    return reads
