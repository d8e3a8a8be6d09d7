"""Slots: pieces of memory that the agents of one host share, each with one version of one agent.

A version is written once, whoever reads it, and every reader maps it. The memory has no name (memfd): it belongs to the
processes that have it open, so the kernel frees it with the last of these, however those end, and no other user can
open it. A sender announces a slot after it has written it, and writes to it again only when all its readers have
let go of it; so no reader ever meets a torn or overwritten version, even where the sender dies while it writes.
"""

import contextlib
import fcntl
import math
import mmap
import os
import pickle
import sys
import weakref
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ray_pcasgd.engines.messages import Contents, Extra
from ray_pcasgd.engines.shared.copying import copied
from ray_pcasgd.engines.shared.on_device import LockedPages, OnDevice
from ray_pcasgd.engines.transport import Finite

if sys.platform == "linux":
    _SEALS: int = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
else:  # pragma: no cover - there are no slots elsewhere
    _SEALS = 0

_FUTURE_WRITE = 0x10
"""F_SEAL_FUTURE_WRITE, which Python does not name: nobody who is given the slot can map it to write."""

_LEAST_BYTES = 4096

_LEAST_SLOTS = 4
"""Of a segment."""

_ALIGNMENT = 64

LARGE = 64 * 1024
"""Bytes from which on an array has pages of its own, which can be locked for a GPU."""


class Part(NamedTuple):
    """Where one array lies in its slot's segment."""

    offset: int
    size: int
    """Numbers, not bytes."""
    dtype: str
    is_finite: bool


class Segment:
    """Shared memory for several slots of one size, as their sender has it.

    Args:
        number: Its number among its sender's segments.
        num_bytes: How many bytes it holds; of those that are never written to, no memory is used.

    """

    def __init__(self, number: int, num_bytes: int) -> None:
        self.number = number
        self.fd = os.memfd_create("ray-pcasgd", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        weakref.finalize(self, os.close, self.fd)
        os.ftruncate(self.fd, num_bytes)
        memory = mmap.mmap(self.fd, num_bytes)
        self.bytes = np.frombuffer(memory, np.uint8)
        self.pages = LockedPages(self, memory, is_read_only=False)
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, _SEALS)
        with contextlib.suppress(OSError):  # Linux before 5.1; readers map it read-only by themselves
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, _FUTURE_WRITE)


class Slot:
    """A piece of shared memory for one version, as its sender has it.

    Args:
        number: Its number among its sender's slots.
        segment: Where it lies.
        start: Its first byte there.
        num_bytes: How many bytes it holds.
        free: Where it is entered once all its readers have let go of it.

    """

    def __init__(self, number: int, segment: Segment, start: int, num_bytes: int, free: "list[Slot]") -> None:
        self.number = number
        self.segment = segment
        self.num_bytes = num_bytes
        self._start = start
        self._bytes = segment.bytes[start : start + num_bytes]
        self.readers: set[object] = set()
        """Who may still read what is in it."""
        self.writings = 0
        """How often it was written to: who knows the number knows whether it still holds the same."""
        self.parts: tuple[Part | None, ...] = ()
        self._free = free
        self.is_entered = True
        """Whether it is among those that may be free."""

    def release(self, reader: object) -> None:
        """Take in that a reader lets go of it."""
        self.readers.discard(reader)
        if not self.readers and not self.is_entered:
            self._free.append(self)
            self.is_entered = True

    def write(self, arrays: Sequence[np.ndarray[Any, Any] | OnDevice | None]) -> None:
        """Copy arrays into the slot, which nobody may be reading."""
        assert not self.readers
        self.writings += 1
        end, parts, sums = 0, list[Part | None](), dict[int, Tensor]()
        for array in arrays:
            if array is None:
                parts.append(None)
                continue
            target = self._bytes[end : end + array.nbytes].view(array.dtype)
            if isinstance(array, OnDevice):
                self.segment.pages.expect(target)
                sums[len(parts)] = _begun(target, array.tensor)
            is_finite = not isinstance(array, OnDevice) and copied(target, array)
            parts.append(Part(self._start + end, array.size, array.dtype.str, is_finite))
            end += _aligned(array.nbytes)
        if sums:
            # One wait for all copies: what is added up comes after them.
            for place, total in zip(sums, torch.stack(list(sums.values())).tolist(), strict=True):
                part = parts[place]
                assert part is not None
                parts[place] = part._replace(is_finite=math.isfinite(total))
        self.parts = tuple(parts)


def _begun(target: np.ndarray[Any, Any], source: Tensor) -> Tensor:
    """Begin to copy a tensor from a GPU; return a number, shape (), that is finite only where all of its numbers are.

    Once that is known, the copy is there.
    """
    torch.from_numpy(target).copy_(source, non_blocking=True)
    if not source.is_floating_point():
        return torch.zeros((), device=source.device)
    return source.sum(dtype=torch.float32)


def _aligned(num_bytes: int) -> int:
    """Return where the next array may begin: a large one has its pages for itself."""
    alignment = _ALIGNMENT if num_bytes < LARGE else mmap.PAGESIZE
    return -(-num_bytes // alignment) * alignment


class Slots:
    """One sender's slots: as many as its readers hold, and those that they have let go of, which are used again."""

    def __init__(self) -> None:
        self._free_of: dict[int, list[Slot]] = {}
        """By how many bytes they hold, those that may be free, the last of them first."""
        self._number_of = Counter[int]()
        """How many there are of so many bytes."""
        self._num_slots = 0
        self._segments = 0

    def __len__(self) -> int:
        return self._num_slots

    def written(self, contents: Contents) -> Slot:
        """Return a slot with a message's contents."""
        extra = None if contents.extra is None else np.frombuffer(pickle.dumps(contents.extra, 5), np.uint8)
        arrays = (*contents[:3], extra)
        needed = sum(_aligned(array.nbytes) for array in arrays if array is not None)
        slot = self._free(needed)
        slot.write(arrays)
        return slot

    def _free(self, needed: int) -> Slot:
        """Return the smallest slot that is free and large enough."""
        for num_bytes in sorted(size for size in self._free_of if size >= needed):
            free = self._free_of[num_bytes]
            while free and free[-1].readers:
                free.pop().is_entered = False  # it comes back as it is let go of
            if free:
                return free[-1]
        num_bytes = max(_LEAST_BYTES, 1 << (needed - 1).bit_length() if needed else 0)
        # Twice as many each time, since each segment takes a descriptor.
        free = self._free_of.setdefault(num_bytes, [])
        number = max(_LEAST_SLOTS, self._number_of[num_bytes])
        self._number_of[num_bytes] += number
        segment = Segment(self._segments, number * num_bytes)
        self._segments += 1
        first = len(self)
        free += [Slot(first + k, segment, k * num_bytes, num_bytes, free) for k in reversed(range(number))]
        self._num_slots += number
        return free[-1]


class Mapped:
    """A sender's segment, as a reader has it.

    Args:
        fd: The segment's descriptor, which is closed.

    Raises:
        OSError: It cannot be mapped.

    """

    def __init__(self, fd: int) -> None:
        try:
            memory = mmap.mmap(fd, os.fstat(fd).st_size, prot=mmap.PROT_READ)
        finally:
            os.close(fd)
        self._memory = memoryview(memory)
        self.pages = LockedPages(self, memory, is_read_only=True)

    def whole(self) -> np.ndarray[Any, Any]:
        """Return the segment's bytes as a new array, which lives as long as any part of it that is taken from it."""
        return np.frombuffer(self._memory, np.uint8)


def contents_of(whole: np.ndarray[Any, Any], parts: Sequence[Part | None]) -> Contents:
    """Return a message's contents, views of the bytes of its segment.

    Raises:
        ValueError: The parts do not fit into it.

    """
    weights, buffers, direction, extra = (None if part is None else _array(whole, part) for part in parts)
    return Contents(weights, buffers, direction, None if extra is None else _extra(extra))


def _array(whole: np.ndarray[Any, Any], part: Part) -> np.ndarray[Any, Any]:
    dtype = np.dtype(part.dtype)
    end = part.offset + part.size * dtype.itemsize
    if part.offset < 0 or part.size < 0 or end > whole.size:
        raise ValueError(f"a part ends at byte {end} of a segment of {whole.size}")
    array = whole[part.offset : end].view(dtype)
    return array.view(Finite) if part.is_finite else array


def _extra(array: np.ndarray[Any, Any]) -> Extra:
    extra: Extra = pickle.loads(array.tobytes())  # of the user's own process: the door has made sure of that
    return extra
