"""How many messages a live peer's reports count: a report goes out before its version, which may have to wait."""


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
