"""PC-ASGD-PV, the practical variant: at each step, the better of several shares of prediction (Wang et al., 2024)."""

from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from pydantic import Field, field_validator
from torch import Tensor

from ray_pcasgd.base import numerics
from ray_pcasgd.records import Own, Reads, Update
from ray_pcasgd.rules.base import Probe
from ray_pcasgd.rules.prediction import PredictingRule

Condition = Literal["descent", "gradient", "smoothed", "pull", "probe"]

_SMOOTHING = 0.9

_ROUNDING = 16
"""Rounding errors, relative to the weights' norm, that a step over some dozens of neighbors may sum up to."""


class PracticalState(NamedTuple):
    """The memory of PC-ASGD-PV."""

    theta: Tensor
    """The last choice, shape ()."""
    smoothed: Tensor
    """Exponential average of the agent's own direction, shape (D,); (0,) unless the condition is `smoothed`."""
    compensation: tuple[Tensor, ...]


class PCASGDPV(PredictingRule):
    """PC-ASGD-PV: at each step the candidate that a condition prefers; among equals, the one that predicts most.

    A candidate is ``x(theta) = theta x_pre + (1 - theta) x_cli``, its displacement ``d = x(theta) - x_i``.
    **Choice**: which condition (the paper's inequality can be read both ways), and that a step at which no neighbor
    can be predicted, so that all candidates are equal, leaves the last choice as it was. Before the first one, the
    smallest theta is in force.
    """

    name: Literal["pc-asgd-pv"] = "pc-asgd-pv"
    condition: Condition = "probe"
    """Which candidate is better. `probe`: the one of smaller loss on an independent mini-batch. `descent`: the one
    whose displacement has the larger cosine with -u_i. `gradient`: the larger cosine with u_i. `smoothed`: as
    `descent`, with an exponential average of u_i (0.9). `pull`: as `descent`, without the agent's own step -eta u_i."""
    probe_every: int = Field(1, ge=1)
    """Steps from one probe to the next; the last choice stands between them. Only `probe` uses it."""
    candidates: tuple[float, ...] = (0.0, 1.0)
    """The thetas to choose from: two or more, rising, in [0, 1]."""

    @field_validator("candidates")
    @classmethod
    def _rising(cls, thetas: tuple[float, ...]) -> tuple[float, ...]:
        rising = all(a < b for a, b in pairwise(thetas))
        if len(thetas) < 2 or not rising or not 0 <= thetas[0] <= thetas[-1] <= 1:
            raise ValueError(f"candidates = {list(thetas)}: allowed are two or more rising values in [0, 1]")
        return thetas

    def probes_at(self, step: int) -> bool:
        """Return whether the condition is `probe` and this step is one of every ``probe_every``."""
        return self.condition == "probe" and step % self.probe_every == 0

    def init(self, weights: Tensor, num_neighbors: int) -> PracticalState:
        """Return the state before the first choice."""
        return PracticalState(
            theta=weights.new_full((), self.candidates[0]),
            smoothed=torch.zeros_like(weights if self.condition == "smoothed" else weights[:0]),
            compensation=self.compensation.init(weights, num_neighbors),
        )

    def step(
        self, state: PracticalState, own: Own, reads: Reads, probe: Probe | None = None
    ) -> tuple[PracticalState, Update]:
        """Return the preferred candidate; without a probe, where the condition needs one, that of the last choice."""
        smoothed = state.smoothed
        if self.condition == "smoothed":
            smoothed = _SMOOTHING * smoothed + (1.0 - _SMOOTHING) * own.direction
        choosing = self.guessed(reads).any()
        theta = state.theta
        if self.condition == "probe" and probe is None:
            compensation, (weights,) = self.blends((theta,), state.compensation, own, reads)
        else:
            thetas = tuple(torch.full_like(theta, value) for value in self.candidates)
            compensation, candidates = self.blends(thetas, state.compensation, own, reads)
            scores = probe(candidates).neg() if probe else self._agreement(candidates, own, smoothed)
            best, weights = _choose(scores, thetas, candidates)
            theta = torch.where(choosing, best, theta)
        measures = {
            "theta": theta,
            "predicting": (theta > self.candidates[0]).to(theta.dtype),
            "choosing": choosing.to(theta.dtype),
        }
        return PracticalState(theta, smoothed, compensation), Update(weights, measures)

    def _agreement(self, candidates: tuple[Tensor, ...], own: Own, smoothed: Tensor) -> Tensor:
        """Return the cosine by which the condition judges each candidate, shape (M,)."""
        direction = smoothed if self.condition == "smoothed" else own.direction
        displacement = _pull if self.condition == "pull" else _displacement
        sign = 1.0 if self.condition == "gradient" else -1.0
        return torch.stack([sign * numerics.cosine(displacement(c, own), direction) for c in candidates])


def _displacement(candidate: Tensor, own: Own) -> Tensor:
    return candidate - own.weights


def _pull(candidate: Tensor, own: Own) -> Tensor:
    """Return the displacement that is due to the neighbors, zero where it is no more than rounding."""
    pull = candidate - own.weights + own.step_size * own.direction
    rounding = _ROUNDING * torch.finfo(pull.dtype).eps * numerics.norm(own.weights)
    # The sum of a row differs from 1 by its rounding, and the cosine of that would be an arbitrary number.
    return torch.where(numerics.norm(pull) > rounding, pull, 0.0)


def _choose(scores: Tensor, thetas: tuple[Tensor, ...], candidates: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Return theta and weights of the highest score, of the largest theta among equals; non-finite is lowest."""
    scores = torch.where(scores.isfinite(), scores, -torch.inf)
    best, chosen, weights = scores[0], thetas[0], candidates[0]
    for score, theta, candidate in zip(scores.unbind()[1:], thetas[1:], candidates[1:], strict=True):
        better = score >= best
        best = torch.where(better, score, best)
        chosen = torch.where(better, theta, chosen)
        weights = torch.where(better, candidate, weights)
    return chosen, weights
