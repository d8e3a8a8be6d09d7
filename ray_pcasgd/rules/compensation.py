"""How strongly a late direction is corrected: the ``lambda`` of a diagonal Hessian ``lambda * diag(u .* u)``."""

from numbers import Real
from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from ray_pcasgd.base.settings import Settings, from_name


class ConstantCompensation(Settings):
    """The same ``lambda = lambda_0`` for every parameter (DC-ASGD-c; Zheng et al., ICML 2017)."""

    name: Literal["constant"] = "constant"
    lambda_0: float = Field(0.04, ge=0)
    """Strength of the correction, 0 or more."""

    def init(self, weights: Tensor, num_neighbors: int) -> tuple[Tensor, ...]:
        """Return no state."""
        return ()

    def advance(self, state: tuple[Tensor, ...], directions: tuple[Tensor, ...], used: Tensor) -> tuple[Tensor, ...]:
        """Return the state after K directions of shape (D,), of which those count whose ``used``, (K,), is 1, not 0."""
        return state

    def strength(self, state: tuple[Tensor, ...], lambda_0: Tensor, neighbor: int) -> Tensor:
        """Return lambda for one neighbor, shape ()."""
        return lambda_0


class AdaptiveCompensation(Settings):
    """``lambda = lambda_0 / sqrt(MS + 1e-7)`` for each parameter (DC-ASGD-a; Zheng et al., ICML 2017).

    ``MS <- decay * MS + (1 - decay) * u_k .* u_k``, from 0, without bias correction, updated before use.
    **Choice**: one ``MS`` for each neighbor, updated at the steps that predict this neighbor's weights.
    """

    name: Literal["adaptive"] = "adaptive"
    lambda_0: float = Field(2.0, ge=0)
    """Strength of the correction, 0 or more."""
    decay: float = Field(0.95, ge=0, lt=1)
    """Share of the old mean square that is kept, in [0, 1)."""

    def init(self, weights: Tensor, num_neighbors: int) -> tuple[Tensor, ...]:
        """Return a mean square of zeros, shape (D,), for each neighbor."""
        return tuple(torch.zeros_like(weights) for _ in range(num_neighbors))

    def advance(self, state: tuple[Tensor, ...], directions: tuple[Tensor, ...], used: Tensor) -> tuple[Tensor, ...]:
        """Return the mean squares after K directions of shape (D,); those count whose ``used``, (K,), is 1, not 0."""
        gain = used * (1.0 - self.decay)
        return tuple(
            mean_square + gain[k] * (direction * direction - mean_square)
            for k, (mean_square, direction) in enumerate(zip(state, directions, strict=True))
        )

    def strength(self, state: tuple[Tensor, ...], lambda_0: Tensor, neighbor: int) -> Tensor:
        """Return lambda for one neighbor, shape (D,)."""
        return lambda_0 / (state[neighbor] + 1e-7).sqrt()


def _from_shorthand(value: Any) -> Any:
    return {"name": "constant", "lambda_0": value} if isinstance(value, Real) else from_name(value)


Compensation = Annotated[
    Annotated[ConstantCompensation | AdaptiveCompensation, Field(discriminator="name")],
    BeforeValidator(_from_shorthand),
]
"""How lambda is found; a bare number is a constant lambda, a bare name the settings of that name."""
