"""Versioned messages of an agent's neighbors, as plain data, without waiting and without a clock."""

from typing import Generic, NamedTuple, TypeVar

Payload = TypeVar("Payload")

FALLBACK_VERSIONS = 1
"""How many versions below the last one read are kept: a live reader may fall back by one, see ``schedule.reading``."""


class Answer(NamedTuple):
    """What a server says to a worker, in addition to the version that the worker is to read."""

    newest: int
    """The server's newest version."""
    answers: int
    """The worker's newest gradient that this answers."""


class Delivery(NamedTuple):
    """What a worker says of its gradient."""

    computed_at: int
    """The server's version that it was computed at."""
    round: int
    """The newest version of the server that the worker knew when it started."""
    loss: float


class Header(NamedTuple):
    """What travels with every message, and is known to the reader before any weights are fetched."""

    sender: int
    version: int
    sent_at: float
    """Wall-clock seconds (``time.time``) at the sender."""
    step_seconds: float
    """The sender's recent mean seconds for a step."""
    final: bool = False
    """The sender takes no further step: this version stays its newest."""
    isolated: bool = False
    """The sender has left the run after version ``version``; if this message holds anything, then for the direction at
    that version."""
    latency_seconds: float = 0.0
    """Injected: the message counts as arrived only after this many seconds more."""
    hold_steps: int = 0
    """Injected: its weights count as readable only once the sender's version ``version + hold_steps`` is known."""
    note: Answer | Delivery | None = None
    """Between workers and servers alone."""
    mass: float = 1.0
    """Of the sender's version, where rules push shares of it."""
    is_difference: bool = False
    """Whether it holds what leads from the sender's public copy at the version before to that at this one."""


class Message(NamedTuple, Generic[Payload]):
    """One version of a neighbor; its contents hold the direction of the version before, where rules need it."""

    header: Header
    contents: Payload | None
    """``None`` where the sender has left the run."""


class Mailbox(Generic[Payload]):
    """The messages that have come from each neighbor.

    ``newest(k)`` is the highest version whose message has arrived; ``readable(k)`` the highest one whose weights are
    not held back. Version ``v``'s direction comes with message ``v + 1``, since it is known only then, unless agents
    combine first.
    """

    def __init__(self, neighbors: tuple[int, ...]) -> None:
        self._messages: dict[int, dict[int, Message[Payload]]] = {k: {} for k in neighbors}
        self._in_flight: dict[int, list[tuple[float, Message[Payload]]]] = {k: [] for k in neighbors}
        self._newest: dict[int, Header] = {}
        self._isolated: dict[int, int] = {}

    def put(self, message: Message[Payload], now: float) -> None:
        """Take in a message at time ``now`` (the reader's clock); links keep the order of their messages."""
        queue = self._in_flight[message.header.sender]
        due = now + message.header.latency_seconds
        queue.append((max(due, queue[-1][0]) if queue else due, message))
        self.advance(now)

    def advance(self, now: float) -> None:
        """Let everything arrive that is due by ``now``."""
        for queue in self._in_flight.values():
            while queue and queue[0][0] <= now:
                self._arrive(queue.pop(0)[1])

    def next_due(self) -> float | None:
        """Return when the next message in flight is due, or ``None`` if no message is in flight."""
        return min((queue[0][0] for queue in self._in_flight.values() if queue), default=None)

    def _arrive(self, message: Message[Payload]) -> None:
        header = message.header
        if header.isolated:
            self.isolate(header.sender, header.version)
            if message.contents is not None:  # the direction at its last version
                self._messages[header.sender][header.version + 1] = message
            return
        self._messages[header.sender][header.version] = message
        known = self._newest.get(header.sender)
        if known is None or known.version < header.version:
            self._newest[header.sender] = header

    def start(self, message: Message[Payload]) -> None:
        """Put the version that all agents start from, at the start; it may be put anew."""
        self._messages[message.header.sender][message.header.version] = message
        self._newest.setdefault(message.header.sender, message.header)

    def newest(self, neighbor: int) -> Header | None:
        """Return the header of the neighbor's newest arrived version."""
        return self._newest.get(neighbor)

    def isolate(self, neighbor: int, version: int) -> None:
        """Take in that the neighbor has left the run after that version."""
        self._isolated[neighbor] = version

    def readmit(self, neighbor: int) -> None:
        """Take in that the neighbor comes back into the run; what it was before is read no more."""
        self._isolated.pop(neighbor, None)
        self._messages[neighbor].clear()
        self._in_flight[neighbor].clear()

    def left_at(self, neighbor: int) -> int | None:
        """Return the last version of a neighbor that has left the run."""
        return self._isolated.get(neighbor)

    def isolated(self, neighbor: int, version: int) -> bool:
        """Return whether the neighbor left the run before it took that version."""
        return neighbor in self._isolated and version > self._isolated[neighbor]

    def left(self, neighbor: int) -> bool:
        """Return whether the neighbor has left the run."""
        return neighbor in self._isolated

    def get(self, neighbor: int, version: int) -> Message[Payload] | None:
        """Return the message of that version, if it is here."""
        return self._messages[neighbor].get(version)

    def versions(self, neighbor: int) -> list[int]:
        """Return the versions of the neighbor that are here."""
        return list(self._messages[neighbor])

    def following(self, neighbor: int, version: int, lag: int = 1) -> Payload | None:
        """Return the contents of the message ``lag`` versions later, which hold its direction, if they are here."""
        message = self._messages[neighbor].get(version + lag)
        return message.contents if message else None

    def readable(self, neighbor: int, cap: int | None, now: float | None = None) -> int | None:
        """Return the newest version whose weights may be read, none newer than ``cap`` where one is given.

        With a wall-clock second ``now``, what is held back for a number of steps is let go once the sender takes no
        longer for them: for rules that do not send every version, whose next message may be long in coming.
        """
        versions = (v for v in self._messages[neighbor] if self.is_readable(neighbor, v, cap, now))
        return max(versions, default=None)

    def is_readable(self, neighbor: int, version: int, cap: int | None, now: float | None = None) -> bool:
        """Return whether a version that is here is not held back, if versions up to ``cap`` are known."""
        newest = self._newest[neighbor].version
        header = self._messages[neighbor][version].header
        if version + header.hold_steps <= (newest if cap is None else min(newest, cap)):
            return True
        if now is None or (cap is not None and version > cap):
            return False
        return header.final or now - header.sent_at >= header.hold_steps * header.step_seconds

    def forget(self, neighbor: int, before: int, slack: int = FALLBACK_VERSIONS) -> None:
        """Drop what no later step can ask for, once version ``before`` of the neighbor has been read.

        Later reads fall back by no more than ``slack`` versions.
        """
        messages = self._messages[neighbor]
        for version in [v for v in messages if v < before - slack]:
            del messages[version]

    def discard(self, neighbor: int, version: int) -> None:
        """Drop one version, which is not read again."""
        self._messages[neighbor].pop(version, None)

    @property
    def num_held(self) -> int:
        """Number of messages that are held, those included that an injected latency keeps from arriving."""
        return len(self) + sum(map(len, self._in_flight.values()))

    def __len__(self) -> int:
        return sum(map(len, self._messages.values()))


class OnceMailbox(Mailbox[Payload]):
    """A mailbox that also knows in which order messages have come, and in which each is read once."""

    def __init__(self, neighbors: tuple[int, ...]) -> None:
        super().__init__(neighbors)
        self._arrived: list[Header] = []
        self._dropped = dict.fromkeys(neighbors, -1)

    def _arrive(self, message: Message[Payload]) -> None:
        super()._arrive(message)
        self._arrived.append(message.header)
        self.drop(message.header.sender, -1)

    @property
    def has_news(self) -> bool:
        """Return whether a message has come since ``news`` was called last."""
        return bool(self._arrived)

    def news(self) -> list[Header]:
        """Return the headers that have come since the last call, in their order."""
        arrived, self._arrived = self._arrived, []
        return arrived

    def drop(self, neighbor: int, last: int) -> None:
        """Drop the neighbor's messages up to version ``last``, those too that are still to come."""
        self._dropped[neighbor] = max(self._dropped[neighbor], last)
        messages = self._messages[neighbor]
        for version in [v for v in messages if v <= self._dropped[neighbor]]:
            del messages[version]
