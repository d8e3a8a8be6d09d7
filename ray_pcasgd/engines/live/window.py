"""How many messages a live peer may have under way to one neighbor: as many as the way there holds, and one more."""

import math
from collections import deque

FEWEST, MOST = 2, 32
"""Bounds of how many messages are allowed under way, whatever was measured."""

_ANSWERS = 16
"""Newest answers over which the rate of delivery is measured."""


def messages_allowed(round_trip: float, per_second: float) -> int:
    """Return how many messages may be under way: the bandwidth-delay product in whole messages, and one more.

    More than the product would only wait on the way, each making those behind it later. One more lets the number grow
    until all that is offered is delivered, and keeps a full link busy; so the queue is that one message.

    Args:
        round_trip: Seconds from sending a message to its answer where nothing queues: the smallest that was seen.
        per_second: Messages that are delivered in a second.

    As the window of BBR (Cardwell et al., BBR: Congestion-Based Congestion Control, 2016), without its gain of 2.

    >>> messages_allowed(0.1, 50.0), messages_allowed(0.1, 10.0), messages_allowed(0.002, 50.0)
    (6, 2, 2)
    >>> messages_allowed(10.0, 1000.0), messages_allowed(0.0, 0.0)
    (32, 2)

    """
    return max(FEWEST, min(1 + int(min(round_trip * per_second, MOST)), MOST))


class Window:
    """What is known of the way to one neighbor, and how many messages it so allows. Seconds are of one steady clock."""

    def __init__(self) -> None:
        self.round_trip = math.inf
        """The smallest seconds that any answer took: those that wait in a queue of messages take longer."""
        self._interval = 0.0
        """Recent mean seconds from one version to the next."""
        self._offered_at: float | None = None
        self._answered_at: deque[float] = deque(maxlen=_ANSWERS)

    def offered(self, now: float) -> None:
        """Take in that there is a version to be sent, whether it is sent or not."""
        if self._offered_at is not None:
            spent = now - self._offered_at
            longest = 4 * self._interval if self._interval else spent  # a pause is not a pace
            self._interval = 0.8 * self._interval + 0.2 * min(spent, longest) if self._interval else spent
        self._offered_at = now

    def answered(self, sent_at: float, now: float) -> None:
        """Take in that the answer to a message has come which was sent at ``sent_at``."""
        self.round_trip = min(self.round_trip, now - sent_at)
        self._answered_at.append(now)

    @property
    def per_second(self) -> float:
        """Messages that are delivered in a second, no more than are offered; 0 where that is not known yet.

        Where several answers were noticed at once, the first ones do not count: it is not known when they came.
        """
        if not self._answered_at or not self._interval:
            return 0.0
        first = self._answered_at[0]
        later, spent = sum(at > first for at in self._answered_at), self._answered_at[-1] - first
        return min(later / spent, 1 / self._interval) if spent > 0 else 0.0

    @property
    def allowed(self) -> int:
        """How many messages may be under way."""
        return messages_allowed(self.round_trip, self.per_second) if self._answered_at else FEWEST
