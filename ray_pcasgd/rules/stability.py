"""Stability: how strongly, and how far ahead, late neighbors can be predicted without a feedback that grows.

Two symmetric clusters, each late by ``tau`` steps for the other, and a mode of the loss of curvature ``h``: with the
weight ``g`` of the late neighbors, ``s`` the steps by which they are rolled forward and ``e = eta h``, their common
mode (+) and their difference (-) obey ``x(t+1) = (1 - g - e) x(t) +- g (1 - s e) x(t - tau)``. Whatever tau, this is
stable if ``|1 - g - e| + g |1 - s e| <= 1`` for all ``e`` in (0, r], ``r = eta h_max``:

- for ``r <= 1 - g``: ``s <= 2/r + 1/g``;
- for ``1 - g < r < 2``: ``s <= 2/(1-g) + 1/g``, and ``g s <= (2-r)/r`` where ``s r > 1``, else
  ``g (2 - s r) <= 2 - r``.

All functions take and return tensors of shape (), and run under ``torch.func.vmap``.
"""

import torch
from torch import Tensor

STEEPEST = 2.0
"""r from which on plain gradient descent diverges on a quadratic, so that the linear theory says nothing."""

_TINY = 1e-12


def strength_within(reach: Tensor, gain: Tensor) -> Tensor:
    """Return the largest weight ``g`` with ``g s <= c`` for a reach of ``s`` steps and a gain ``c``, unbounded at 0."""
    return gain / reach.clamp(min=_TINY)


def reach_within(strength: Tensor, gain: Tensor) -> Tensor:
    """Return the largest reach ``s`` with ``g s <= c``, in steps."""
    return gain / strength.clamp(min=_TINY)


def strength_by_curvature(reach: Tensor, r: Tensor) -> Tensor:
    """Return the largest ``g`` in [0, 1] for a reach of ``s`` steps at ``r`` in (0, 2), of those connected to 0.

    A larger ``g`` may be stable again beyond a gap, but an agent would have to cross the gap.
    """
    s, r = reach, r.clamp(min=_TINY)
    edge = 1 - r
    # Up to g = 1 - r, where no mode overshoots.
    flat = 2 / r
    calm = torch.where(s > flat, 1 / (s - flat).clamp(min=_TINY), 1.0)
    # Beyond it. s <= 2/(1-g) + 1/g fails between the roots of s g^2 - (s-1) g + 1, where they are real.
    middle, width = s - 1, (2 * s).clamp(min=_TINY)
    square = middle**2 - 4 * s
    root = square.clamp(min=0).sqrt()
    low, high = (middle - root) / width, (middle + root) / width
    begin = edge.clamp(min=0)
    gap = (square > 0) & (s > 1) & (begin < high)
    below = torch.where(gap, low, 1.0)
    product, left = s * r, 2 - r
    far = left / torch.where(product > 1, product, 2 - product)
    steep = torch.minimum(below, far)
    return torch.where(calm < edge, calm, torch.maximum(steep, begin.minimum(calm))).clamp(0, 1)


def reach_by_curvature(strength: Tensor, r: Tensor) -> Tensor:
    """Return the largest reach ``s`` in steps for a weight ``g`` in [0, 1] at ``r`` in (0, 2)."""
    g, r = strength.clamp(min=_TINY), r.clamp(min=_TINY)
    gap = 2 / (1 - g).clamp(min=_TINY) + 1 / g
    # g s <= (2-r)/r holds for s > 1/r; up to 1/r a reach is stable where one of 1/r is, or r <= 1.
    far = torch.maximum((2 - r) / (r * g), torch.where(r <= 1, 1 / r, 0.0))
    return torch.where(r <= 1 - g, 2 / r + 1 / g, torch.minimum(gap, far))


def strength_of_own_drift(reach: Tensor) -> Tensor:
    """Return the largest ``g`` where neighbors are rolled forward by the reader's own drift: ``min(1/4, 2/(s+2))``."""
    return (2 / (reach + 2)).clamp(max=0.25)


def reach_of_own_drift(strength: Tensor) -> Tensor:
    """Return the longest reach in steps at a weight ``g`` where the reader's own drift predicts; 0 above 1/4."""
    return torch.where(strength > 0.25, 0.0, 2 / strength.clamp(min=_TINY) - 2)


def speed_of_slow_modes(strength: Tensor, reach: Tensor, staleness: Tensor) -> Tensor:
    """Return ``(1 + g s) / (1 + g tau)``: the speed at which slow modes converge, by that of a run without delays."""
    return (1 + strength * reach) / (1 + strength * staleness)


def strength_at_drag(strength: Tensor, staleness: Tensor, drag: float) -> Tensor:
    """Return the ``g`` that slows slow modes down by the share ``drag`` at the product ``g s`` of full prediction.

    ``strength`` is the largest one at full prediction, ``s = tau``. At a larger one the reach must be shorter, so that
    ``g s`` stays, and the speed ``(1 + g s) / (1 + g tau)`` falls: to ``1 - drag`` at this one.
    """
    product = strength * staleness
    return strength.maximum(((1 + product) / (1 - drag) - 1) / staleness.clamp(min=_TINY))
