"""Tensors that are each agent's own: what of several agents' makes those of one model."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def is_same(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors are alike in shape, type and all numbers; not a number is like itself."""
    if (a.shape, a.dtype) != (b.shape, b.dtype):
        return False
    return torch.equal(a, b) or bool(_alike(a, b).all())


def joined(tensors: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return by name what several agents' own tensors, given in the agents' order, make together.

    Integers, and what only some agents have, are those of the first agent that has them. Floating-point numbers are
    the mean, but that very number where all are alike, be it infinite. **Choice**: where some are finite, the mean is
    over them; where none is, the first agent's number stays.
    """
    names = dict.fromkeys(name for own in tensors for name in own)
    return {name: _mean([own[name] for own in tensors if name in own]) for name in names}


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    first = tensors[0]
    inexact = first.is_floating_point() or first.is_complex()
    if not inexact or all(torch.equal(first, other) for other in tensors[1:]):
        return first.clone()
    wide = torch.complex128 if first.is_complex() else torch.float64
    total, count = torch.zeros_like(first, dtype=wide), torch.zeros_like(first, dtype=torch.float64)
    alike = torch.ones_like(first, dtype=torch.bool)
    for tensor in tensors:
        finite = tensor.isfinite()
        total += torch.where(finite, tensor.to(wide), 0)
        count += finite
        alike &= _alike(first, tensor)
    mean = (total / count.clamp(min=1)).to(first.dtype)
    return torch.where(alike | (count == 0), first, mean)


def _alike(a: Tensor, b: Tensor) -> Tensor:
    return (a == b) | (a.isnan() & b.isnan())
