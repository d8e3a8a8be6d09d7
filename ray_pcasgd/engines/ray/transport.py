"""How a version gets from one agent to another: Ray's object store, NumPy arrays, read without a copy."""

import contextlib
import threading
import warnings
from collections import Counter, deque
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError
from torch import Tensor
from torch.utils._pytree import tree_map

from ray_pcasgd.mailbox import Header
from ray_pcasgd.records import Snapshot

INLINE_BYTES = 64 * 1024
"""Arrays up to this size travel inside the call; Ray's own limit for that is 100 KiB."""

CHECKED_CALLS = 16
"""Messages to one neighbor after which its answers are looked at; at every message it would cost as much as sending."""

PENDING_CALLS = 32
"""Unanswered messages to one neighbor after which a live agent leaves newer ones out until it answers."""

# What was read is never written to (rules are pure), so a view of shared memory is safe.
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")

Parcel = np.ndarray[Any, np.dtype[np.float32]] | list[Any]
"""An array inside the call, or a list of one reference, which Ray then does not fetch by itself."""


class Contents(NamedTuple):
    """What one message carries, as it travels."""

    weights: Parcel
    buffers: Parcel
    direction: Parcel | None
    """The direction at the version before."""


def pack(tensor: Tensor) -> Parcel:
    """Return a tensor as a parcel; large ones are put into the object store, once for all readers."""
    array = tensor.detach().cpu().numpy()
    return array if array.nbytes <= INLINE_BYTES else [ray.put(array)]


def is_local(parcel: Parcel) -> bool:
    """Return whether a parcel can be opened without waiting; if not, its transfer is under way from now on."""
    if not isinstance(parcel, list):
        return True
    ready, _ = ray.wait(parcel, timeout=0, fetch_local=True)
    return bool(ready)


def portable(snapshot: Snapshot) -> Any:
    """Return a snapshot as NumPy arrays, which travel on their own."""
    return tree_map(lambda tensor: tensor.detach().cpu().numpy(), tuple(snapshot))


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
        with self._lock:
            gone = [k for k in self._neighbors if len(self._pending[k]) >= CHECKED_CALLS and not self._is_alive(k)]
            for k in gone:
                del self._neighbors[k], self._pending[k]
            for k, header in headers.items():
                if k in self._neighbors and not (may_skip and len(self._pending[k]) >= PENDING_CALLS):
                    self._pending[k].append(self._neighbors[k].remote(header, contents))
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
