"""A link: the connection over which a sender tells one reader on its host what it has written into its slots."""

import array
import os
import pickle
import socket
import struct
import weakref
from collections import deque
from typing import Any, NamedTuple

from ray_pcasgd.agents.mailbox import Header
from ray_pcasgd.engines.shared.slots import Part, Slot

NOT_MAPPED = 1 << 63
"""In a reader's answer: more than any slot's number, and added to that of a segment which it could not map."""

MOST_RELEASED = 4096
"""Most slots that one answer of a reader lets go of."""

_CREDENTIALS = struct.Struct("3i")


class GoneError(Exception):
    """The process at the other end has ended."""


class Letter(NamedTuple):
    """What a sender tells of a message: its header, and where its contents lie."""

    header: Header
    slot: int | None
    """``None``: it has no contents."""
    segment: int = -1
    parts: tuple[Part | None, ...] = ()


class Mark(NamedTuple):
    """What a sender tells of a cut: how many messages it had sent to this reader before it."""

    sender: int
    cut: int
    sent: int


def address_of(name: str) -> str:
    """Return the address of a door: in Linux's abstract namespace, which has no files and ends with its process."""
    return f"\0ray-pcasgd-{name}"


def is_own(connection: socket.socket) -> bool:
    """Return whether the process at the other end is of the same user."""
    given = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, user, _ = _CREDENTIALS.unpack(given)
    return bool(user == os.geteuid())


def connected(name: str) -> "Link | None":
    """Return a link to the reader of that name; ``None`` where it is not on this host, or is of somebody else."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    try:
        connection.connect(address_of(name))
    except OSError:
        connection.close()
        return None
    if not is_own(connection):
        connection.close()
        return None
    return Link(connection)


class Link:
    """The sender's end, none of whose methods waits.

    What the kernel has no room for is kept here, and sent once there is room.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        weakref.finalize(self, connection.close)
        self._known: set[int] = set()
        """Segments that the reader has mapped."""
        self._held: dict[int, Slot] = {}
        """Slots that the reader may be reading."""
        self._unsent: deque[tuple[bytes, list[int]]] = deque()
        self._taken = 0
        self._answer = memoryview(array.array("Q", bytes(8 * (1 + MOST_RELEASED))))

    def fileno(self) -> int:
        """Return the descriptor of the connection, to wait for."""
        return self._connection.fileno()

    @property
    def is_clogged(self) -> bool:
        """Whether something waits until the kernel has room for it."""
        return bool(self._unsent)

    def tell(self, header: Header, slot: Slot | None) -> None:
        """Tell of a message, whose contents are in a slot.

        Raises:
            GoneError: the reader's process has ended.

        """
        if slot is None:
            self._send(Letter(header, None), [])
            return
        slot.readers.add(self)
        self._held[slot.number] = slot
        segment = slot.segment
        new = [] if segment.number in self._known else [segment.fd]
        self._known.add(segment.number)
        self._send(Letter(header, slot.number, segment.number, slot.parts), new)

    def mark(self, mark: Mark) -> None:
        """Tell of a cut.

        Raises:
            GoneError: the reader's process has ended.

        """
        self._send(mark, [])

    def _send(self, said: Letter | Mark, descriptors: list[int]) -> None:
        if self._connection.fileno() < 0:
            raise GoneError("the link is closed")
        self._unsent.append((packet(said), descriptors))
        self._push()

    def _push(self) -> None:
        while self._unsent:
            data, descriptors = self._unsent[0]
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
            try:
                self._connection.sendmsg([data], rights)
            except ConnectionError as error:
                raise GoneError(str(error)) from error
            except OSError:
                return  # no room, of whatever kind: only who has ended reads its slots no more
            self._unsent.popleft()

    def answers(self) -> int:
        """Take in the reader's answers; return how many letters and marks it has taken in since the last call.

        Raises:
            GoneError: the reader's process has ended.

        """
        before = self._taken
        while True:
            try:
                length = self._connection.recv_into(self._answer)
            except ConnectionError as error:
                raise GoneError(str(error)) from error
            except OSError:
                break
            if not length:
                raise GoneError("the reader has ended")
            self._taken, *released = self._answer[: length // 8]
            for number in released:
                if number >= NOT_MAPPED:
                    self._known.discard(number - NOT_MAPPED)  # it is given again with the next letter
                else:
                    self._release(number)
        self._push()
        return self._taken - before

    def _release(self, number: int) -> None:
        if (slot := self._held.pop(number, None)) is not None:
            slot.release(self)

    def close(self) -> None:
        """End the connection; the reader's process has ended, so nobody reads its slots."""
        for number in list(self._held):
            self._release(number)
        self._unsent.clear()
        self._connection.close()


def ack(taken: int, released: list[int]) -> bytes:
    """Return a reader's answer: what it has taken in so far, and which slots it has let go of."""
    return array.array("Q", [taken, *released]).tobytes()


def packet(said: Letter | Mark) -> bytes:
    """Return what is said, of plain tuples: named ones take several times as long."""
    if isinstance(said, Mark):
        return pickle.dumps((Mark.__name__, *said), 5)
    parts = tuple(None if part is None else tuple(part) for part in said.parts)
    return pickle.dumps((Letter.__name__, tuple(said.header), said.slot, said.segment, parts), 5)


def said_in(data: bytes | memoryview) -> Letter | Mark:
    """Return what a packet says.

    Raises:
        ValueError: it says nothing that is known.

    """
    kind, *fields = _unpickled(data)
    if kind == Mark.__name__:
        return Mark(*fields)
    if kind == Letter.__name__:
        header, slot, segment, parts = fields
        return Letter(Header(*header), slot, segment, tuple(None if part is None else Part(*part) for part in parts))
    raise ValueError(f"a packet of kind {kind!r:.80}")


def _unpickled(data: bytes | memoryview) -> Any:
    return pickle.loads(data)  # of the user's own process: the door has made sure of that
