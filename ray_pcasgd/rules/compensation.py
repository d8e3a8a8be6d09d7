"""How strongly a late direction is corrected: the ``lambda`` of a diagonal Hessian ``lambda * diag(u .* u)``."""

from collections.abc import Mapping
from numbers import Real
from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from ray_pcasgd.base import numerics
from ray_pcasgd.base.numerics import Vectors, blockwise
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

    def scales(self, lambda_0: Tensor, directions: Vectors, drifts: Vectors) -> Vectors:
        """Return ``lambda_0`` as it counts for each of K neighbors, by whole vectors of shape (D,); of shape ()."""
        return (lambda_0,) * len(directions)

    def strength(self, state: tuple[Tensor, ...], scale: Tensor, neighbor: int) -> Tensor:
        """Return lambda for one neighbor, shape (), by its scale."""
        return scale


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

    def scales(self, lambda_0: Tensor, directions: Vectors, drifts: Vectors) -> Vectors:
        """Return ``lambda_0`` for each of K neighbors, of shape ()."""
        return (lambda_0,) * len(directions)

    def strength(self, state: tuple[Tensor, ...], scale: Tensor, neighbor: int) -> Tensor:
        """Return lambda for one neighbor, shape (D,) or a block of it, by its scale."""
        return scale / (state[neighbor] + 1e-7).sqrt()


class RelativeCompensation(Settings):
    """``lambda = lambda_0 |u_k| / |u_k .* u_k .* drift|``, 0 where the divisor is 0 (as DC-S3GD; Rigazzi 2019).

    A correction of always the same share of the direction's length, whatever the direction's unit: for those of
    optimizers that are no gradients, too.
    """

    name: Literal["relative"] = "relative"
    lambda_0: float = Field(0.2, ge=0)
    """Length of the correction by that of the direction, 0 or more."""

    def init(self, weights: Tensor, num_neighbors: int) -> tuple[Tensor, ...]:
        """Return no state."""
        return ()

    def advance(self, state: tuple[Tensor, ...], directions: tuple[Tensor, ...], used: Tensor) -> tuple[Tensor, ...]:
        """Return no state."""
        return state

    def scales(self, lambda_0: Tensor, directions: Vectors, drifts: Vectors) -> Vectors:
        """Return lambda for each of K neighbors, by whole vectors of shape (D,); of shape ()."""

        def changes(directions: Vectors, drifts: Vectors) -> Vectors:
            return tuple(u * u * drift for u, drift in zip(directions, drifts, strict=True))

        if not directions:
            return ()
        found = []
        # Whole vectors, whose blocks would have lengths of their own.
        for direction, change in zip(directions, blockwise(changes, directions, drifts), strict=True):
            length = numerics.norm(change)
            ratio = numerics.norm(direction) / torch.where(length > 0, length, 1.0)
            found.append(lambda_0 * torch.where(length > 0, ratio, 0.0))
        return tuple(found)

    def strength(self, state: tuple[Tensor, ...], scale: Tensor, neighbor: int) -> Tensor:
        """Return lambda for one neighbor, shape (), by its scale."""
        return scale


def _from_shorthand(value: Any) -> Any:
    if isinstance(value, Real):
        return {"name": "constant", "lambda_0": value}
    if isinstance(value, Mapping) and "name" not in value:
        return {"name": "constant", **value}
    return from_name(value)


Compensation = Annotated[
    Annotated[ConstantCompensation | AdaptiveCompensation | RelativeCompensation, Field(discriminator="name")],
    BeforeValidator(_from_shorthand),
]
"""How lambda is found; a bare number is a constant lambda, a bare name the settings of that name."""
