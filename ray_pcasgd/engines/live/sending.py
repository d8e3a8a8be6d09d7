"""What a live peer remembers of what it sends.

How many messages its reports count, where a report goes out before its version, which may have to wait; and who has its
last version.
"""

from collections.abc import Collection, Iterable


class SentCount:
    """Counts the messages that were sent, where each report has to say so before it is known.

    A report counts all receivers of its version, less those of earlier ones that were counted and then not sent, and
    with those that were sent late after all; so the sum over all reports is what was sent up to the last version.
    """

    def __init__(self) -> None:
        self._excess = 0
        """Messages that were counted and not sent; negative: sent and not counted."""

    def sent(self, receivers: int, messages: int) -> None:
        """Take in how many messages were sent for a version's receivers, earlier ones that had waited included."""
        self._excess += receivers - messages

    def counted(self, receivers: int) -> int:
        """Return how many messages the report of a version counts, with so many receivers."""
        number = max(0, receivers - self._excess)
        self._excess -= receivers - number
        return number


class InStep:
    """Whom a live peer has sent the version before, so that a difference from it is enough.

    All others are sent a whole copy: agents that come in or back, those to whom no message got through meanwhile, and
    those that have lost one and ask.
    """

    def __init__(self) -> None:
        self._sent: dict[int, int] = {}
        """The newest version that was sent to each, without a gap since the last whole copy."""
        self._behind: frozenset[int] = frozenset()
        """Who is to be sent a whole copy of the newest version, where others are sent a difference."""
        self._unreported = 0
        """Whole copies that were sent in place of differences, and that no report has counted."""

    def begin(self, receivers: Iterable[int]) -> None:
        """Take in who is there as the run begins: all of them know version 0."""
        self._sent = dict.fromkeys(receivers, 0)

    def send(self, receivers: Collection[int], version: int, is_difference: bool) -> frozenset[int]:
        """Return who is to be sent a whole copy of a version, which all of these are about to be sent."""
        behind = frozenset(k for k in receivers if not is_difference or self._sent.get(k) != version - 1)
        self._sent |= dict.fromkeys(receivers, version)
        # Where nobody can be sent a difference, the report of the version itself counts whole copies.
        self._behind = behind if is_difference else frozenset()
        return behind

    def sent(self, receivers: Iterable[int], to: Collection[int]) -> None:
        """Take in to whom of the receivers of the newest version it was sent."""
        self.lose(k for k in receivers if k not in to)
        self._unreported += len(self._behind.intersection(to))
        self._behind = frozenset()

    def lose(self, receivers: Iterable[int]) -> None:
        """Take in that these do not have what was sent last, have lost it, or are others than they were."""
        for k in receivers:
            self._sent.pop(k, None)

    def counted(self) -> int:
        """Return how many whole copies were sent in place of differences since the last call."""
        found, self._unreported = self._unreported, 0
        return found
