"""Lion: steps of one length in every direction (Chen et al., NeurIPS 2023, arXiv 2302.06675)."""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from ray_pcasgd.agents.local_optimizer import Decay, LocalOptimizer, Parts, decayed, where_moving

Beta = Annotated[float, Field(ge=0, lt=1)]


class Lion(LocalOptimizer):
    """Lion, the sign of an average of gradients; pure, so that several agents' steps may run as one.

    ``u = sign(beta_1 m + (1 - beta_1) g) + weight_decay * x``, and then ``m <- beta_2 m + (1 - beta_2) g``, from 0. Its
    ``step_size`` is usually 3 to 10 times smaller than AdamW's (1e-4, unless another one is given), its weight decay as
    much larger.
    """

    has_feedback: ClassVar[bool] = False
    """A sign does not change with the size of what it is of: no curvature says how it feeds back."""

    usual_step_size: ClassVar[float] = 1e-4

    name: Literal["lion"] = "lion"
    betas: tuple[Beta, Beta] = (0.9, 0.99)
    """Shares of the old average in what the sign is of, and in the next average, each in [0, 1)."""
    weight_decay: float = Field(0.0, ge=0)
    """Factor of the weights in the direction, 0 or more: a step takes ``eta * weight_decay * x`` off."""
    decay: Decay = "all"
    """What decays: ``all``, or ``matrices`` alone: tensors of two or more dimensions, no biases and no norms."""

    @property
    def state_vectors(self) -> int:
        """The average."""
        return 1

    def start(self, weights: Tensor, parts: Parts = ()) -> tuple[Tensor, ...]:
        """Return an average of zeros, shape (D,)."""
        return (torch.zeros_like(weights),)

    def direction(
        self,
        state: tuple[Tensor, ...],
        weights: Tensor,
        gradient: Tensor,
        parts: Parts = (),
        moving: Tensor | None = None,
        step_size: float = 0.0,
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Return the next state and the direction, as ``LocalOptimizer.direction`` says."""
        (mean,) = state
        direction, following = (torch.lerp(mean, gradient, 1 - beta) for beta in self.betas)
        direction = direction.sign()
        if self.weight_decay:
            direction = direction.add(decayed(weights, self.decay, parts), alpha=self.weight_decay)
        return (where_moving(moving, following, mean),), where_moving(moving, direction, 0.0)
