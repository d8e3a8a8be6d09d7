"""By how much a message counts at a server that has moved on since its worker read the weights: dampening laws.

``s(tau)``, tau the server's updates since those weights, in [0, 1] and 1 at 0. FedAsync's weights (Xie, Koyejo, Gupta
2019, arXiv 1903.03934, section 5.2), of which FedBuff (Nguyen et al., AISTATS 2022, arXiv 2106.06639) uses the
polynomial with a = 1/2; the exponential is Kardam's (Damaskinos et al., ICML 2018, arXiv 1802.07928).
"""

from abc import abstractmethod
from typing import Annotated, Literal

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from ray_pcasgd.base.settings import Settings, from_name


class _Weight(Settings):
    @abstractmethod
    def of(self, staleness: Tensor) -> Tensor:
        """Return s(tau), shape (), in [0, 1]."""


class ConstantWeight(_Weight):
    """1, however late: ``s(tau) = 1``."""

    name: Literal["constant"] = "constant"

    def of(self, staleness: Tensor) -> Tensor:
        """Return 1."""
        return torch.ones_like(staleness)


class PolynomialWeight(_Weight):
    """``s(tau) = (1 + tau)^-a`` (FedAsync, section 5.2; with a = 1/2 FedBuff's, with a = 1 Kardam's other one)."""

    name: Literal["polynomial"] = "polynomial"
    a: float = Field(0.5, gt=0, le=100)
    """The exponent, above 0."""

    def of(self, staleness: Tensor) -> Tensor:
        """Return ``(1 + tau)^-a``."""
        return (1 + staleness) ** -self.a


class HingeWeight(_Weight):
    """1 up to a staleness of b, and then ``1 / (a (tau - b) + 1)`` (FedAsync, section 5.2)."""

    name: Literal["hinge"] = "hinge"
    a: float = Field(10.0, gt=0, le=1e6)
    """How fast the weight falls beyond b, above 0."""
    b: float = Field(6.0, ge=0, le=1e6)
    """The staleness up to which the weight is 1, from 0 on."""

    def of(self, staleness: Tensor) -> Tensor:
        """Return ``1 / (a max(tau - b, 0) + 1)``."""
        return 1 / (self.a * (staleness - self.b).clamp(min=0) + 1)


class ExponentialWeight(_Weight):
    """``s(tau) = exp(-a tau)`` (Kardam's dampening component, a = 0.2)."""

    name: Literal["exponential"] = "exponential"
    a: float = Field(0.2, gt=0, le=100)
    """How fast the weight falls, above 0."""

    def of(self, staleness: Tensor) -> Tensor:
        """Return ``exp(-a tau)``."""
        return torch.exp(-self.a * staleness)


LatenessWeight = Annotated[
    Annotated[ConstantWeight | PolynomialWeight | HingeWeight | ExponentialWeight, Field(discriminator="name")],
    BeforeValidator(from_name),
]
"""A weight for late messages by its name, with its settings."""
