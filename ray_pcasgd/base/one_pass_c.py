"""The weighted sums of ``one_pass`` on a CPU, by the loops of ``one_pass.c``."""

import ctypes
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ray_pcasgd.base.c_compiler import compiled
from ray_pcasgd.base.numerics import Vectors
from ray_pcasgd.base.sum_terms import Prediction

_TILE = 2048
"""Numbers that are summed at a time: a tile for each sum, and the one that comes in, fit into a core's first cache."""

FOR_A_THREAD = 1 << 20
"""Numbers from which on another thread pays."""

_count = ctypes.c_int64


class _Vector(ctypes.Structure):
    _fields_ = (("start", ctypes.c_void_p), ("stride", ctypes.c_int64))


@cache
def library() -> ctypes.CDLL | None:
    """Return the compiled loops, ``None`` where no compiler makes them."""
    return compiled(Path(__file__).with_name("one_pass.c"), f"-DTILE={_TILE}")


def run(
    library: ctypes.CDLL,
    vectors: Vectors,
    weights: Tensor,
    sums: Vectors,
    prediction: Prediction | None,
    taken: Vectors,
) -> None:
    """Write weighted sums into ``sums``, and what is taken from them into ``taken`` where that is not empty."""
    size, count = len(vectors[0]), len(weights)
    for one in (*sums, *taken):
        library.expect_writing(ctypes.c_void_p(one.data_ptr()), ctypes.c_int64(4 * size))
    arguments = [_count(len(vectors)), _read(vectors), _count(count), _floats(weights), _written(sums)]
    if prediction is None:
        arguments += [_count(0), *[None] * 7]
    else:
        directions, drifts, rates, bends, thetas, places = prediction
        arguments += [
            *(_count(len(directions)), _read(directions), _read(drifts)),
            *(_floats(rates), None if bends is None else _floats(bends)),
            *(_floats(thetas), (ctypes.c_int64 * count)(*places), _written(taken) if taken else None),
        ]
    parts = max(1, min(torch.get_num_threads(), size // FOR_A_THREAD))
    ends = [size * number // parts for number in range(parts + 1)]
    if parts == 1:
        library.weighted_sums(_count(0), _count(size), *arguments)
    else:
        with ThreadPoolExecutor(parts) as threads:
            calls = []
            for begin, end in pairwise(ends):
                try:
                    calls.append(threads.submit(library.weighted_sums, _count(begin), _count(end), *arguments))
                except RuntimeError:  # no thread can be started, since there are too many or the interpreter ends
                    library.weighted_sums(_count(begin), _count(end), *arguments)
        for call in calls:
            call.result()


def _read(vectors: Vectors) -> Any:
    """Return where vectors begin; of one whose numbers are all the same number in memory, where a tile of it does."""
    starts = [vector if vector.stride(0) else vector[:_TILE].contiguous() for vector in vectors]
    found = (_Vector * len(vectors))(*(_Vector(one.data_ptr(), len(one) > _TILE) for one in starts))
    found.kept = starts  # type: ignore[attr-defined]  # as long as it is read
    return found


def _written(vectors: Vectors) -> Any:
    found = (ctypes.c_void_p * len(vectors))(*(one.data_ptr() for one in vectors))
    found.kept = vectors  # type: ignore[attr-defined]  # as long as a thread may write to them, whatever ends this one
    return found


def _floats(numbers: Tensor) -> Any:
    return (ctypes.c_float * numbers.numel())(*numbers.flatten().tolist())
