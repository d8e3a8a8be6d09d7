"""How a version gets from one agent to another: NumPy arrays, inside the call or through Ray's object store.

What travels inside the call is there with the call, after half a round trip. From the object store it comes after three
more: whoever holds a reference asks its owner where the object is, then that machine for it. But on one machine, and to
several readers on another, the store copies large arrays less often.
"""

import contextlib
import threading
import warnings
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import ray
import torch
from ray.actor import ActorHandle
from ray.exceptions import RayActorError
from torch import Tensor
from torch.utils._pytree import tree_map

from ray_pcasgd.engines.ray.raw_tensors import Extra
from ray_pcasgd.mailbox import Header
from ray_pcasgd.records import Snapshot

PIECE_BYTES = 64 * 1024
"""Larger arrays travel in pieces inside the call: arguments above 100 KiB would go through the object store."""

CHECKED_CALLS = 16
"""Messages to one neighbor after which its answers are looked at; at every message it would cost as much as sending."""

PENDING_CALLS = 32
"""Unanswered messages to one neighbor after which a live agent leaves newer ones out until it answers."""

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


class Outbox:
    """Sends an agent's messages, notices neighbors that are gone, and never waits for one.

    One that has come back is taken in by another thread (``welcome``); everything else is the sender's own.
    """

    def __init__(self, neighbors: Mapping[int, ActorHandle[Any]]) -> None:
        self._handles: dict[int, Any] = dict(neighbors)
        self._neighbors: dict[int, Any] = {k: handle.receive for k, handle in neighbors.items()}
        self._pending: dict[int, deque[Any]] = {k: deque() for k in neighbors}
        self._sent = Counter[int]()
        self._lock = threading.Lock()

    def welcome(self, neighbor: int, handle: ActorHandle[Any]) -> None:
        """Send to a neighbor that has come back, or come in, from now on."""
        with self._lock:
            self._handles[neighbor] = handle
            self._neighbors[neighbor] = handle.receive
            self._pending[neighbor] = deque()

    def drop(self, neighbor: int) -> None:
        """Send to a neighbor no more."""
        with self._lock:
            self._neighbors.pop(neighbor, None)
            self._pending.pop(neighbor, None)

    def mark(self, sender: int, cut: int) -> None:
        """Tell every neighbor how many messages were sent to it before a cut."""
        with self._lock:
            for k in self._neighbors:
                self._pending[k].append(self._handles[k].take_mark.remote(sender, cut, self._sent[k]))

    def send(self, headers: Mapping[int, Header], contents: Contents | None, may_skip: bool) -> list[int]:
        """Send one message to each neighbor that has a header, and return the neighbors found to be gone.

        With ``may_skip``, a neighbor that has left many messages unanswered is left out.
        """
        arguments = in_pieces(contents)
        with self._lock:
            gone = [k for k in self._neighbors if len(self._pending[k]) >= CHECKED_CALLS and not self._is_alive(k)]
            for k in gone:
                del self._neighbors[k], self._pending[k]
            for k, header in headers.items():
                if k in self._neighbors and not (may_skip and len(self._pending[k]) >= PENDING_CALLS):
                    self._pending[k].append(self._neighbors[k].remote(header, *arguments))
                    self._sent[k] += 1
            return gone

    def flush(self) -> None:
        """Wait until every neighbor that is alive has every message."""
        with self._lock:
            under_way = [list(pending) for pending in self._pending.values()]
        for calls in under_way:
            with contextlib.suppress(RayActorError):
                ray.get(calls)

    def _is_alive(self, neighbor: int) -> bool:
        """Return whether the neighbor has not failed to take a message; forget those that it took."""
        pending = self._pending[neighbor]
        done, left = ray.wait(list(pending), num_returns=len(pending), timeout=0)
        try:
            ray.get(done)
        except RayActorError:
            return False
        self._pending[neighbor] = deque(left)
        return True
