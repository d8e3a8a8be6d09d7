"""Arrays of a message that are still on a GPU, and memory that a GPU copies straight to and from."""

import contextlib
import logging
import mmap
import weakref
from collections import Counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

logger = logging.getLogger("ray_pcasgd")

_PORTABLE, _READ_ONLY = 1, 8
"""cudaHostRegisterPortable and cudaHostRegisterReadOnly."""

PAYS_FROM = 4
"""The copy of one array from which on its pages are locked: to lock them takes as long as a few copies that are slower
without, and no kernel starts meanwhile. Memory that is used less often than that never pays for it."""


class OnDevice:
    """A tensor on a GPU in the place of a message's array: it is copied where it is needed, and only there.

    Into a slot it goes straight from the GPU (``Slot.write``); whatever else takes arrays gets a copy from
    ``np.asarray``. The tensor must not be written to, and stays on the GPU as long as a message that waits holds it.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach()
        self.size = tensor.numel()
        self.nbytes = tensor.nbytes
        self.dtype: np.dtype[Any] = torch.empty(0, dtype=tensor.dtype).numpy().dtype

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        # Page-locked memory, which PyTorch keeps for the next ones: fresh pages take ten times as long as the copy.
        is_on_gpu = self.tensor.device.type == "cuda"
        target = torch.empty(self.tensor.shape, dtype=self.tensor.dtype, pin_memory=is_on_gpu)
        array: np.ndarray[Any, Any] = target.copy_(self.tensor).numpy()
        return array if dtype is None else array.astype(dtype, copy=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return np.asarray, (np.asarray(self),)


class LockedPages:
    """Parts of one mapping whose pages are locked, so that a GPU copies straight to and from them.

    Where the driver cannot lock them, copies take several times as long and are as right.

    Args:
        owner: Whoever uses the memory; as it ends, the pages are free again.
        memory: The mapping.
        is_read_only: Whether it may not be written to.

    """

    def __init__(self, owner: object, memory: mmap.mmap, is_read_only: bool) -> None:
        self._flags = _PORTABLE | (_READ_ONLY if is_read_only else 0)
        self._locked: dict[int, int] = {}
        """By the first byte's address, how many bytes."""
        self._copies = Counter[tuple[int, int]]()
        """Of arrays whose pages are not locked, by their first byte and the one after their last."""
        self._is_refused = False
        # It holds the memory, which is thus not unmapped before its pages are free.
        weakref.finalize(owner, _unlock, self._locked, memory).atexit = False

    def expect(self, array: np.ndarray[Any, Any]) -> None:
        """Take in that an array is going to be copied; lock its pages where that pays, unless they are locked."""
        if self._is_refused or not torch.cuda.is_available():
            return
        page = mmap.PAGESIZE
        first = array.ctypes.data // page * page
        end = -(-(array.ctypes.data + array.nbytes) // page) * page
        met = {start: size for start, size in self._locked.items() if start < end and first < start + size}
        if any(start <= first and end <= start + size for start, size in met.items()):
            return
        self._copies[first, end] += 1
        if self._copies[first, end] < PAYS_FROM:
            return
        del self._copies[first, end]
        # Another array has lain there before: pages are locked once, and as one range where an array lies in them.
        runtime = _runtime()
        for start, size in met.items():
            runtime.cudaHostUnregister(start)
            del self._locked[start]
            first, end = min(first, start), max(end, start + size)
        error = int(runtime.cudaHostRegister(first, end - first, self._flags))
        if error:
            self._is_refused = True
            logger.info("memory cannot be locked for a GPU (CUDA error %d): copies are slower", error)
            with contextlib.suppress(RuntimeError):
                torch.zeros(1, device="cuda")  # takes the error, lest the next kernel be blamed for it
            return
        self._locked[first] = end - first


def _unlock(locked: dict[int, int], memory: mmap.mmap) -> None:
    for first in locked:
        _runtime().cudaHostUnregister(first)


def _runtime() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]
