"""Sends an agent's messages to its neighbors' actors: few at a time, and of what has to wait only the newest."""

import contextlib
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayTaskError

from ray_pcasgd.agents.mailbox import Header
from ray_pcasgd.engines.live.window import Window
from ray_pcasgd.engines.messages import Contents
from ray_pcasgd.engines.ray.lost import GONE, first_line
from ray_pcasgd.engines.ray.parcels import bytes_of
from ray_pcasgd.engines.ray.telling import once_there
from ray_pcasgd.engines.transport import Outbox, Sent, Transport

logger = logging.getLogger("ray_pcasgd")

CHECKED_CALLS = 16
"""Messages to one neighbor after which its answers are looked at in any case."""


class _Letter(NamedTuple):
    """A message to one neighbor, ready to be sent."""

    header: Header
    arguments: list[Any]
    num_bytes: int


class _Pending(NamedTuple):
    """A call that is not known to be answered."""

    call: Any
    made_at: float
    num_bytes: int
    is_message: bool = True


class _Peer:
    """One neighbor as its messages are sent to it."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle
        self.receive: Any = handle.receive
        self.pending: deque[_Pending] = deque()
        """Calls that are not known to be answered."""
        self.window = Window()
        self.unsent: _Letter | None = None
        """The newest message, where it waits for an answer to one before it."""
        self.is_watched = False
        """Whether the outbox is told of the next answer."""
        self.last_sent = -1
        """The newest version that was sent."""
        self.run = 0
        """How many versions before it were sent without a gap."""

    @property
    def is_full(self) -> bool:
        """Whether as many calls are unanswered as may be."""
        return len(self.pending) >= self.window.allowed

    def send(self, letter: _Letter, now: float) -> None:
        """Send a message; an older one that waits is not sent any more."""
        version = letter.header.version
        self.pending.append(_Pending(self.receive.remote(letter.header, *letter.arguments), now, letter.num_bytes))
        self.run = self.run + 1 if version == self.last_sent + 1 else 1
        self.last_sent, self.unsent = version, None

    def completes_pair(self, version: int) -> bool:
        """Return whether a version's message has the direction of one that was sent after a gap."""
        return self.run == 1 and version == self.last_sent + 1

    def is_alive(self, now: float) -> bool:
        """Return whether the neighbor has not failed to take a message; forget those that it took."""
        calls = [one.call for one in self.pending]
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
        for one in self.pending:
            if one.call in answered and one.is_message:
                self.window.answered(one.made_at, now)
        self.pending = deque(one for one in self.pending if one.call not in answered)
        return True


class RayOutbox(Outbox):
    """Calls neighbors' actors.

    A message that may be skipped is not sent while as many are under way to its neighbor as its ``Window`` allows. It
    waits then, until an answer makes room or a newer one takes its place. Answers are looked at as messages are sent;
    while one waits, the outbox is also told of the next answer, in a thread of its own.
    """

    def __init__(self, transport: Transport, neighbors: Mapping[int, ActorHandle[Any]]) -> None:
        self._transport = transport
        self._peers = {k: _Peer(handle) for k, handle in neighbors.items()}
        self._sent = Counter[int]()
        self._late = 0
        """Messages that were sent after they had waited, since the last call of ``send``."""
        self._gone: list[int] = []
        """Neighbors that were found to be gone since then."""
        self._lock = threading.Lock()

    def welcome(self, neighbor: int, handle: ActorHandle[Any]) -> None:
        """Send to a neighbor that has come back, or come in, from now on."""
        with self._lock:
            self._peers[neighbor] = _Peer(handle)
            self._gone = [k for k in self._gone if k != neighbor]

    def __contains__(self, neighbor: int) -> bool:
        return neighbor in self._peers

    def drop(self, neighbor: int) -> None:
        """Send to a neighbor no more."""
        with self._lock:
            self._peers.pop(neighbor, None)
            self._gone = [k for k in self._gone if k != neighbor]

    def keep_back(self, neighbor: int) -> None:
        """Do not send to a neighbor what still waits for it."""
        with self._lock:
            if (peer := self._peers.get(neighbor)) is not None:
                peer.unsent = None

    def ask(self, neighbor: int, reader: int) -> None:
        """Ask a neighbor for a whole copy, unless it is gone."""
        with self._lock:
            if (peer := self._peers.get(neighbor)) is not None:
                call = peer.handle.send_whole.remote(reader)
                peer.pending.append(_Pending(call, time.monotonic(), 0, is_message=False))

    def mark(self, sender: int, cut: int) -> None:
        """Tell every neighbor how many messages were sent to it before a cut."""
        with self._lock:
            for k, peer in self._peers.items():
                call = peer.handle.take_mark.remote(sender, cut, self._sent[k])
                peer.pending.append(_Pending(call, time.monotonic(), 0, is_message=False))

    def send(
        self,
        headers: Mapping[int, Header],
        contents: Contents | None,
        may_skip: bool,
        in_pairs: bool = False,
        may_wait: bool = True,
    ) -> Sent:
        """Send one message to each neighbor that has a header, unless it may be skipped and there is no room for it."""
        arguments, num_bytes = self._transport.arguments(contents), bytes_of(contents)
        with self._lock:
            now = time.monotonic()
            for k, peer in list(self._peers.items()):
                if len(peer.pending) >= CHECKED_CALLS or (may_skip and peer.is_full):
                    self._look(k, peer, now)
            to: set[int] = set()
            for k, header in headers.items():
                if (found := self._peers.get(k)) is None:
                    continue
                found.window.offered(now)
                letter = _Letter(header, arguments, num_bytes)
                if may_skip and found.is_full and not (in_pairs and found.completes_pair(header.version)):
                    if may_wait:
                        found.unsent = letter
                        self._watch(k, found)
                else:
                    self._send(k, found, letter, now)
                    to.add(k)
            result = Sent(frozenset(to), self._gone, self._late)
            self._gone, self._late = [], 0
            return result

    def _send(self, neighbor: int, peer: _Peer, letter: _Letter, now: float) -> None:
        peer.send(letter, now)
        self._sent[neighbor] += 1

    def _look(self, neighbor: int, peer: _Peer, now: float) -> bool:
        """Take in answers; return whether the neighbor is there, else send to it no more."""
        if peer.is_alive(now):
            return True
        del self._peers[neighbor]
        self._gone.append(neighbor)
        return False

    def _watch(self, neighbor: int, peer: _Peer) -> None:
        """Be told of the next answer of a neighbor, for which a message waits."""
        if not peer.is_watched:
            peer.is_watched = True
            once_there(peer.pending[0].call, partial(self._answered, neighbor, peer))

    def _answered(self, neighbor: int, peer: _Peer) -> None:
        """Send what waits for an answer that has come; called from another thread than those that send."""
        with self._lock:
            peer.is_watched = False
            if self._peers.get(neighbor) is peer and self._look(neighbor, peer, time.monotonic()):
                self._send_unsent(neighbor, peer)
                if peer.unsent is not None:
                    self._watch(neighbor, peer)

    def _send_unsent(self, neighbor: int, peer: _Peer) -> None:
        if peer.unsent is not None and not peer.is_full:
            self._send(neighbor, peer, peer.unsent, time.monotonic())
            self._late += 1

    def flush(self) -> None:
        """Wait until every neighbor that is alive has every message, those too that wait."""
        with self._lock:
            for k, peer in self._peers.items():
                self._send_unsent(k, peer)
        while True:
            with self._lock:
                under_way = [[one.call for one in peer.pending] for peer in self._peers.values() if peer.pending]
            if not under_way:
                return
            for calls in under_way:
                with contextlib.suppress(*GONE, RayTaskError):
                    ray.get(calls)
            with self._lock:
                for k, peer in list(self._peers.items()):
                    if self._look(k, peer, time.monotonic()):
                        self._send_unsent(k, peer)

    def bytes_in_flight(self) -> int:
        """Return the bytes of messages that no answer has come to; what goes to a neighbor that is gone is lost."""
        with self._lock:
            sizes = {one.call: one.num_bytes for peer in self._peers.values() for one in peer.pending if one.num_bytes}
        calls = list(sizes)
        _, unanswered = ray.wait(calls, num_returns=len(calls), timeout=0) if calls else ([], [])
        return sum(sizes[call] for call in unanswered)
