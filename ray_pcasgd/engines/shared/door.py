"""A door: where an agent takes in what others on its host tell it, in a thread of its own."""

import contextlib
import logging
import resource
import select
import socket
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Protocol

from ray_pcasgd.agents.mailbox import Header
from ray_pcasgd.engines.messages import Contents
from ray_pcasgd.engines.shared.link import MOST_RELEASED, NOT_MAPPED, Letter, Mark, ack, address_of, is_own, said_in
from ray_pcasgd.engines.shared.slots import LARGE, Mapped, Segment, contents_of

logger = logging.getLogger("ray_pcasgd")

_PACKET_BYTES = 128 * 1024
"""Most bytes of what is told at a time; arrays are in slots."""

_AT_A_TIME = 64
"""Letters of one sender after which the others' are looked at."""

_RIGHTS = socket.CMSG_SPACE(4 * 4)

_BACKLOG = 4096


class Inbox(Protocol):
    """Who takes in what comes; called in the door's thread."""

    def take_in(self, header: Header, contents: Contents | None) -> None:
        """Take in a message."""

    def note_mark(self, neighbor: int, cut: int, sent: int) -> None:
        """Take in how many messages a neighbor had sent before a cut."""


class _Sender:
    """The reader's end of one sender's link."""

    def __init__(self, connection: socket.socket, inbox: Inbox, locks_pages: bool) -> None:
        self.connection = connection
        self._inbox = inbox
        self._locks_pages = locks_pages
        self._mapped: dict[int, Mapped] = {}
        self._taken = 0
        self._released: deque[int] = deque()
        """Slots that are let go of, which the sender does not know yet."""
        self._told = 0
        """How much the sender knows to be taken."""
        self._buffer = bytearray(_PACKET_BYTES)

    def take_all(self) -> bool:
        """Take in what has come, and answer each; return whether the sender is still there."""
        for _ in range(_AT_A_TIME):
            try:
                length, rights, _, _ = self.connection.recvmsg_into([self._buffer], _RIGHTS)
            except ConnectionError:
                return False
            except OSError:
                break
            if not length:
                return False
            self._take(memoryview(self._buffer)[:length], _descriptors(rights) if rights else [])
            self._taken += 1
            self.answer()
        if self.owes:
            self.answer()
        return True

    def _take(self, data: memoryview, descriptors: list[int]) -> None:
        """Take in one packet; whatever is wrong with it, those after it are taken in too."""
        try:
            said = said_in(data)
            if isinstance(said, Mark):
                self._inbox.note_mark(*said)
                return
            self._inbox.take_in(said.header, None if said.slot is None else self._contents(said, descriptors))
        except Exception:  # as a call of Ray's would fail alone
            logger.exception("a message was not taken")

    def _contents(self, letter: Letter, descriptors: list[int]) -> Contents:
        number = letter.slot
        assert number is not None
        try:
            for fd in descriptors:
                self._mapped[letter.segment] = Mapped(fd)
            mapped = self._mapped[letter.segment]
            whole = mapped.whole()
        except (OSError, KeyError):
            # Short of descriptors, of which the kernel then drops what it cannot give, or of memory.
            self._released.extend((number, NOT_MAPPED + letter.segment))
            raise
        weakref.finalize(whole, _let_go, self._released, number, mapped).atexit = False
        contents = contents_of(whole, letter.parts)
        if self._locks_pages:
            for array in contents[:3]:
                if array is not None and array.nbytes >= LARGE:
                    mapped.pages.expect(array)
        return contents

    def answer(self) -> None:
        """Tell the sender what was taken and let go of; where there is no room for that, with the next answer."""
        released = [self._released.popleft() for _ in range(min(len(self._released), MOST_RELEASED))]
        if self._taken == self._told and not released:
            return
        try:
            self.connection.send(ack(self._taken, released))
            self._told = self._taken
        except OSError:
            self._released.extendleft(reversed(released))

    @property
    def owes(self) -> bool:
        """Whether an answer is due."""
        return self._told != self._taken


def _let_go(released: deque[int], number: int, mapped: Mapped) -> None:
    """Note that nobody reads a slot any more; until then, it holds what the slot lies in."""
    released.append(number)


def _descriptors(rights: list[tuple[int, int, bytes]]) -> list[int]:
    return [
        int.from_bytes(data[start : start + 4], "little")
        for level, kind, data in rights
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS
        for start in range(0, len(data) - 3, 4)
    ]


class Door:
    """Listens for senders on this host, and takes in what they tell.

    Args:
        name: By which senders reach it; of one process at a time.
        inbox: Who takes in what comes.
        locks_pages: Whether a GPU copies from what comes, so that its pages are to be locked.

    Raises:
        OSError: The name is taken, or this system has no such sockets or memory.

    """

    def __init__(self, name: str, inbox: Inbox, locks_pages: bool = False) -> None:
        if sys.platform != "linux":
            raise OSError(f"{sys.platform} has neither memfd nor abstract sockets")
        Segment(0, 1)  # this host may have no such memory
        self._inbox = inbox
        self._locks_pages = locks_pages
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            self._listener.bind(address_of(name))
        except OSError:
            self._listener.close()
            raise
        self._listener.listen(_BACKLOG)
        _allow_descriptors()
        self._epoll = select.epoll()
        self._epoll.register(self._listener, select.EPOLLIN)
        self._senders: dict[int, _Sender] = {}
        self._watched: dict[int, Callable[[], None]] = {}
        threading.Thread(target=self._serve, name="door", daemon=True).start()

    def watch(self, fd: int, for_room: bool, then: Callable[[], None]) -> None:
        """Call ``then`` once, in the door's thread, when a link's reader has answered or ended.

        Args:
            fd: Of the link.
            for_room: Whether it is also called when there is room for more.
            then: What is called. It may be called although nothing has happened.

        """
        self._watched[fd] = then
        events = select.EPOLLIN | select.EPOLLONESHOT | (select.EPOLLOUT if for_room else 0)
        try:
            self._epoll.register(fd, events)
        except FileExistsError:
            self._epoll.modify(fd, events)

    def _serve(self) -> None:
        while True:
            for fd, events in self._epoll.poll():
                try:
                    self._serve_one(fd, events)
                except Exception:  # nobody looks at what this thread comes to
                    logger.exception("what came over a link could not be taken in")

    def _serve_one(self, fd: int, events: int) -> None:
        if fd == self._listener.fileno():
            self._accept()
        elif (then := self._watched.pop(fd, None)) is not None:
            then()
        elif (sender := self._senders.get(fd)) is not None:
            is_there = sender.take_all()
            if not is_there:
                self._epoll.unregister(fd)
                del self._senders[fd]
                sender.connection.close()
            elif sender.owes or events & select.EPOLLOUT:
                self._epoll.modify(fd, select.EPOLLIN | (select.EPOLLOUT if sender.owes else 0))

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError:
                # Who is not let in must know: as the listener closes, whoever waits there is refused.
                logger.exception("no more senders on this host are let in")
                self._epoll.unregister(self._listener)
                self._listener.close()
                return
            if not is_own(connection):
                connection.close()
                continue
            connection.setblocking(False)
            self._senders[connection.fileno()] = _Sender(connection, self._inbox, self._locks_pages)
            self._epoll.register(connection, select.EPOLLIN)


def _allow_descriptors() -> None:
    """Let the process have as many descriptors as it may: each sender takes one, and each of its segments."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
