"""The transport of Ray: NumPy arrays inside actor calls, or through the object store.

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
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, NamedTuple, cast

import numpy as np
import ray
import torch
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, ObjectLostError, RayTaskError
from torch import Tensor
from torch.utils._pytree import tree_map

from ray_pcasgd.agents.mailbox import Header
from ray_pcasgd.engines.messages import Contents, LostError, Parcel, RejectedError
from ray_pcasgd.engines.ray.lost import GONE, first_line
from ray_pcasgd.engines.transport import DType, Outbox, Sent, Transport, check_array
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


class InPieces(NamedTuple):
    """Stands for an array that travels in pieces."""

    number: int


class Stored(list[Any]):
    """A parcel in the object store: one reference. What travels is a list of it, and nothing else."""

    def __init__(self, reference: Any, num_bytes: int) -> None:
        super().__init__([reference])
        self.num_bytes = num_bytes
        """Of the array that the reference stands for; only its sender knows them before it is fetched."""

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (list(self),)


def bytes_of(contents: Contents | None) -> int:
    """Return the bytes of what this process has published, in the form in which it travels."""
    if contents is None:
        return 0
    parcels = (parcel for parcel in contents[:3] if parcel is not None)
    arrays = sum(parcel.num_bytes if isinstance(parcel, Stored) else parcel.nbytes for parcel in parcels)
    return arrays + (0 if contents.extra is None else contents.extra.num_bytes)


_TELLER = ThreadPoolExecutor(1, "transfers")


class RayTransport(Transport):
    """A parcel is an array inside the call, or a list of one reference, which Ray then does not fetch by itself."""

    def __init__(self, inline_bytes: int) -> None:
        self.inline_bytes = inline_bytes
        """Larger arrays go into the object store, once for all readers."""

    def publish(self, weights: Tensor, buffers: Tensor, direction: Tensor | None = None) -> Contents:
        """Put what is large into the object store; the rest is its own parcel."""
        return Contents(
            self._parcel(weights), self._parcel(buffers), None if direction is None else self._parcel(direction)
        )

    def _parcel(self, tensor: Tensor) -> Parcel:
        array = tensor.detach().cpu().numpy()
        return array if array.nbytes <= self.inline_bytes else Stored(ray.put(array), array.nbytes)

    def outbox(self, neighbors: Mapping[int, ActorHandle[Any]]) -> "RayOutbox":
        """Return what calls the method ``receive`` of neighbors' actors."""
        return RayOutbox(self, neighbors)

    def arguments(self, contents: Contents | None) -> list[Any]:
        """Return contents with large arrays cut into pieces, then the pieces."""
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

    def joined(self, contents: Any, pieces: Sequence[Any]) -> Any:
        """Return contents with the arrays that came in pieces."""
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

    def check(self, name: str, parcel: Any, size: int | None, dtype: DType = "float32") -> None:
        """Check an array that came inside the call, and whether anything else is a reference."""
        if not isinstance(parcel, list):
            check_array(name, parcel, size, dtype)
        elif len(parcel) != 1 or not isinstance(parcel[0], ray.ObjectRef):
            raise RejectedError(f"its {name} are a list of {len(parcel)}; allowed is one reference")

    def is_here(self, parcel: Parcel) -> bool:
        """Return whether a parcel's object is on this machine, if it is in the store."""
        if not isinstance(parcel, list):
            return True
        ready, _ = ray.wait(parcel, timeout=0, fetch_local=True)
        return bool(ready)

    def when_here(self, parcel: Parcel, then: Callable[[], None]) -> None:
        """Call ``then`` once a parcel's object is on this machine."""
        if isinstance(parcel, list):
            # Not in Ray's own thread, which must not wait for anybody: those who hold a lock may wait for that thread.
            parcel[0].future().add_done_callback(lambda _: _TELLER.submit(then))
        else:
            then()

    def fetch(self, parcel: Parcel, seconds: float | None = None) -> np.ndarray[Any, Any]:
        """Return a parcel's array, a read-only view of shared memory where it is in the store."""
        if not isinstance(parcel, list):
            return cast(np.ndarray[Any, Any], parcel)
        try:
            return cast(np.ndarray[Any, Any], ray.get(parcel[0], timeout=seconds))
        except (*GONE, ObjectLostError, GetTimeoutError) as error:
            raise LostError(f"{type(error).__name__}: {first_line(error)}") from error

    def open(self, name: str, parcel: Parcel, size: int | None, dtype: DType, device: torch.device) -> Tensor:
        """Return a parcel's tensor; what came inside the call was checked as it came."""
        array = self.fetch(parcel)
        if isinstance(parcel, list):
            check_array(name, array, size, dtype)
        return torch.from_numpy(array).to(device)


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


class _Pending(NamedTuple):
    """A call that is not known to be answered."""

    call: Any
    made_at: float
    num_bytes: int


class _Peer:
    """One neighbor as its messages are sent to it."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle
        self.receive: Any = handle.receive
        self.pending: deque[_Pending] = deque()
        """Calls that are not known to be answered."""
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

    def sent(self, version: int, pending: _Pending) -> None:
        """Take in that a version was sent."""
        self.run = self.run + 1 if version == self.last_sent + 1 else 1
        self.last_sent = version
        self.pending.append(pending)

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
        if done:
            self.answers.append(min(now - one.made_at for one in self.pending if one.call in answered))
        self.pending = deque(one for one in self.pending if one.call not in answered)
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


class RayOutbox(Outbox):
    """Calls neighbors' actors, and looks at their answers now and then."""

    def __init__(self, transport: RayTransport, neighbors: Mapping[int, ActorHandle[Any]]) -> None:
        self._transport = transport
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
                peer.pending.append(_Pending(call, time.monotonic(), 0))

    def send(
        self, headers: Mapping[int, Header], contents: Contents | None, may_skip: bool, in_pairs: bool = False
    ) -> Sent:
        """Send one message to each neighbor that has a header, unless it may be skipped and is full."""
        arguments, now = self._transport.arguments(contents), time.monotonic()
        num_bytes = bytes_of(contents)
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
                peer.sent(header.version, _Pending(peer.receive.remote(header, *arguments), now, num_bytes))
                self._sent[k] += 1
                to.add(k)
            return Sent(frozenset(to), gone)

    def flush(self) -> None:
        """Wait until every neighbor that is alive has every message."""
        with self._lock:
            under_way = [[one.call for one in peer.pending] for peer in self._peers.values()]
        for calls in under_way:
            with contextlib.suppress(*GONE, RayTaskError):
                ray.get(calls)

    def bytes_in_flight(self) -> int:
        """Return the bytes of messages that no answer has come to; what goes to a neighbor that is gone is lost."""
        with self._lock:
            sizes = {one.call: one.num_bytes for peer in self._peers.values() for one in peer.pending if one.num_bytes}
        calls = list(sizes)
        _, unanswered = ray.wait(calls, num_returns=len(calls), timeout=0) if calls else ([], [])
        return sum(sizes[call] for call in unanswered)
