"""Reach: how many of the steps that a late neighbor has taken since are predicted."""

from numbers import Real
from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from ray_pcasgd.base.settings import Settings, from_name


class FullReach(Settings):
    """All steps that were missed, ``s = tau``: the published method."""

    name: Literal["full"] = "full"

    def steps(self, staleness: Tensor) -> Tensor:
        """Return the steps, shape (K,), by which each neighbor is rolled forward."""
        return staleness


class DampedReach(Settings):
    """Each further step counts less: ``s = 1 + rho + ... + rho^(tau-1)`` after a first one of ``rho``.

    ``s = rho (1 - rho^tau) / (1 - rho)``, which no staleness brings above ``rho / (1 - rho)``.
    """

    name: Literal["damped"] = "damped"
    rho: float = Field(0.9, gt=0, lt=1)
    """What a step counts by the one before it, in (0, 1)."""

    def steps(self, staleness: Tensor) -> Tensor:
        """Return the steps, shape (K,), by which each neighbor is rolled forward."""
        return self.rho * (1 - self.rho**staleness) / (1 - self.rho)


class FixedReach(Settings):
    """At most a number of steps, ``s = min(tau, steps)``; a bare number stands for it."""

    name: Literal["steps"] = "steps"
    number: float = Field(ge=0)
    """The number, 0 or more; 0 mixes late neighbors as they were read."""

    def steps(self, staleness: Tensor) -> Tensor:
        """Return the steps, shape (K,), by which each neighbor is rolled forward."""
        return staleness.clamp(max=self.number)


class StableReach(Settings):
    """As far as the stability bound allows at the present theta.

    With ``theta: staleness`` the two are chosen together. Full prediction at a small theta costs no speed, and mixes
    weakly; a larger theta with a shorter reach mixes strongly, and slows the slow modes down to
    ``(1 + g s) / (1 + g tau)``. ``drag`` says how much speed is given up for mixing.
    """

    name: Literal["stable"] = "stable"
    drag: float = Field(0.0, ge=0, lt=1)
    """Largest share of the slow modes' speed that ``theta: staleness`` gives up for a larger theta, in [0, 1)."""

    def steps(self, staleness: Tensor) -> Tensor:
        """Return the steps, shape (K,), by which each neighbor is rolled forward where the bound does not count."""
        return staleness


def _from_shorthand(value: Any) -> Any:
    if isinstance(value, Real) and not isinstance(value, bool):
        return {"name": "steps", "number": value}
    return from_name(value)


Reach = Annotated[
    Annotated[FullReach | DampedReach | FixedReach | StableReach, Field(discriminator="name")],
    BeforeValidator(_from_shorthand),
]
"""How far late neighbors are predicted; a bare number is one of steps, a bare name the settings of that name."""


def capped(steps: Tensor, longest: Tensor) -> Tensor:
    """Return the steps, shape (K,), none of which is above ``longest``, shape (); of several agents (B, K) and (B,)."""
    return torch.minimum(steps, longest[..., None])
