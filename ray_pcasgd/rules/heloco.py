"""HeLoCo: late pseudo-gradients that point against the outer momentum are turned towards it, tensor by tensor."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from ray_pcasgd.base.numerics import inner, norm
from ray_pcasgd.rules.outer import OuterOptimizer

_SMALL = 1e-8
"""Added to the sum of norms that the confidence is divided by."""


class HeLoCo(OuterOptimizer):
    """An outer optimizer that corrects each late pseudo-gradient by the momentum m (arXiv 2606.00271).

    By tensor, with ``c`` the cosine of Delta_l and m, ``v`` the direction of m, ``conf = |Delta_l| / (|Delta_l| +
    kappa |m| + 1e-8)``: where ``c < 0`` part of what opposes m is removed, ``Delta_l - beta c |Delta_l| v`` with
    ``beta = min(k_s (-c) conf, beta_max)``; where ``0 <= c < c_ok`` its direction is turned towards v by ``min(k_d (1 -
    c) conf, 1)``, and its norm kept; else it stays. Then, over the mean G, ``m <- mu m + (1 - mu) G`` and ``Theta <-
    Theta - eps (G + mu m)``. Since m is a mean, not a sum, it moves Theta at most 1 + mu times as far as G does, where
    ``sgd`` comes to 1 / (1 - mu) times. With gathering asgd every Delta_l moves it so: eps is to be smaller there.

    **Choice**: a pseudo-gradient that is not late is never corrected; to turn is to mix the two directions of length 1
    and to make that length 1 again; where Delta_l or m is zero in a tensor nothing is corrected there.
    """

    name: Literal["heloco"] = "heloco"
    by_tensor: ClassVar[bool] = True
    c_ok: float = Field(0.2, ge=0, le=1)
    """The cosine from which on nothing is corrected, in [0, 1]."""
    k_s: float = Field(0.5, ge=0, le=100)
    """How much is removed of what opposes the momentum, from 0 on."""
    beta_max: float = Field(0.5, ge=0, le=1)
    """The largest part of it that is removed, in [0, 1]."""
    k_d: float = Field(1.0, ge=0, le=100)
    """How far directions are turned, from 0 on."""
    kappa: float = Field(3.0, ge=0, le=1e6)
    """How much the momentum's norm lowers the confidence, from 0 on."""

    def init(self, weights: Tensor, updates_a_round: int) -> tuple[Tensor]:
        """Return m = 0."""
        return (torch.zeros_like(weights),)

    def corrected(self, state: tuple[Tensor], delta: Tensor, staleness: Tensor, sizes: tuple[int, ...]) -> Tensor:
        """Return Delta_l as it counts, shape (D,)."""
        pairs = zip(delta.split_with_sizes(sizes), state[0].split_with_sizes(sizes), strict=True)
        return torch.where(staleness > 0, torch.cat([self._towards(m, part) for part, m in pairs]), delta)

    def _towards(self, m: Tensor, delta: Tensor) -> Tensor:
        length, momentum = norm(delta), norm(m)
        is_there = (length > 0) & (momentum > 0)
        one, other = torch.where(is_there, length, 1.0), torch.where(is_there, momentum, 1.0)
        v, c = m / other, inner(delta / one, m / other)
        confidence = length / (length + self.kappa * momentum + _SMALL)
        beta = (self.k_s * -c * confidence).clamp(max=self.beta_max)
        share = (self.k_d * (1 - c) * confidence).clamp(max=1.0)
        turned = (1 - share) * (delta / one) + share * v
        turned = turned * (length / norm(turned).clamp(min=_SMALL))
        found = torch.where(c < 0, delta - beta * c * length * v, torch.where(c < self.c_ok, turned, delta))
        return torch.where(is_there, found, delta)

    def step(self, state: tuple[Tensor], center: Tensor, delta: Tensor) -> tuple[tuple[Tensor], Tensor]:
        """Return m and ``Theta - eps (G + mu m)``."""
        momentum = self.momentum * state[0] + (1 - self.momentum) * delta
        return (momentum,), center - self.step_size * (delta + self.momentum * momentum)
