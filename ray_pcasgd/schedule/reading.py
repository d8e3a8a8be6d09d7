"""What a live agent reads: the newest that has come, and how stale it takes that to be."""

from bisect import bisect_right
from collections.abc import Callable
from typing import Any, NamedTuple

from ray_pcasgd.mailbox import Header, Mailbox
from ray_pcasgd.records import Read


class OwnTimes(NamedTuple):
    """When the reader itself published its versions."""

    first_version: int
    sent_at: list[float]
    """Wall-clock seconds of ``first_version`` and the versions after it."""

    def steps_since(self, moment: float) -> int:
        """Return how many steps the reader has taken since that moment."""
        return len(self.sent_at) - bisect_right(self.sent_at, moment)


def steps_missed(newest: Header, now: float, transit_seconds: float) -> int:
    """Return how many steps a neighbor has probably taken since its newest known version.

    Nobody can know it: the count is the seconds since that version was sent, in the sender's own mean step times, but
    no more than its messages take to come. What it had done before those seconds would be known: one that is silent
    for longer is slow, and not ahead.
    """
    if newest.final or newest.step_seconds <= 0:
        return 0
    return max(0, int(min(now - newest.sent_at, transit_seconds) / newest.step_seconds))


def choose_read(
    mailbox: Mailbox[Any],
    neighbor: int,
    cap: int | None,
    now: float,
    transit_seconds: float,
    own: OwnTimes,
    may_read: Callable[[Read], bool],
) -> Read | None:
    """Return what to read of one neighbor at time ``now``, or nothing where it has to be left out.

    The newest version, none newer than ``cap``, of which everything that is needed is here: ``may_read(read)``. A
    stale version whose direction has not come yet so gives way to the one before it. The neighbor's messages take
    ``transit_seconds`` to come.
    """
    readable = mailbox.readable(neighbor, cap)
    if readable is None:
        return None
    reads = _reads(mailbox, neighbor, cap, now, transit_seconds, own)
    return next((read for read in reversed(reads) if read.version <= readable and may_read(read)), None)


def choose_all(
    mailbox: Mailbox[Any],
    neighbor: int,
    cap: int | None,
    now: float,
    transit_seconds: float,
    own: OwnTimes,
    may_read: Callable[[Read], bool],
) -> list[Read]:
    """Return every version of one neighbor that may be read at time ``now``, oldest first."""
    reads = _reads(mailbox, neighbor, cap, now, transit_seconds, own)
    return [read for read in reads if mailbox.is_readable(neighbor, read.version, cap) and may_read(read)]


def _reads(
    mailbox: Mailbox[Any], neighbor: int, cap: int | None, now: float, transit_seconds: float, own: OwnTimes
) -> list[Read]:
    """Return the versions of a neighbor that are here as reads, oldest first."""
    newest = mailbox.newest(neighbor)
    if newest is None:
        return []
    known = newest.version if cap is None else min(newest.version, cap)
    missed = steps_missed(newest, now, transit_seconds) if cap is None else 0
    reads = []
    for version in sorted(mailbox.versions(neighbor)):
        message = mailbox.get(neighbor, version)
        assert message is not None
        age = own.steps_since(message.header.sent_at)
        reads.append(Read(neighbor, version, known - version + missed, age))
    return reads
