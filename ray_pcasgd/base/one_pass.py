"""Weighted sums of long vectors that read each of them once, to the bits of one operation after another.

What PyTorch does in some fifty operations, each of which reads and writes memory or a cache, is one loop here, in C on
a CPU (``one_pass.c``). It rounds every product and every sum as the single operations do, so that it does not show in a
run's numbers whether a machine has a compiler.
"""

import ctypes
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ray_pcasgd.base.c_compiler import compiled, logger
from ray_pcasgd.base.numerics import Vectors

SHORTEST = 1 << 16
"""Numbers of a vector from which on it is long: single operations on shorter ones stay in a cache, and it takes a few
tenths of a second to compile."""

_TILE = 2048
"""Numbers that are summed at a time: a tile for each sum, and the one that comes in, fit into a core's first cache."""

_FOR_A_THREAD = 1 << 20
"""Numbers from which on another thread pays."""


class Prediction(NamedTuple):
    """What is taken from each of B sums: ``theta_b sum_k d_k (rate_rk + bend_rk d_k h_k)``, r the place of b.

    A neighbor whose rate is 0 adds nothing.
    """

    directions: Vectors
    """d_k, K vectors of shape (D,)."""
    drifts: Vectors
    """h_k, K vectors of shape (D,)."""
    rates: Tensor
    """Shape (R, K)."""
    bends: Tensor | None
    """Shape (R, K); ``None`` for zeros, with which the drifts are not read."""
    thetas: Tensor
    """Shape (B,); where it is 0, nothing is taken, whatever the rest comes to."""
    places: tuple[int, ...]
    """Of each sum the row of the rates."""


class Sums(NamedTuple):
    """Weighted sums, and what was taken from each."""

    sums: Vectors
    """B vectors of shape (D,)."""
    taken: Vectors
    """B vectors of shape (D,), where they were asked for."""


def takes(vectors: Vectors, numbers: Vectors) -> bool:
    """Return whether ``weighted_sums`` takes such vectors of shape (D,) and numbers, of shape () or (K,).

    Else the caller takes the operations one after another: with short vectors, under ``vmap``, in other types than
    float32, with numbers on a GPU, and without a compiler.
    """
    first = vectors[0]
    if first.numel() < SHORTEST:
        return False
    for one in vectors:
        if one.shape != first.shape or one.device != first.device or not _is_plain(one) or one.stride(0) not in (0, 1):
            return False
    for one in numbers:
        if one.numel() > len(vectors) or one.device.type != "cpu" or not _is_plain(one):
            return False
    return _has_kernel() if first.device.type == "cuda" else first.device.type == "cpu" and _library() is not None


def _is_plain(tensor: Tensor) -> bool:
    """Return whether a tensor is a vector or number in memory of its own, not one of many that ``vmap`` steps."""
    if tensor.dtype != torch.float32 or tensor.dim() > 1 or tensor.requires_grad:
        return False
    try:
        tensor.data_ptr()
    except RuntimeError:
        return False
    return True


def weighted_sums(
    vectors: Vectors, weights: Tensor, prediction: Prediction | None = None, *, with_taken: bool = False
) -> Sums:
    """Return ``sum_j weight_bj v_j`` in the vectors' order, less what is predicted, for each row b of ``weights``.

    ``vectors`` are N of shape (D,), ``weights`` has shape (B, N); all of them such that ``takes`` says yes.
    """
    count = len(weights)
    sums, taken = (tuple(torch.empty_like(vectors[0]) for _ in range(n)) for n in (count, count * with_taken))
    if vectors[0].device.type == "cuda":
        from ray_pcasgd.base.one_pass_gpu import launch

        launch(vectors, weights, sums, **({} if prediction is None else prediction._asdict()), moves=taken)
    else:
        _run_on_cpu(vectors, weights, sums, prediction, taken)
    return Sums(sums, taken)


def _run_on_cpu(
    vectors: Vectors, weights: Tensor, sums: Vectors, prediction: Prediction | None, taken: Vectors
) -> None:
    library, size, count = _library(), len(vectors[0]), len(weights)
    assert library is not None
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
    parts = max(1, min(torch.get_num_threads(), size // _FOR_A_THREAD))
    ends = [size * number // parts for number in range(parts + 1)]
    if parts == 1:
        library.weighted_sums(_count(0), _count(size), *arguments)
    else:
        with ThreadPoolExecutor(parts) as threads:
            calls = [
                threads.submit(library.weighted_sums, _count(begin), _count(end), *arguments)
                for begin, end in pairwise(ends)
            ]
        for call in calls:
            call.result()


_count = ctypes.c_int64


class _Vector(ctypes.Structure):
    _fields_ = (("start", ctypes.c_void_p), ("stride", ctypes.c_int64))


@cache
def _library() -> ctypes.CDLL | None:
    return compiled(Path(__file__).with_suffix(".c"), f"-DTILE={_TILE}")


@cache
def _has_kernel() -> bool:
    """Return whether the GPU's kernel can be compiled and started, which takes Triton and, for Triton, a C compiler."""
    one = torch.ones(1, device="cuda")
    try:
        from ray_pcasgd.base.one_pass_gpu import launch

        launch((one,), torch.ones(1, 1), (torch.empty_like(one),))
    except Exception as error:  # whatever it is that Triton, its compiler or the driver raise
        logger.info("weighted sums run as single operations on the GPU: %s", error)
        return False
    return True


def _read(vectors: Vectors) -> Any:
    """Return where vectors begin; of one whose numbers are all the same number in memory, where a tile of it does."""
    starts = [vector if vector.stride(0) else vector[:_TILE].contiguous() for vector in vectors]
    found = (_Vector * len(vectors))(*(_Vector(one.data_ptr(), len(one) > _TILE) for one in starts))
    found.kept = starts  # type: ignore[attr-defined]  # as long as it is read
    return found


def _written(vectors: Vectors) -> Any:
    return (ctypes.c_void_p * len(vectors))(*(one.data_ptr() for one in vectors))


def _floats(numbers: Tensor) -> Any:
    return (ctypes.c_float * numbers.numel())(*numbers.flatten().tolist())
