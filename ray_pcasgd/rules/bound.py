"""The stability bound of prediction, by a constant or by the loss's measured curvature."""

from numbers import Real
from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from ray_pcasgd.base.settings import Settings, from_name
from ray_pcasgd.records import Own
from ray_pcasgd.rules.stability import (
    STEEPEST,
    reach_by_curvature,
    reach_within,
    strength_by_curvature,
    strength_within,
)

LEAST = 0.5
"""Smallest r that is reckoned with: what is measured varies, and a loss is sharper somewhere else."""


class ConstantBound(Settings):
    """``theta W s <= c``: with c = 1 stable for every loss of ``eta h_max <= 1``."""

    name: Literal["constant"] = "constant"
    value: float = Field(1.0, gt=0)
    """c, above 0."""

    @property
    def c(self) -> float:
        """The constant."""
        return self.value

    def strength(self, reach: Tensor, own: Own, gain: float | Tensor) -> Tensor:
        """Return the largest stable weight of late neighbors at a mean reach; both of shape ()."""
        return strength_within(reach, reach.new_ones(()) * (self.value * gain))

    def reach(self, strength: Tensor, own: Own, gain: float | Tensor) -> Tensor:
        """Return the longest stable reach at a weight of late neighbors; both of shape ()."""
        return reach_within(strength, strength.new_ones(()) * (self.value * gain))


class CurvatureBound(Settings):
    """The whole stability condition at ``r = eta h``, h the loss's curvature along what is predicted.

    Prediction feeds back along the late neighbors' directions u, so it is the curvature there that counts, and not the
    sharpest of an agent's own loss: agents with other data are sharp elsewhere. An agent measures ``u' H u / u' u`` of
    the directions' weighted mean on some samples of a mini-batch of its own, at its own weights: one Hessian-vector
    product, three to four gradients of those. With momentum beta, r is that of its steady step, ``eta h / (1 - beta)``.

    **Choice**: ``r = sharpness`` times that quotient, since the directions of mini-batches hold more flat parts than
    what feeds back; at least 1/2, since it varies; beyond r = 2, where the linear theory says that even a single agent
    diverges, nothing is predicted, as the bound says just below it. Before the first measurement c is 1, and over the
    first steps, in which losses sharpen, the bound rises from 0.
    """

    name: Literal["curvature"] = "curvature"
    every: int = Field(25, ge=1)
    """Own steps from one measurement to the next; the first is at the first step that reads a late neighbor."""
    samples: int = Field(16, ge=1)
    """Samples that it is measured on, if a mini-batch has more: time and memory of second derivatives grow with
    them."""
    sharpness: float = Field(2.5, gt=0)
    """How many times sharper than along a mini-batch's direction the loss is where it feeds back."""
    warmup: int = Field(100, ge=0)
    """Own steps over which the bound rises from 0."""

    @property
    def c(self) -> float:
        """The constant where no curvature is measured."""
        return 1.0

    def trust_at(self, step: int) -> float:
        """Return the share of the bound that counts at a step."""
        return min(1.0, step / self.warmup) if self.warmup else 1.0

    def strength(self, reach: Tensor, own: Own, gain: float | Tensor) -> Tensor:
        """Return the largest stable weight of late neighbors at a mean reach; both of shape ()."""
        r, is_known = self._r(own)
        bound = torch.where(r < STEEPEST, strength_by_curvature(reach, r.clamp(max=STEEPEST)), 0.0)
        plain = strength_within(reach, torch.ones_like(reach))
        return torch.where(is_known, bound, plain) * (gain * own.coefficients["trust"])

    def reach(self, strength: Tensor, own: Own, gain: float | Tensor) -> Tensor:
        """Return the longest stable reach at a weight of late neighbors; both of shape ()."""
        r, is_known = self._r(own)
        bound = torch.where(r < STEEPEST, reach_by_curvature(strength.clamp(max=1.0), r.clamp(max=STEEPEST)), 0.0)
        plain = reach_within(strength, torch.ones_like(strength))
        return torch.where(is_known, bound, plain) * (gain * own.coefficients["trust"])

    def _r(self, own: Own) -> tuple[Tensor, Tensor]:
        curvature = own.coefficients["curvature"]
        return (self.sharpness * own.step_size * curvature).clamp(min=LEAST), curvature > 0


def _from_shorthand(value: Any) -> Any:
    return {"name": "constant", "value": value} if isinstance(value, Real) else from_name(value)


Bound = Annotated[
    Annotated[ConstantBound | CurvatureBound, Field(discriminator="name")],
    BeforeValidator(_from_shorthand),
]
"""The bound; a bare number is a constant c, a bare name the settings of that name."""
