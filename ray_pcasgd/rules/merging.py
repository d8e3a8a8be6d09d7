"""How the pseudo-gradients of one update become one."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ray_pcasgd.base.numerics import norm

Merging = Literal["mean", "radial-directional"]
"""By their weighted mean, or by the means of their lengths and of their directions."""

_SMALLEST = 1e-12
"""The norm below which a tensor has no direction."""


def weighted_mean(deltas: Sequence[Tensor], weights: Sequence[Tensor], total: float) -> Tensor:
    """Return ``sum_l w_l Delta_l / total``, shape (D,), summed in their order."""
    found = weights[0] * deltas[0]
    for weight, delta in zip(weights[1:], deltas[1:], strict=True):
        found = found + weight * delta
    return found / total


def radial_directional(
    deltas: Sequence[Tensor], weights: Sequence[Tensor], total: float, sizes: tuple[int, ...]
) -> Tensor:
    """Return the merged pseudo-gradient, shape (D,): by tensor, the mean of the lengths along the mean direction.

    Length: ``sum_l w_l |Delta_l| / total``; direction: that of ``sum_l w_l Delta_l / |Delta_l|``. So workers that
    disagree do not shrink the step, as they do in the mean. Where a norm is below 1e-12 it is the weighted mean
    (Decoupled DiLoCo, arXiv 2604.21428). **Choice**: no tensor is taken for an embedding, of which the paper has the
    mean.
    """
    parts = zip(*(delta.split_with_sizes(sizes) for delta in deltas), strict=True)
    return torch.cat([_merged(part, weights, total) for part in parts])


def _merged(deltas: Sequence[Tensor], weights: Sequence[Tensor], total: float) -> Tensor:
    lengths = [norm(delta) for delta in deltas]
    safe = [length.clamp(min=_SMALLEST) for length in lengths]
    length = weighted_mean(lengths, weights, total)
    direction = weighted_mean([delta / one for delta, one in zip(deltas, safe, strict=True)], weights, total)
    along = norm(direction)
    has_none = along < _SMALLEST
    for one in lengths:
        has_none = has_none | (one < _SMALLEST)
    merged = direction * (length / along.clamp(min=_SMALLEST))
    return torch.where(has_none, weighted_mean(deltas, weights, total), merged)
