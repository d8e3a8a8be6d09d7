"""Copies arrays into shared memory, and finds whether their numbers are finite as they pass by."""

import ctypes
import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ray_pcasgd.base.c_compiler import compiled

LONG = 1 << 18
"""Numbers from which on an array is copied past the caches, which do not hold it anyhow, and in one loop of C."""

_BLOCK = 64 * 1024
"""Numbers that are copied at a time without C, and then looked at while they are in the processor's cache."""

_ZEROS = np.zeros(_BLOCK, np.float32)

Array = np.ndarray[Any, Any]


def copied(target: Array, source: Array) -> bool:
    """Copy an array; return whether its numbers are finite, which bytes are always."""
    if source.dtype != np.float32:
        np.copyto(target, source)
        return bool(source.dtype.kind != "f")
    if source.size >= LONG and source.flags.c_contiguous and (library := _library()) is not None:
        return bool(library.copy(*_addresses(target, source), ctypes.c_int64(source.size)))
    return copied_by_blocks(target, source)


def copied_by_blocks(target: Array, source: Array) -> bool:
    """Do what ``copied`` does for float32, without C."""
    is_finite = True
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, source.size, _BLOCK):
            block = target[start : start + _BLOCK]
            np.copyto(block, source[start : start + _BLOCK])
            # 0 for finite numbers, however large, and not a number for others; in half of a sum's time.
            is_finite &= math.isfinite(np.dot(block, _ZEROS[: block.size]))
    return is_finite


def _addresses(*arrays: Array) -> tuple[ctypes.c_void_p, ...]:
    return tuple(ctypes.c_void_p(array.ctypes.data) for array in arrays)


@cache
def _library() -> ctypes.CDLL | None:
    return compiled(Path(__file__).with_name("copying.c"))
