"""Weighted sums of long vectors that read each of them once, to the bits of one operation after another.

What PyTorch does in some fifty operations, each of which reads and writes memory or a cache, is one loop here: in C on
a CPU, or else in PyTorch's operations in place; on a GPU one kernel. All of them round every product and every sum as
the single operations do, so that it does not show in a run's numbers which one a machine has.
"""

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from ray_pcasgd.base import one_pass_c, one_pass_torch
from ray_pcasgd.base.c_compiler import logger
from ray_pcasgd.base.numerics import Vectors
from ray_pcasgd.base.sum_terms import Prediction

SHORTEST = 1 << 16
"""A vector of more numbers is long: single operations on shorter ones stay in a cache, and it takes a few
tenths of a second to compile."""


MOST_ON_GPU = 48
"""Vectors times sums of a GPU's kernel: of so many, it is compiled in some five seconds."""


class Sums(NamedTuple):
    """Weighted sums, and what was taken from each."""

    sums: Vectors
    """B vectors of shape (D,)."""
    taken: Vectors
    """B vectors of shape (D,), where they were asked for."""


def takes(vectors: Vectors, numbers: Vectors, count: int = 1) -> bool:
    """Return whether ``weighted_sums`` takes such vectors of shape (D,) and numbers, of shape () or (K,).

    Else the caller takes the operations one after another: with short vectors, under ``vmap``, in other types than
    float32, with numbers on a GPU, on one whose kernel cannot be compiled, and there with many vectors for ``count``
    sums: each is a part of the kernel, which would take minutes to compile.
    """
    first = vectors[0]
    if first.numel() <= SHORTEST:
        return False
    for one in vectors:
        if one.shape != first.shape or one.device != first.device or not _is_plain(one) or one.stride(0) not in (0, 1):
            return False
    for one in numbers:
        if one.numel() > len(vectors) or one.device.type != "cpu" or not _is_plain(one):
            return False
    if first.device.type == "cuda":
        return len(vectors) * count <= MOST_ON_GPU and _has_kernel()
    return first.device.type == "cpu"


def _is_plain(tensor: Tensor) -> bool:
    """Return whether a tensor is a vector or number in memory of its own, not one of many that ``vmap`` steps."""
    if tensor.dtype != torch.float32 or tensor.dim() > 1 or tensor.requires_grad or tensor.is_neg():
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

    Raises:
        ValueError: There are more or fewer weights than vectors, or other numbers for what is predicted.

    """
    count = len(weights)
    if weights.shape[1] != len(vectors):
        raise ValueError(f"there are {weights.shape[1]} weights for {len(vectors)} vectors; allowed are as many")
    if prediction is not None:
        prediction.check()
    sums, taken = (tuple(torch.empty_like(vectors[0]) for _ in range(n)) for n in (count, count * with_taken))
    if vectors[0].device.type == "cuda":
        from ray_pcasgd.base import one_pass_gpu

        one_pass_gpu.run(vectors, weights, sums, prediction, taken)
    elif (library := one_pass_c.library()) is not None:
        one_pass_c.run(library, vectors, weights, sums, prediction, taken)
    else:
        one_pass_torch.run(vectors, weights, sums, prediction, taken)
    return Sums(sums, taken)


@cache
def _has_kernel() -> bool:
    """Return whether the GPU's kernel can be compiled and started, which takes Triton and, for Triton, a C compiler."""
    one = torch.ones(1, dtype=torch.float32, device="cuda")
    try:
        from ray_pcasgd.base import one_pass_gpu

        one_pass_gpu.run(
            (one,), torch.ones(1, 1, dtype=torch.float32, device="cpu"), (torch.empty_like(one),), None, ()
        )
    except Exception as error:  # whatever it is that Triton, its compiler or the driver raise
        logger.info("weighted sums run as single operations on the GPU: %s", error)
        return False
    return True
