"""The transport of Ray: NumPy arrays inside actor calls, or through the object store.

What travels inside the call is there with the call, after half a round trip. From the object store it comes after three
more: the reader of a reference asks its owner where the object is, then that machine for it. But on one machine, and to
several readers on another, the store copies large arrays less often.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple, cast

import numpy as np
import ray
import torch
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, ObjectLostError
from torch import Tensor
from torch.utils._pytree import tree_map

from ray_pcasgd.engines.messages import Contents, LostError, Parcel, RejectedError
from ray_pcasgd.engines.ray.lost import GONE, first_line
from ray_pcasgd.engines.ray.outbox import RayOutbox
from ray_pcasgd.engines.ray.parcels import Stored
from ray_pcasgd.engines.ray.telling import once_there
from ray_pcasgd.engines.shared.door import Door
from ray_pcasgd.engines.shared.on_device import OnDevice
from ray_pcasgd.engines.shared.slots import LARGE
from ray_pcasgd.engines.transport import DType, Transport, check_array
from ray_pcasgd.records import Snapshot

PIECE_BYTES = 64 * 1024
"""Larger arrays travel in pieces inside the call: arguments above 100 KiB would go through the object store."""

# What was read is never written to (rules are pure), so a view of shared memory is safe.
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")


class InPieces(NamedTuple):
    """Stands for an array that travels in pieces."""

    number: int


class RayTransport(Transport):
    """A parcel is an array inside the call, or a list of one reference, which Ray then does not fetch by itself."""

    def __init__(self, inline_bytes: int, door: Door | None = None) -> None:
        self.inline_bytes = inline_bytes
        """Larger arrays go into the object store, once for all readers on other hosts."""
        self.door = door
        """Where agents on this host tell of their messages, which lie in shared memory; ``None``: they call."""

    def publish(self, weights: Tensor, buffers: Tensor, direction: Tensor | None = None) -> Contents:
        """Return the arrays, large ones of a GPU as they are there; copied once it is known who reads them how."""
        return Contents(_array(weights), _array(buffers), None if direction is None else _array(direction))

    def stored(self, contents: Contents) -> Contents:
        """Return contents with what is large in the object store; what came from there is as it is."""
        weights, buffers, direction = (None if one is None else self._stored(one) for one in contents[:3])
        return Contents(weights, buffers, direction, contents.extra)

    def _stored(self, parcel: Parcel) -> Parcel:
        if isinstance(parcel, list):
            return parcel
        array = np.asarray(parcel)  # of the type itself, whose numbers Ray does not copy
        return array if array.nbytes <= self.inline_bytes else Stored(ray.put(array), array.nbytes)

    def outbox(self, neighbors: Mapping[int, ActorHandle[Any]]) -> RayOutbox:
        """Return what tells neighbors on this host, and calls the method ``receive`` of the others' actors."""
        return RayOutbox(self, neighbors, self.door)

    def arguments(self, contents: Contents | None) -> list[Any]:
        """Return contents with the largest arrays in the object store, large ones cut into pieces, then the pieces."""
        if contents is None:
            return [None]
        pieces: list[Any] = []
        whole: list[Any] = list(self.stored(contents))
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

    def comes_later(self, parcel: Parcel) -> bool:
        """Return whether a parcel's object is in the store."""
        return isinstance(parcel, list)

    def is_here(self, parcel: Parcel) -> bool:
        """Return whether a parcel's object is on this machine, if it is in the store."""
        if not isinstance(parcel, list):
            return True
        ready, _ = ray.wait(parcel, timeout=0, fetch_local=True)
        return bool(ready)

    def when_here(self, parcel: Parcel, then: Callable[[], None]) -> None:
        """Call ``then`` once a parcel's object is on this machine."""
        if isinstance(parcel, list):
            once_there(parcel[0], then)
        else:
            then()

    def fetch(self, parcel: Parcel, seconds: float | None = None) -> np.ndarray[Any, Any]:
        """Return a parcel's array, a read-only view of shared memory where it is in the store."""
        if not isinstance(parcel, list):
            return np.asanyarray(parcel)
        try:
            return cast(np.ndarray[Any, Any], ray.get(parcel[0], timeout=seconds))
        except (*GONE, ObjectLostError, GetTimeoutError) as error:
            raise LostError(f"{type(error).__name__}: {first_line(error)}") from error

    def open(self, name: str, parcel: Parcel, size: int | None, dtype: DType, device: torch.device) -> Tensor:
        """Return a parcel's tensor; what came inside the call was checked as it came."""
        if isinstance(parcel, OnDevice):
            return parcel.tensor.to(device)
        array = self.fetch(parcel)
        if isinstance(parcel, list):
            check_array(name, array, size, dtype)
        return torch.from_numpy(array).to(device)


def _array(tensor: Tensor) -> np.ndarray[Any, Any] | OnDevice:
    if tensor.device.type == "cuda" and tensor.nbytes >= LARGE:
        return OnDevice(tensor)
    array: np.ndarray[Any, Any] = tensor.detach().cpu().numpy()
    return array


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
