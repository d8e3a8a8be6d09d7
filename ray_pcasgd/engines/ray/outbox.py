"""Sends an agent's messages to its neighbors' actors: few at a time, and of what has to wait only the newest."""

import threading
import time
from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import Any

from ray.actor import ActorHandle

from ray_pcasgd.agents.mailbox import Header
from ray_pcasgd.engines.messages import Contents
from ray_pcasgd.engines.ray.recipients import Called, Letter, Linked, Outgoing, Recipient
from ray_pcasgd.engines.shared.door import Door
from ray_pcasgd.engines.shared.link import connected
from ray_pcasgd.engines.shared.slots import Slots
from ray_pcasgd.engines.transport import Outbox, Sent, Transport


class RayOutbox(Outbox):
    """Calls neighbors' actors.

    A message that may be skipped is not sent while as many are under way to its neighbor as its ``Window`` allows. It
    waits then, until an answer makes room or a newer one takes its place. Answers are looked at as messages are sent;
    while one waits, the outbox is also told of the next answer, in a thread of its own.
    """

    def __init__(
        self, transport: Transport, neighbors: Mapping[int, ActorHandle[Any]], door: Door | None = None
    ) -> None:
        self._transport = transport
        self._door = door
        self._slots = Slots()
        self._peers = {k: self._recipient(handle) for k, handle in neighbors.items()}
        self._left: list[Recipient] = []
        """Neighbors that nothing is sent to any more, but whose processes may still read from the slots."""
        self._sent = Counter[int]()
        self._late = 0
        """Messages that were sent after they had waited, since the last call of ``send``."""
        self._gone: list[int] = []
        """Neighbors that were found to be gone since then."""
        self._lock = threading.Lock()
        self._answer = threading.Condition(self._lock)

    def _recipient(self, handle: Any) -> Recipient:
        """Return a neighbor as it is reached: over a link where it is on this host."""
        if self._door is not None and (link := connected(door_of(handle))) is not None:
            return Linked(handle, link, self._door)
        return Called(handle)

    def links(self) -> tuple[int, ...]:
        """Return the neighbors that read from this agent's memory."""
        return tuple(k for k, peer in self._peers.items() if isinstance(peer, Linked))

    def welcome(self, neighbor: int, handle: ActorHandle[Any]) -> None:
        """Send to a neighbor that has come back, or come in, from now on."""
        recipient = self._recipient(handle)
        with self._lock:
            self._leave(neighbor)
            self._peers[neighbor] = recipient

    def __contains__(self, neighbor: int) -> bool:
        return neighbor in self._peers

    def drop(self, neighbor: int) -> None:
        """Send to a neighbor no more."""
        with self._lock:
            self._leave(neighbor)

    def _leave(self, neighbor: int) -> None:
        if (peer := self._peers.pop(neighbor, None)) is not None:
            self._left.append(peer)
            self._answer.notify_all()
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
                peer.ask(reader)

    def mark(self, sender: int, cut: int) -> None:
        """Tell every neighbor how many messages were sent to it before a cut."""
        with self._lock:
            for k, peer in self._peers.items():
                peer.mark(sender, cut, self._sent[k])
                self._watch_clogged(k, peer)

    def send(
        self,
        headers: Mapping[int, Header],
        contents: Contents | None,
        may_skip: bool,
        in_pairs: bool = False,
        may_wait: bool = True,
    ) -> Sent:
        """Send one message to each neighbor that has a header, unless it may be skipped and there is no room for it."""
        outgoing = Outgoing(contents, self._transport, self._slots)
        with self._lock:
            now = time.monotonic()
            self._forget_left(now)
            for k, peer in list(self._peers.items()):
                # What it takes in of answers, no thread is told of any more.
                if peer.needs_look(may_skip) and self._look(k, peer, now) and k not in headers:
                    self._send_unsent(k, peer)
            to: set[int] = set()
            for k, header in headers.items():
                if (found := self._peers.get(k)) is None:
                    continue
                found.window.offered(now)
                letter = Letter(header, outgoing)
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

    def _send(self, neighbor: int, peer: Recipient, letter: Letter, now: float) -> None:
        peer.send(letter, now)
        self._sent[neighbor] += 1
        self._watch_clogged(neighbor, peer)

    def _forget_left(self, now: float) -> None:
        """Let go of the links of those that have ended."""
        if self._left:
            self._left = [peer for peer in self._left if peer.may_read and peer.is_alive(now)]

    def _look(self, neighbor: int, peer: Recipient, now: float) -> bool:
        """Take in answers; return whether the neighbor is there, else send to it no more."""
        if peer.is_alive(now):
            return True
        del self._peers[neighbor]
        self._gone.append(neighbor)
        return False

    def _watch(self, neighbor: int, peer: Recipient) -> None:
        """Be told of the next answer of a neighbor, for which a message waits."""
        if not peer.is_watched:
            peer.is_watched = True
            peer.once_answered(partial(self._answered, neighbor, peer))

    def _watch_clogged(self, neighbor: int, peer: Recipient) -> None:
        if peer.is_clogged:
            self._watch(neighbor, peer)

    def _answered(self, neighbor: int, peer: Recipient) -> None:
        """Send what waits for an answer that has come; called from another thread than those that send."""
        with self._lock:
            peer.is_watched = False
            try:
                if self._peers.get(neighbor) is peer and self._look(neighbor, peer, time.monotonic()):
                    self._send_unsent(neighbor, peer)
                    if peer.unsent is not None or peer.is_clogged:
                        self._watch(neighbor, peer)
            finally:
                self._answer.notify_all()

    def _send_unsent(self, neighbor: int, peer: Recipient) -> None:
        if peer.unsent is not None and not peer.is_full:
            self._send(neighbor, peer, peer.unsent, time.monotonic())
            self._late += 1

    def flush(self) -> None:
        """Wait until every neighbor that is alive has every message, those too that wait."""
        with self._lock:
            while True:
                for k, peer in list(self._peers.items()):
                    if self._look(k, peer, time.monotonic()):
                        self._send_unsent(k, peer)
                waiting = {k: peer for k, peer in self._peers.items() if peer.num_pending}
                if not waiting:
                    return
                for k, peer in waiting.items():
                    self._watch(k, peer)
                self._answer.wait()

    def bytes_in_flight(self) -> int:
        """Return the bytes of messages that no answer has come to; what goes to a neighbor that is gone is lost."""
        with self._lock:
            total = sum(peer.bytes_in_flight() for peer in self._peers.values())
            for k, peer in self._peers.items():
                self._send_unsent(k, peer)  # as after any look
            return total


def door_of(handle: Any) -> str:
    """Return the name of an actor's door: of no two processes the same."""
    return str(handle._actor_id.hex())
