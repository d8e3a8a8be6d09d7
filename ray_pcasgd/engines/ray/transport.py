"""How a version gets from one agent to another: NumPy arrays, inside the call or through Ray's object store.

What travels inside the call is there with the call, after half a round trip. From the object store it comes after three
more: the reader of a reference asks its owner where the object is, then that machine for it. But on one machine, and to
several readers on another, the store copies large arrays less often.
"""

import contextlib
import logging
import math
import threading
import time
import warnings
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import ray
import torch
from ray.actor import ActorHandle
from ray.exceptions import RayTaskError
from torch import Tensor
from torch.utils._pytree import tree_map

from ray_pcasgd.agents.mailbox import Header
from ray_pcasgd.engines.ray.lost import GONE, first_line
from ray_pcasgd.engines.ray.raw_tensors import Extra
from ray_pcasgd.records import Snapshot

logger = logging.getLogger("ray_pcasgd")

PIECE_BYTES = 64 * 1024
"""Larger arrays travel in pieces inside the call: arguments above 100 KiB would go through the object store."""

CHECKED_CALLS = 16
"""Messages to one neighbor after which its answers are looked at in any case."""

FEWEST_PENDING, MOST_PENDING = 4, 32
"""Bounds of how many unanswered messages to one neighbor a live agent has under way."""

_ANSWER_TIMES = 64
"""Answers over which the round trip to a neighbor is the smallest."""

# What was read is never written to (rules are pure), so a view of shared memory is safe.
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")

Parcel = np.ndarray[Any, np.dtype[np.float32]] | list[Any]
"""An array inside the call, or a list of one reference, which Ray then does not fetch by itself."""


class InPieces(NamedTuple):
    """Stands for an array that travels in pieces."""

    number: int


class Contents(NamedTuple):
    """What one message carries, as it travels."""

    weights: Parcel
    buffers: Parcel
    direction: Parcel | None
    """The direction at the version before."""
    extra: Extra | None = None
    """Of a worker: what it sends with its gradient."""


def pack(tensor: Tensor, inline_bytes: int) -> Parcel:
    """Return a tensor as a parcel; larger ones are put into the object store, once for all readers."""
    array = tensor.detach().cpu().numpy()
    return array if array.nbytes <= inline_bytes else [ray.put(array)]


def in_pieces(contents: Contents | None) -> list[Any]:
    """Return the arguments of a call that stand for a message's contents: what they are, then the pieces of arrays."""
    if contents is None:
        return [None]
    pieces: list[Any] = []
    whole: list[Any] = list(contents)
    for place, parcel in enumerate(whole):
        if isinstance(parcel, np.ndarray) and parcel.nbytes > PIECE_BYTES:
            size = PIECE_BYTES // parcel.itemsize
            pieces += [parcel[start : start + size] for start in range(0, parcel.size, size)]
            whole[place] = InPieces(-(-parcel.size // size))
    return [Contents(*whole), *pieces]


def joined(contents: Any, pieces: Sequence[Any]) -> Any:
    """Return contents as they were before ``in_pieces``.

    Raises:
        ValueError: the pieces do not make arrays.

    """
    if not pieces or not isinstance(contents, Contents):
        return contents
    left = iter(pieces)
    try:
        parcels: list[Any] = [
            np.concatenate(list(islice(left, p.number))) if isinstance(p, InPieces) else p for p in contents
        ]
        whole = Contents(*parcels)
    except TypeError as error:
        raise ValueError(str(error)) from error
    if next(left, None) is not None:
        raise ValueError(f"there are more pieces than the contents name: {len(pieces)}")
    return whole


def is_local(parcel: Parcel) -> bool:
    """Return whether a parcel can be opened without waiting; if not, its transfer is under way from now on."""
    if not isinstance(parcel, list):
        return True
    ready, _ = ray.wait(parcel, timeout=0, fetch_local=True)
    return bool(ready)


def portable(snapshot: Snapshot) -> Any:
    """Return a snapshot as NumPy arrays, which travel on their own."""
    return tree_map(as_array, tuple(snapshot))


def as_array(leaf: Any) -> Any:
    """Return a tensor as a NumPy array, or as it is where NumPy has no such type; anything else as it is."""
    if not isinstance(leaf, Tensor):
        return leaf
    tensor = leaf.detach().cpu().resolve_conj().resolve_neg()
    try:
        return tensor.numpy()
    except TypeError:
        return tensor


def as_tensor(leaf: Any) -> Any:
    """Return what ``as_array`` returned as a tensor again; a copy, since Ray's memory is shared and must be freed."""
    return torch.from_numpy(leaf.copy()) if isinstance(leaf, np.ndarray) else leaf


class Sent(NamedTuple):
    """What became of one version's messages."""

    to: frozenset[int]
    """Who was sent one."""
    gone: list[int]
    """Neighbors that were found to be gone."""


class _Peer:
    """One neighbor as its messages are sent to it."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle
        self.receive: Any = handle.receive
        self.pending: deque[tuple[Any, float]] = deque()
        """Calls that are not known to be answered, and when each was made."""
        self.answers: deque[float] = deque(maxlen=_ANSWER_TIMES)
        """Seconds that answers took, at most."""
        self.interval = 0.0
        """Mean seconds from one version to the next."""
        self.offered_at = 0.0
        self.last_sent = -1
        """The newest version that was sent."""
        self.run = 0
        """How many versions before it were sent without a gap."""

    def offer(self, now: float) -> None:
        """Take in that there is a version to be sent."""
        spent = now - self.offered_at
        if self.offered_at:
            self.interval = 0.8 * self.interval + 0.2 * min(spent, 4 * self.interval) if self.interval else spent
        self.offered_at = now

    @property
    def is_full(self) -> bool:
        """Whether as many calls are unanswered as may be: as versions come in a round trip, and a few."""
        return len(self.pending) >= pending_allowed(min(self.answers, default=0.0), self.interval)

    @property
    def is_to_be_checked(self) -> bool:
        """Whether it is time to look for answers; at every message it would cost as much as sending."""
        return len(self.pending) >= CHECKED_CALLS or self.is_full

    def sent(self, version: int, call: Any, now: float) -> None:
        """Take in that a version was sent."""
        self.run = self.run + 1 if version == self.last_sent + 1 else 1
        self.last_sent = version
        self.pending.append((call, now))

    def completes_pair(self, version: int) -> bool:
        """Return whether a version's message has the direction of one that was sent after a gap."""
        return self.run == 1 and version == self.last_sent + 1

    def is_alive(self, now: float) -> bool:
        """Return whether the neighbor has not failed to take a message; forget those that it took."""
        calls = [call for call, _ in self.pending]
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
        if done:
            self.answers.append(min(now - sent_at for call, sent_at in self.pending if call in answered))
        self.pending = deque((call, sent_at) for call, sent_at in self.pending if call not in answered)
        return True


def pending_allowed(round_trip: float, interval: float) -> int:
    """Return how many messages may be unanswered, with ``round_trip`` seconds to an answer, ``interval`` to a version.

    More would only wait: at a neighbor that is slow to take them, whose own steps they hold up, or on a link that has
    not the bandwidth, where each makes those behind it later.

    >>> pending_allowed(0.002, 0.02), pending_allowed(0.1, 0.02), pending_allowed(0.1, 0.001)
    (5, 9, 32)
    """
    more = math.ceil(round_trip / interval) if interval > 0 else 0
    return min(FEWEST_PENDING + more, MOST_PENDING)


class Outbox:
    """Sends an agent's messages, notices neighbors that are gone, and never waits for one.

    One that has come back is taken in by another thread (``welcome``); everything else is the sender's own.
    """

    def __init__(self, neighbors: Mapping[int, ActorHandle[Any]]) -> None:
        self._peers = {k: _Peer(handle) for k, handle in neighbors.items()}
        self._sent = Counter[int]()
        self._lock = threading.Lock()

    def welcome(self, neighbor: int, handle: ActorHandle[Any]) -> None:
        """Send to a neighbor that has come back, or come in, from now on."""
        with self._lock:
            self._peers[neighbor] = _Peer(handle)

    def __contains__(self, neighbor: int) -> bool:
        return neighbor in self._peers

    def drop(self, neighbor: int) -> None:
        """Send to a neighbor no more."""
        with self._lock:
            self._peers.pop(neighbor, None)

    def mark(self, sender: int, cut: int) -> None:
        """Tell every neighbor how many messages were sent to it before a cut."""
        with self._lock:
            for k, peer in self._peers.items():
                call = peer.handle.take_mark.remote(sender, cut, self._sent[k])
                peer.pending.append((call, time.monotonic()))

    def send(
        self, headers: Mapping[int, Header], contents: Contents | None, may_skip: bool, in_pairs: bool = False
    ) -> Sent:
        """Send one message to each neighbor that has a header.

        With ``may_skip``, a neighbor that has left many messages unanswered is left out; but where messages are of use
        ``in_pairs`` (the second has the direction of the first), the second of a pair is always sent.
        """
        arguments, now = in_pieces(contents), time.monotonic()
        with self._lock:
            to: set[int] = set()
            gone = [k for k, peer in self._peers.items() if peer.is_to_be_checked and not peer.is_alive(now)]
            for k in gone:
                del self._peers[k]
            for k, header in headers.items():
                if (peer := self._peers.get(k)) is None:
                    continue
                peer.offer(now)
                if may_skip and peer.is_full and not (in_pairs and peer.completes_pair(header.version)):
                    continue
                peer.sent(header.version, peer.receive.remote(header, *arguments), now)
                self._sent[k] += 1
                to.add(k)
            return Sent(frozenset(to), gone)

    def flush(self) -> None:
        """Wait until every neighbor that is alive has every message."""
        with self._lock:
            under_way = [[call for call, _ in peer.pending] for peer in self._peers.values()]
        for calls in under_way:
            with contextlib.suppress(*GONE, RayTaskError):
                ray.get(calls)
