"""Arithmetic whose bits do not depend on batching or on the number of threads."""

import torch
from torch import Tensor
from torch.nn import functional

_BLOCK = 4096


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner product of two vectors of shape (D,), as a tensor of shape ().

    Blocked (rows of 4096, then the rows' sums), because ``torch.dot`` and a plain sum give other bits when they
    run batched under ``vmap`` or on another number of threads, and a rule that decides by the sign of a difference
    of inner products must decide alike in every engine.
    """
    product = functional.pad(a * b, (0, -a.shape[-1] % _BLOCK))
    return product.reshape(-1, _BLOCK).sum(1).sum(0)


def norm(a: Tensor) -> Tensor:
    """Return the Euclidean norm of a vector of shape (D,), as a tensor of shape ()."""
    return inner(a, a).sqrt()


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Return the cosine of the angle between two vectors of shape (D,), 0 where either of them is zero."""
    length = norm(a) * norm(b)
    return torch.where(length > 0, inner(a, b) / torch.where(length > 0, length, 1.0), 0.0)
