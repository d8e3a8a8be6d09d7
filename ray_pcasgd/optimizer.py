"""The local optimizer: from a mini-batch gradient to the direction ``u`` of ``x <- x - eta * u``."""

from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ray_pcasgd.settings import Settings


class SGD(Settings):
    """SGD with momentum, Nesterov's momentum and weight decay: the arithmetic of ``torch.optim.SGD``, to the bit.

    ``g = gradient + weight_decay * x``; ``v <- momentum * v + g`` from ``v = 0``; ``u = v``, or with Nesterov's
    momentum ``u = g + momentum * v``. Pure and elementwise: it may run under ``torch.func.vmap``.
    """

    momentum: float = Field(0.0, ge=0, lt=1)
    """Share of the velocity that is kept from step to step, in [0, 1)."""
    nesterov: bool = False
    """Look ahead along the velocity; requires momentum above 0."""
    weight_decay: float = Field(0.0, ge=0)
    """Factor of the L2 penalty's gradient, 0 or more."""

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> Self:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov = true: allowed is false where momentum is 0")
        return self

    def init(self, weights: Tensor) -> tuple[Tensor, ...]:
        """Return the state before the first step for weights of shape (D,): the velocity, where there is momentum."""
        return (torch.zeros_like(weights),) if self.momentum else ()

    def direction(
        self, state: tuple[Tensor, ...], weights: Tensor, gradient: Tensor
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Return the next state and the direction ``u``, shape (D,), at ``weights`` with ``gradient``, both (D,)."""
        if self.weight_decay:
            gradient = gradient.add(weights, alpha=self.weight_decay)
        if not self.momentum:
            return state, gradient
        velocity = state[0] * self.momentum + gradient
        return (velocity,), gradient.add(velocity, alpha=self.momentum) if self.nesterov else velocity
