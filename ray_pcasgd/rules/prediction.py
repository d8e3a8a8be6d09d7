"""Predicting and clipping the stale neighbors, and everything between the two (Wang et al., TMLR 2024)."""

from typing import Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

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


def between(theta: Tensor | float, clipped: MixingRow, predicted: MixingRow) -> MixingRow:
    """Return ``theta * predicted + (1 - theta) * clipped``, to the bit either row where both are equal."""
    return MixingRow(*(c + theta * (p - c) for c, p in zip(clipped, predicted, strict=True)))


class Prediction(NamedTuple):
    """What the candidates of one step share."""

    clipped: MixingRow
    """The row of the clipping step: reliable neighbors only."""
    predicted: MixingRow
    """The row of the predicting step: all but the unreliable neighbors that are too old to be guessed."""
    missed: Tensor
    """``sum_{k in U_i} w_ik (x_k - p_ik)``: what the neighbors have moved since, by the model, shape (D,)."""

    def candidate(self, theta: Tensor | float, own: Own, reads: Reads) -> Tensor:
        """Return ``theta x_pre + (1 - theta) x_cli``, shape (D,): one weighted sum, as both are linear."""
        row = between(theta, self.clipped, self.predicted)
        mixed = mix(row.own, own.weights, row.neighbors, reads.weights)
        return mixed - own.step_size * own.direction - theta * self.missed


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

    @property
    def age_max(self) -> int:
        """The oldest age, in own steps, for which the drift is asked."""
        return self.oldest_age

    def numbers(self, agent: int, step: int) -> dict[str, float]:
        """Return lambda_0."""
        return {"lambda_0": self.compensation.lambda_0}

    def init(self, weights: Tensor, num_neighbors: int) -> Any:
        """Return the state of the compensation."""
        return self.compensation.init(weights, num_neighbors)

    def guessed(self, reads: Reads) -> Tensor:
        """Return the mask, shape (K,), of the unreliable neighbors whose weights can be predicted."""
        return ~reads.reliable & (reads.age <= self.oldest_age) & (reads.mixing > 0)

    def predict(self, state: tuple[Tensor, ...], own: Own, reads: Reads) -> tuple[tuple[Tensor, ...], Prediction]:
        """Return the compensation's next state and what the candidates of this step share.

        The predicted weights are ``p_ik = x_k - eta tau (u_k + lambda u_k .* u_k .* drift)``.
        """
        guessed = self.guessed(reads)
        clipped = clip(self.clipping, own, reads, reads.reliable)
        predicted = clip(self.clipping, own, reads, reads.reliable | guessed)
        state = self.compensation.advance(state, reads.directions, guessed & (reads.staleness > 0))
        rate = torch.where(guessed, predicted.neighbors * (own.step_size * reads.staleness), 0.0)
        missed = torch.zeros_like(own.weights)
        for k, (direction, drift) in enumerate(zip(reads.directions, reads.drift, strict=True)):
            bend = rate[k] * self.compensation.strength(state, own.numbers["lambda_0"], k)
            missed = missed + direction * (rate[k] + bend * (direction * drift))
        return state, Prediction(clipped, predicted, missed)
