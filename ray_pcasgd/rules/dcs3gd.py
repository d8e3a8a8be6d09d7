"""DC-S3GD: decentralised SGD whose gradient is corrected for the step towards the average (Rigazzi 2019)."""

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from ray_pcasgd.base import numerics
from ray_pcasgd.base.numerics import Vectors, blockwise
from ray_pcasgd.records import Own, Reads, Update
from ray_pcasgd.rules.base import DefaultBarrier, Probe, Rule, averaged_step, mix


class DCS3GD(Rule):
    """DC-S3GD: averages while it computes, and corrects its gradient by the distance to the average.

    ``D_i = w_ii x_i + sum_k w_ik x_k - x_i``; ``g~ = g + lambda_i g .* g .* D_i`` with
    ``lambda_i = lambda_0 |g| / |g .* g .* D_i|`` (0 where the divisor is 0); ``x_i <- x_i + D_i - eta u``, ``u`` the
    optimizer's direction of ``g~``. The average of version ``t`` comes while the gradient at version ``t`` is
    computed: the paper's all-reduce that arrives one step late. On a complete graph with uniform weights it is the
    mean of all. The paper's momentum is 0.9 (``optimizer.momentum``).
    """

    corrects_gradients: ClassVar[bool] = True
    default_barrier: ClassVar[DefaultBarrier] = "all"
    numeric_settings: ClassVar[tuple[str, ...]] = ("lambda_0",)

    name: Literal["dc-s3gd"] = "dc-s3gd"
    lambda_0: float = Field(0.2, ge=0)
    """Size of the correction in gradients' lengths, 0 or more; 0 is no correction."""

    def coefficients(self, agent: int, step: int) -> dict[str, float]:
        """Return lambda_0."""
        return {"lambda_0": self.lambda_0}

    def correct(self, own: Own, reads: Reads) -> Tensor:
        """Return ``g + lambda_i g .* g .* D_i``."""

        def raw(mine: Vectors, neighbors: Vectors) -> Vectors:
            x, g = mine
            displacement = mix(own.mixing, x, reads.mixing, neighbors) - x
            return g * g * displacement, displacement

        change, displacement = blockwise(raw, (own.weights, own.direction), reads.weights)
        # A mean of equal weights differs from them by its rounding, which the factor would make a whole correction.
        moved = numerics.norm(displacement) > numerics.rounding_of(own.weights)
        length = torch.where(moved, numerics.norm(change), 0.0)
        factor = own.coefficients["lambda_0"] * numerics.norm(own.direction) / torch.where(length > 0, length, 1.0)
        return own.direction + torch.where(length > 0, factor, 0.0) * change

    def step(self, state: Any, own: Own, reads: Reads, probe: Probe | None = None) -> tuple[Any, Update]:
        """Return ``w_ii x_i + sum_k w_ik x_k - eta u_i``."""
        return state, Update(averaged_step(own.mixing, reads.mixing, own, reads), {})
