"""Adam and AdamW: steps in units of the gradients' own size (Kingma, Ba 2015; Loshchilov, Hutter 2019)."""

import math
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from ray_pcasgd.agents.local_optimizer import (
    Decay,
    LocalOptimizer,
    Part,
    Parts,
    decayed,
    of_parts,
    spread,
    where_moving,
)
from ray_pcasgd.base import numerics

Beta = Annotated[float, Field(ge=0, lt=1)]


class AdamState(NamedTuple):
    """What Adam remembers."""

    mean: Tensor
    """Moving average of gradients, shape (D,)."""
    square: Tensor
    """Moving average of their squares, shape (D,)."""
    largest: Tensor
    """With ``amsgrad`` the largest ``square`` so far, shape (D,); else of shape (0,)."""
    steps: Tensor
    """Steps in which each parameter tensor got a gradient, shape (T,): float32, exact up to 16 million."""


class _AdamLike(LocalOptimizer):
    is_decoupled: ClassVar[bool]
    """Whether weight decay stays outside of what the gradients' sizes divide."""

    usual_step_size: ClassVar[float] = 1e-3

    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """Shares of the averages of gradients and of their squares that are kept from step to step, each in [0, 1)."""
    eps: float = Field(1e-8, ge=numerics.SMALLEST)
    """What is added to the gradients' size, above 0: smaller ones than 1.2e-38 are 0 in float32, or slow."""
    weight_decay: float = Field(0.0, ge=0)
    """Factor of the weights in what a step takes off, 0 or more."""
    amsgrad: bool = False
    """Divide by the largest average of squares so far, instead of the present one (Reddi, Kale, Kumar 2018)."""
    decay: Decay = "all"
    """What decays: ``all``, or ``matrices`` alone: tensors of two or more dimensions, no biases and no norms."""

    @property
    def state_vectors(self) -> int:
        """Both averages, and with amsgrad the largest one."""
        return 3 if self.amsgrad else 2

    def start(self, weights: Tensor, parts: Parts = ()) -> AdamState:
        """Return averages of zeros."""
        zeros = torch.zeros_like(weights)
        # An empty part of the zeros would keep all of them in memory.
        return AdamState(zeros, zeros, zeros if self.amsgrad else zeros.new_zeros(0), zeros.new_zeros(len(parts) or 1))

    def direction(
        self,
        state: AdamState,
        weights: Tensor,
        gradient: Tensor,
        parts: Parts = (),
        moving: Tensor | None = None,
        step_size: float = 0.0,
    ) -> tuple[AdamState, Tensor]:
        """Return the next state and the direction, as ``LocalOptimizer.direction`` says."""
        parts = parts or _one_part(weights)
        if self.weight_decay and not self.is_decoupled:
            gradient = gradient.add(decayed(weights, self.decay, parts), alpha=self.weight_decay)
        mean_share, square_share = (1 - beta for beta in self.betas)
        mean = torch.lerp(state.mean, gradient, mean_share)
        square = torch.addcmul(state.square * (1 - square_share), gradient, gradient, value=square_share)
        following = AdamState(
            where_moving(moving, mean, state.mean),
            where_moving(moving, square, state.square),
            where_moving(moving, torch.maximum(state.largest, square), state.largest)
            if self.amsgrad
            else state.largest,
            where_moving(None if moving is None else of_parts(moving, parts), state.steps + 1, state.steps),
        )
        direction = following.mean / spread(_bias(self.betas[0], following.steps), parts) / self.size(following, parts)
        if self.weight_decay and self.is_decoupled:
            direction = direction.add(decayed(weights, self.decay, parts), alpha=self.weight_decay)
        return following, where_moving(moving, direction, 0.0)

    def size(self, state: AdamState, parts: Parts) -> Tensor:
        """Return the preconditioner P, shape (D,): the gradients' size without the first steps' bias, plus eps."""
        square = state.largest if self.amsgrad else state.square
        return square.sqrt() / spread(_bias(self.betas[1], state.steps).sqrt(), parts) + self.eps

    def feedback(self, curvature: float, state: AdamState, direction: Tensor, parts: Parts = ()) -> float | None:
        """Return ``u'Hu / u'Pu``, and what weight decay adds; ``None`` before the first step.

        A change of the weights along u changes the gradient by ``Hu``, and the direction by ``Hu / P``: an average of
        gradients that stay is no longer than they are, so momentum makes it no larger.
        """
        parts = parts or _one_part(direction)
        if not state.steps.any():
            return None
        scaled = self.size(state, parts) * direction
        length, scaled_length = (numerics.inner(direction, one).item() for one in (direction, scaled))
        if not scaled_length > 0:
            return None
        if not self.weight_decay:
            return curvature * length / scaled_length
        shrinking = decayed(scaled if self.is_decoupled else direction, self.decay, parts)
        return (curvature * length + self.weight_decay * numerics.inner(direction, shrinking).item()) / scaled_length


class AdamW(_AdamLike):
    """AdamW, the arithmetic of ``torch.optim.AdamW``; pure, so that several agents' steps may run as one.

    ``m <- beta_1 m + (1 - beta_1) g`` and ``v <- beta_2 v + (1 - beta_2) g .* g``, from 0;
    ``u = (m / (1 - beta_1^t)) / (sqrt(v / (1 - beta_2^t)) + eps) + weight_decay * x``, t the steps so far. It asks for
    a smaller ``step_size`` than SGD: 1e-3, unless another one is given.
    """

    is_decoupled: ClassVar[bool] = True

    name: Literal["adamw"] = "adamw"
    weight_decay: float = Field(0.01, ge=0)
    """Factor of the weights in the direction, 0 or more: a step takes ``eta * weight_decay * x`` off."""


class Adam(_AdamLike):
    """Adam, the arithmetic of ``torch.optim.Adam``: AdamW, but for weight decay, which is a part of the gradient.

    ``g = gradient + weight_decay * x``.
    """

    is_decoupled: ClassVar[bool] = False

    name: Literal["adam"] = "adam"
    weight_decay: float = Field(0.0, ge=0)
    """Factor of the L2 penalty's gradient, 0 or more."""


def _bias(beta: float, steps: Tensor) -> Tensor:
    """Return ``1 - beta^t`` without cancellation, which float32 would have 1e-4 of for a beta near 1; 1 at t = 0."""
    return torch.where(steps > 0, -torch.expm1(steps * math.log(beta)), 1.0) if beta else torch.ones_like(steps)


def _one_part(weights: Tensor) -> Parts:
    return (Part(torch.Size((weights.shape[-1], 1)), weights.shape[-1]),)
