"""Recipients: a neighbor as its messages are sent to it, by calls of Ray or over a link on one host."""

import logging
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import ray
from ray.exceptions import RayTaskError

from ray_pcasgd.agents.mailbox import Header
from ray_pcasgd.engines.live.window import Window
from ray_pcasgd.engines.messages import Contents
from ray_pcasgd.engines.ray.lost import GONE, first_line
from ray_pcasgd.engines.ray.parcels import bytes_of
from ray_pcasgd.engines.ray.telling import once_there
from ray_pcasgd.engines.shared.door import Door
from ray_pcasgd.engines.shared.link import GoneError, Link, Mark
from ray_pcasgd.engines.shared.slots import Slot, Slots
from ray_pcasgd.engines.transport import Transport

logger = logging.getLogger("ray_pcasgd")

CHECKED_CALLS = 16
"""Messages to one neighbor after which its answers are looked at in any case."""

CHECKED_BYTES = 1024 * 1024
"""Bytes of messages to one neighbor on this host after which its answers are looked at: memory of small ones may wait
until it is used again."""


class Outgoing:
    """A message's contents, made ready once for all neighbors that are sent them in the same way."""

    def __init__(self, contents: Contents | None, transport: Transport, slots: Slots) -> None:
        self._contents = contents
        self._transport = transport
        self._slots = slots
        self._slot: Slot | None = None
        self._writing = 0

    @cached_property
    def arguments(self) -> list[Any]:
        """What stands for them in a call."""
        return self._transport.arguments(self._contents)

    @cached_property
    def num_bytes(self) -> int:
        """The bytes of them."""
        return bytes_of(self._contents)

    def slot(self) -> Slot | None:
        """Return a slot that holds them, also where its readers have let go of it meanwhile; ``None`` without any."""
        if self._contents is None:
            return None
        if self._slot is None or self._slot.writings != self._writing:
            self._slot = self._slots.written(self._contents)
            self._writing = self._slot.writings
        return self._slot


class Letter(NamedTuple):
    """A message to one neighbor, ready to be sent."""

    header: Header
    outgoing: Outgoing


class Recipient(ABC):
    """One neighbor; its methods are called with the outbox's lock held, and none waits."""

    def __init__(self) -> None:
        self.window = Window()
        self.unsent: Letter | None = None
        """The newest message, where it waits for an answer to one before it."""
        self.is_watched = False
        """Whether the outbox is told of the next answer."""
        self.last_sent = -1
        """The newest version that was sent."""
        self.run = 0
        """How many versions before it were sent without a gap."""

    @property
    @abstractmethod
    def num_pending(self) -> int:
        """Messages and marks that are not known to be answered."""

    @property
    def is_full(self) -> bool:
        """Whether as much is unanswered as may be."""
        return self.num_pending >= self.window.allowed

    def needs_look(self, may_skip: bool) -> bool:
        """Return whether its answers are to be looked at before the next message."""
        return self.num_pending >= CHECKED_CALLS or (may_skip and self.is_full)

    @property
    def is_clogged(self) -> bool:
        """Whether something was sent that no room was found for yet."""
        return False

    def send(self, letter: Letter, now: float) -> None:
        """Send a message; an older one that waits is not sent any more."""
        version = letter.header.version
        self._send(letter, now)
        self.run = self.run + 1 if version == self.last_sent + 1 else 1
        self.last_sent, self.unsent = version, None

    @abstractmethod
    def _send(self, letter: Letter, now: float) -> None: ...

    def completes_pair(self, version: int) -> bool:
        """Return whether a version's message has the direction of one that was sent after a gap."""
        return self.run == 1 and version == self.last_sent + 1

    @abstractmethod
    def mark(self, sender: int, cut: int, sent: int) -> None:
        """Tell how many messages were sent before a cut."""

    @abstractmethod
    def ask(self, reader: int) -> None:
        """Ask for a whole copy for a reader."""

    @abstractmethod
    def is_alive(self, now: float) -> bool:
        """Return whether the neighbor has not failed to take a message; forget those that it took."""

    @abstractmethod
    def once_answered(self, then: Callable[[], None]) -> None:
        """Call ``then`` from another thread once there is an answer, or room; or without either."""

    @abstractmethod
    def bytes_in_flight(self) -> int:
        """Return the bytes of what is not answered."""

    @property
    def may_read(self) -> bool:
        """Whether its process may still read from this one's memory."""
        return False


class _Pending(NamedTuple):
    """A call, or a letter, that is not known to be answered."""

    call: Any
    made_at: float
    num_bytes: int
    is_message: bool = True


class Called(Recipient):
    """A neighbor whose actor is called: on another host, or where memory is not shared."""

    def __init__(self, handle: Any) -> None:
        super().__init__()
        self._handle = handle
        self._receive: Any = handle.receive
        self._pending: deque[_Pending] = deque()

    @property
    def num_pending(self) -> int:
        """Calls that are not known to be answered."""
        return len(self._pending)

    def _send(self, letter: Letter, now: float) -> None:
        outgoing = letter.outgoing
        self._pending.append(
            _Pending(self._receive.remote(letter.header, *outgoing.arguments), now, outgoing.num_bytes)
        )

    def mark(self, sender: int, cut: int, sent: int) -> None:
        """Tell how many messages were sent before a cut."""
        self._call(self._handle.take_mark.remote(sender, cut, sent))

    def ask(self, reader: int) -> None:
        """Ask for a whole copy for a reader."""
        self._call(self._handle.send_whole.remote(reader))

    def _call(self, call: Any) -> None:
        self._pending.append(_Pending(call, time.monotonic(), 0, is_message=False))

    def is_alive(self, now: float) -> bool:
        """Return whether the neighbor has not failed to take a message; forget those that it took."""
        calls = [one.call for one in self._pending]
        done, _ = ray.wait(calls, num_returns=len(calls), timeout=0) if calls else ([], [])
        for call in done:
            try:
                ray.get(call)
            except GONE:
                return False
            except RayTaskError as error:
                # Whatever it makes of a message, it is there; it says itself what it rejects.
                logger.warning("a message was not taken: %s", first_line(error))
        answered = set(done)
        for one in self._pending:
            if one.call in answered and one.is_message:
                self.window.answered(one.made_at, now)
        self._pending = deque(one for one in self._pending if one.call not in answered)
        return True

    def once_answered(self, then: Callable[[], None]) -> None:
        """Call ``then`` from another thread once the oldest call is answered."""
        once_there(self._pending[0].call, then)

    def bytes_in_flight(self) -> int:
        """Return the bytes of messages that no answer has come to."""
        sizes = {one.call: one.num_bytes for one in self._pending if one.num_bytes}
        calls = list(sizes)
        _, unanswered = ray.wait(calls, num_returns=len(calls), timeout=0) if calls else ([], [])
        return sum(sizes[call] for call in unanswered)


class Linked(Recipient):
    """A neighbor on the same host, which reads from the sender's slots."""

    def __init__(self, handle: Any, link: Link, door: Door) -> None:
        super().__init__()
        self._handle = handle
        self._link = link
        self._door = door
        self._pending: deque[_Pending] = deque()
        """In the order in which they are answered."""
        self._num_bytes = 0
        """Of them."""
        self._is_gone = False

    @property
    def num_pending(self) -> int:
        """Letters and marks that are not known to be answered."""
        return len(self._pending)

    def needs_look(self, may_skip: bool) -> bool:
        """Return whether its answers are to be looked at before the next message; they say which slots are free."""
        return self._is_gone or self._num_bytes > CHECKED_BYTES or super().needs_look(may_skip)

    @property
    def is_clogged(self) -> bool:
        """Whether something was sent that no room was found for yet."""
        return not self._is_gone and self._link.is_clogged

    def _send(self, letter: Letter, now: float) -> None:
        slot, num_bytes = letter.outgoing.slot(), letter.outgoing.num_bytes
        self._pending.append(_Pending(None, now, num_bytes))
        self._num_bytes += num_bytes
        try:
            self._link.tell(letter.header, slot)
        except GoneError:
            self._end()  # which the next look finds, as with calls

    def mark(self, sender: int, cut: int, sent: int) -> None:
        """Tell how many messages were sent before a cut."""
        self._pending.append(_Pending(None, time.monotonic(), 0, is_message=False))
        try:
            self._link.mark(Mark(sender, cut, sent))
        except GoneError:
            self._end()

    def ask(self, reader: int) -> None:
        """Ask for a whole copy for a reader, by a call of Ray; where that is lost, it is asked again."""
        self._handle.send_whole.remote(reader)

    def is_alive(self, now: float) -> bool:
        """Return whether the neighbor's process has not ended; forget what it has taken in."""
        if self._is_gone:
            return False
        try:
            answered = self._link.answers()
        except GoneError:
            self._end()
            return False
        for _ in range(answered):
            one = self._pending.popleft()
            self._num_bytes -= one.num_bytes
            if one.is_message:
                self.window.answered(one.made_at, now)
        return True

    def _end(self) -> None:
        """Take in that the neighbor's process has ended: nobody reads there what it was sent."""
        self._is_gone = True
        self._link.close()

    def once_answered(self, then: Callable[[], None]) -> None:
        """Call ``then`` from another thread once the neighbor has answered or ended, or there is room."""
        if self._is_gone:
            return  # the next look says so
        self._door.watch(self._link.fileno(), self._link.is_clogged, then)

    def bytes_in_flight(self) -> int:
        """Return the bytes of messages that no answer was found to."""
        self.is_alive(time.monotonic())
        return 0 if self._is_gone else self._num_bytes

    @property
    def may_read(self) -> bool:
        """Whether its process may still read from this one's memory: as long as it lives."""
        return not self._is_gone
