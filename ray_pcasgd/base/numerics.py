"""Arithmetic whose bits do not depend on batching or on the number of threads."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

_BLOCK = 4096

_ROWS = 32
"""Rows of an inner product that are multiplied at a time: a temporary of 512 kB, which stays in a core's cache."""

_ROWS_ON_GPU = 4096
"""The same on a GPU: 64 MB, since each kernel that is started costs as much time as it takes to sum a megabyte."""

_CACHED = 1 << 15
"""Elements of one temporary vector that fits into one core's cache together with a few others."""

_ROUNDINGS = 16

SMALLEST = 2.0**-126
"""The smallest number above 0 that float32 has in full precision; much smaller ones are 0 there."""

Vectors = tuple[Tensor, ...]


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner product of two vectors of shape (D,), as a tensor of shape ().

    Blocked (rows of 4096, then the rows' sums), because ``torch.dot`` and a plain sum give other bits when they
    run batched under ``vmap`` or on another number of threads, and a rule that decides by the sign of a difference
    of inner products must decide alike in every engine.
    """
    size = a.shape[-1]
    step = (_ROWS if a.device.type == "cpu" else _ROWS_ON_GPU) * _BLOCK
    sums = []
    for start in range(0, max(size, 1), step):
        part = slice(start, start + step)
        product = a[part] * b[part]
        if missing := -product.shape[-1] % _BLOCK:  # to pad with none would copy
            product = functional.pad(product, (0, missing))
        sums.append(product.reshape(-1, _BLOCK).sum(1))
    # The sum of a row does not depend on how many rows there are.
    return (sums[0] if len(sums) == 1 else torch.cat(sums)).sum(0)


def norm(a: Tensor) -> Tensor:
    """Return the Euclidean norm of a vector of shape (D,), as a tensor of shape ()."""
    return inner(a, a).sqrt()


def norms(a: Tensor) -> Tensor:
    """Return the Euclidean norms of several vectors of shape (B, D), shape (B,): rounded otherwise than ``norm``."""
    found: Tensor = torch.linalg.vector_norm(a, dim=1)
    return found


def sums_by_place(weights: Tensor, places: Tensor, table: Tensor) -> Tensor:
    """Return ``sum_k w_bk y_j``, j = ``places[b, k]``, shape (B, D), of the rows y of a table (V, D).

    The sums run in the order of k. ``weights`` and ``places`` have shape (B, K). What has a weight of 0 is not looked
    at, whatever numbers are there. One pass over what is summed, without temporaries.
    """
    used = weights != 0
    counts = used.sum(1)
    ends = counts.cumsum(0)
    return functional.embedding_bag(places[used], table, ends - counts, mode="sum", per_sample_weights=weights[used])


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Return the cosine of the angle between two vectors of shape (D,), 0 where either of them is zero."""
    length = norm(a) * norm(b)
    return torch.where(length > 0, inner(a, b) / torch.where(length > 0, length, 1.0), 0.0)


def rounding_of(weights: Tensor) -> Tensor:
    """Return how long a difference of weighted sums of such weights may be by rounding alone, shape ().

    Sums over some dozens of neighbors come to 16 rounding errors of the weights' norm at most.
    """
    return _ROUNDINGS * torch.finfo(weights.dtype).eps * norm(weights)


def is_finite(tensor: Tensor) -> bool:
    """Return whether all of a tensor's numbers are finite."""
    return all_finite(tensor)[0]


def all_finite(*tensors: Tensor) -> list[bool]:
    """Return of each tensor whether all of its numbers are finite; a GPU is waited for once."""
    filled = [tensor for tensor in tensors if tensor.numel()]
    # A sum is one pass; where finite numbers overflow in it, each is looked at.
    totals = iter(values_of(*(tensor.sum() for tensor in filled)))
    return [not tensor.numel() or math.isfinite(next(totals)) or bool(tensor.isfinite().all()) for tensor in tensors]


def values_of(*numbers: Tensor) -> list[float]:
    """Return the values of tensors of shape (); a GPU is waited for once, since all come in one copy."""
    if len(numbers) > 1 and numbers[0].device.type != "cpu":
        return torch.stack(numbers).tolist()
    return [number.item() for number in numbers]


def blockwise(function: Callable[..., Vectors], *groups: Vectors) -> Vectors:
    """Return ``function(*groups)`` for an elementwise function, computed block by block where the vectors are long.

    Takes groups of vectors of shape (D,), of which at least one vector comes first, and returns vectors of shape
    (D,). An element's value depends only on the same element of every vector, so the blocks change no bit;
    but temporaries that stay in a core's cache make long sums several times faster than ones that travel to memory
    and back (7 times for 7 neighbors of 10 million parameters).
    """
    first = groups[0][0]
    size = first.shape[-1]
    block = _CACHED * max(2, torch.get_num_threads())
    if size <= block or first.device.type != "cpu":
        return function(*groups)
    results: Vectors = ()
    for start in range(0, size, block):
        part = slice(start, start + block)
        pieces = function(*(tuple(vector[part] for vector in group) for group in groups))
        # Made from a piece, so that under ``vmap`` a result is batched exactly where the pieces are.
        results = results or tuple(piece.new_empty(size) for piece in pieces)
        for result, piece in zip(results, pieces, strict=True):
            result[part] = piece
    return results
