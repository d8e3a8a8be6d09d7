"""Predicting and clipping the stale neighbors, and everything between the two (Wang et al., TMLR 2024)."""

from typing import Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from ray_pcasgd.base.numerics import Vectors, blockwise
from ray_pcasgd.records import Own, Reads
from ray_pcasgd.rules.base import Rule, clipped_row, mix
from ray_pcasgd.rules.compensation import Compensation, ConstantCompensation

Clipping = Literal["move-to-self", "renormalize"]


class MixingRow(NamedTuple):
    """One agent's row of a mixing matrix: its own weight, shape (), and its neighbors', shape (K,)."""

    own: Tensor
    neighbors: Tensor


def clip(clipping: Clipping, own: Own, reads: Reads, keep: Tensor) -> MixingRow:
    """Return the row of the mixing matrix without the neighbors outside the mask ``keep``, shape (K,)."""
    moved, kept = clipped_row(own.mixing, reads.mixing, keep)
    if clipping == "move-to-self":
        return MixingRow(moved, kept)
    left = own.mixing
    for k in range(kept.shape[0]):
        left = left + kept[k]
    # 1 where nothing was dropped, lest the rounding of the sum change a row that is complete.
    left = torch.where(keep.all(), 1.0, left)
    alone = left == 0
    left = torch.where(alone, 1.0, left)
    return MixingRow(torch.where(alone, 1.0, own.mixing / left), kept / left)


def between(theta: Tensor, clipped: MixingRow, predicted: MixingRow) -> MixingRow:
    """Return ``theta * predicted + (1 - theta) * clipped``, to the bit either row where both are equal."""
    return MixingRow(*(c + theta * (p - c) for c, p in zip(clipped, predicted, strict=True)))


class PredictingRule(Rule):
    """A rule that predicts the present weights of unreliable neighbors from ``(x_k, u_k)`` of an old version."""

    compensation: Compensation = ConstantCompensation()
    """lambda of the predicting step: a number, or `constant` or `adaptive` with their own settings."""
    clipping: Clipping = "move-to-self"
    """Where the mixing weight of a dropped neighbor goes: to the agent itself, which keeps the matrix doubly
    stochastic, or to all that remain (`renormalize`)."""
    oldest_age: int = Field(64, ge=1)
    """Oldest message, in own steps, from which a neighbor is predicted; an older unreliable one is dropped from the
    predicting step too. Memory grows with it: an agent keeps that many of its own versions."""

    needs_directions: ClassVar[bool] = True
    needs_drift: ClassVar[bool] = True
    numeric_settings: ClassVar[tuple[str, ...]] = ("compensation.lambda_0",)

    @property
    def age_max(self) -> int:
        """The oldest age, in own steps, for which the drift is asked."""
        return self.oldest_age

    def coefficients(self, agent: int, step: int) -> dict[str, float]:
        """Return lambda_0."""
        return {"lambda_0": self.compensation.lambda_0}

    def init(self, weights: Tensor, num_neighbors: int) -> Any:
        """Return the state of the compensation."""
        return self.compensation.init(weights, num_neighbors)

    def guessed(self, reads: Reads) -> Tensor:
        """Return the mask, shape (K,), of the unreliable neighbors whose weights can be predicted."""
        return ~reads.reliable & (reads.age <= self.oldest_age)

    def blends(self, thetas: tuple[Tensor, ...], state: Vectors, own: Own, reads: Reads) -> tuple[Vectors, Vectors]:
        """Return the compensation's next state and ``theta x_pre + (1 - theta) x_cli``, shape (D,), of each theta.

        Both are weighted sums of the same vectors, so a candidate is one sum over the blended row, less theta times
        what the neighbors have moved since by the model, ``sum_{k in U_i} w_ik (x_k - p_ik)`` with
        ``x_k - p_ik = eta tau (u_k + lambda u_k .* u_k .* drift)``.
        """
        guessed = self.guessed(reads)
        clipped = clip(self.clipping, own, reads, reads.reliable)
        predicted = clip(self.clipping, own, reads, reads.reliable | guessed)
        rows = [between(theta, clipped, predicted) for theta in thetas]
        rate = torch.where(guessed, predicted.neighbors * (own.step_size * reads.staleness), 0.0)
        used = (guessed & (reads.staleness > 0)).to(rate.dtype)

        def blend(mine: Vectors, neighbors: Vectors, directions: Vectors, drifts: Vectors, state: Vectors) -> Vectors:
            x, u = mine
            state = self.compensation.advance(state, directions, used)
            moved = torch.zeros_like(x)
            for k, (direction, drift) in enumerate(zip(directions, drifts, strict=True)):
                bend = rate[k] * self.compensation.strength(state, own.coefficients["lambda_0"], k)
                moved = moved + direction * (rate[k] + bend * (direction * drift))
            blended = []
            for theta, row in zip(thetas, rows, strict=True):
                # Not 0 * moved: clipping stays finite where the prediction overflows.
                foreseen = (theta * moved).masked_fill(theta == 0, 0.0)
                blended.append(mix(row.own, x, row.neighbors, neighbors) - own.step_size * u - foreseen)
            return *blended, *state

        mine = (own.weights, own.direction)
        results = blockwise(blend, mine, reads.weights, reads.directions, reads.drift, state)
        return results[len(thetas) :], results[: len(thetas)]
