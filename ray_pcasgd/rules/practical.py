"""PC-ASGD-PV, the practical variant: at each step, the better of several shares of prediction (Wang et al., 2024)."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, ClassVar, Literal, NamedTuple, Self

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from ray_pcasgd.base import numerics
from ray_pcasgd.records import Own, Reads, Update
from ray_pcasgd.rules.base import Probe
from ray_pcasgd.rules.prediction import Blend, PredictingRule, Rows
from ray_pcasgd.rules.probe_data import OwnProbes, ProbeData
from ray_pcasgd.rules.reach import capped

Condition = Literal["descent", "gradient", "smoothed", "pull", "probe"]

_SMOOTHING = 0.9

Candidate = float | tuple[Annotated[float, Field(ge=0, le=1)], Annotated[float, Field(ge=0)]]
"""A theta, or a pair of a theta and a reach in steps."""


class PracticalState(NamedTuple):
    """The memory of PC-ASGD-PV."""

    theta: Tensor
    """The last choice, shape ()."""
    longest: Tensor
    """Its longest reach in steps, shape (); infinite where it has none of its own."""
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

    takes_fragments: ClassVar[bool] = True

    name: Literal["pc-asgd-pv"] = "pc-asgd-pv"
    condition: Condition = "probe"
    """Which candidate is better. `probe`: the one of smaller loss on an independent mini-batch. `descent`: the one
    whose displacement has the larger cosine with -u_i. `gradient`: the larger cosine with u_i. `smoothed`: as
    `descent`, with an exponential average of u_i (0.9). `pull`: as `descent`, without the agent's own step -eta u_i."""
    probe_every: int = Field(1, ge=1)
    """Steps from one probe to the next; the last choice stands between them. Only `probe` uses it."""
    candidates: tuple[Candidate, ...] = (0.0, 1.0)
    """What to choose from: two or more thetas, rising, in [0, 1]; or pairs [theta, steps], of which each predicts at
    most so many steps (`reach` is for candidates without a number of their own). Of one theta, the reach rises."""
    probe_data: ProbeData = OwnProbes()
    """Where `probe` gets its mini-batches: from the agent's `own` shard; or borrowed, the same for all agents:
    `{name: shared, samples_per_agent: n}`, some samples from each shard, which all agents then see; or
    `{name: custom, dataset: module:attribute}`, the user's own. Own ones prefer what suits the shard: where shards hold
    few of the labels, agents grow apart (see docs/choosing.md)."""

    @field_validator("candidates")
    @classmethod
    def _rising(cls, candidates: tuple[Candidate, ...]) -> tuple[Candidate, ...]:
        pairs = [_pair(candidate) for candidate in candidates]
        rising = all(a < b for a, b in pairwise(pairs))
        if len(pairs) < 2 or not rising or not 0 <= pairs[0][0] <= pairs[-1][0] <= 1:
            given = [list(one) if isinstance(one, tuple) else one for one in candidates]
            raise ValueError(f"candidates = {given}: allowed are two or more rising thetas in [0, 1], or pairs")
        return candidates

    @model_validator(mode="after")
    def _borrowed_for_probes(self) -> Self:
        if self.condition != "probe" and not isinstance(self.probe_data, OwnProbes):
            raise ValueError(
                f"probe_data = {self.probe_data.name!r}: allowed with condition = {self.condition!r} is own"
            )
        return self

    def probes_at(self, step: int) -> bool:
        """Return whether the condition is `probe` and this step is one of every ``probe_every``."""
        return self.condition == "probe" and step % self.probe_every == 0

    def init(self, weights: Tensor, num_neighbors: int) -> PracticalState:
        """Return the state before the first choice."""
        return PracticalState(
            theta=weights.new_full((), _pair(self.candidates[0])[0]),
            longest=weights.new_full((), _pair(self.candidates[0])[1]),
            smoothed=torch.zeros_like(weights if self.condition == "smoothed" else weights[:0]),
            compensation=self.compensating.init(weights, num_neighbors),
        )

    def step(
        self, state: PracticalState, own: Own, reads: Reads, probe: Probe | None = None
    ) -> tuple[PracticalState, Update]:
        """Return the preferred candidate; without a probe, where the condition needs one, that of the last choice."""
        smoothed = state.smoothed
        if self.condition == "smoothed":
            smoothed = _SMOOTHING * smoothed + (1.0 - _SMOOTHING) * own.newest_direction
        rows = self.rows(own, reads)
        choosing = rows.guessed.any()
        theta, longest = state.theta, state.longest
        if self.condition == "probe" and probe is None:
            last = self._blend(theta, longest, rows, own, reads)
            compensation, (weights,) = self.blends((last,), state.compensation, rows, own, reads)
        else:
            choices = [(torch.full_like(theta, a), torch.full_like(theta, s)) for a, s in map(_pair, self.candidates)]
            blends = tuple(self._blend(*choice, rows, own, reads) for choice in choices)
            compensation, candidates = self.blends(blends, state.compensation, rows, own, reads)
            scores = probe(candidates).neg() if probe else self._agreement(candidates, own, smoothed)
            best, furthest, weights = _choose(scores, choices, candidates)
            theta, longest = torch.where(choosing, best, theta), torch.where(choosing, furthest, longest)
        measures = {
            "theta": theta,
            "predicting": (theta > _pair(self.candidates[0])[0]).to(theta.dtype),
            "choosing": choosing.to(theta.dtype),
        }
        return PracticalState(theta, longest, smoothed, compensation), Update(weights, measures)

    def _blend(self, theta: Tensor, longest: Tensor, rows: Rows, own: Own, reads: Reads) -> Blend:
        blend = self.blend_at(theta, rows, own, reads)
        return blend if not self._has_pairs else blend._replace(reach=capped(blend.reach, longest))

    @property
    def _has_pairs(self) -> bool:
        return any(isinstance(candidate, tuple) for candidate in self.candidates)

    def _agreement(self, candidates: tuple[Tensor, ...], own: Own, smoothed: Tensor) -> Tensor:
        """Return the cosine by which the condition judges each candidate, shape (M,)."""
        direction = smoothed if self.condition == "smoothed" else own.newest_direction
        displacement = _pull if self.condition == "pull" else _displacement
        sign = 1.0 if self.condition == "gradient" else -1.0
        return torch.stack([sign * numerics.cosine(displacement(c, own), direction) for c in candidates])


def _displacement(candidate: Tensor, own: Own) -> Tensor:
    return candidate - own.weights


def _pull(candidate: Tensor, own: Own) -> Tensor:
    """Return the displacement that is due to the neighbors, zero where it is no more than rounding."""
    pull = candidate - own.weights + own.step_size * own.direction
    rounding = numerics.rounding_of(own.weights)
    # The sum of a row differs from 1 by its rounding, and the cosine of that would be an arbitrary number.
    return torch.where(numerics.norm(pull) > rounding, pull, 0.0)


def _pair(candidate: Candidate) -> tuple[float, float]:
    """Return a candidate's theta, and its longest reach in steps."""
    return candidate if isinstance(candidate, tuple) else (candidate, math.inf)


def _choose(
    scores: Tensor, choices: Sequence[tuple[Tensor, Tensor]], candidates: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return theta, reach and weights of the highest score, the last of equal ones; non-finite is lowest."""
    scores = torch.where(scores.isfinite(), scores, -torch.inf)
    best, (chosen, longest), weights = scores[0], choices[0], candidates[0]
    for score, (theta, reach), candidate in zip(scores.unbind()[1:], choices[1:], candidates[1:], strict=True):
        better = score >= best
        best = torch.where(better, score, best)
        chosen, longest = torch.where(better, theta, chosen), torch.where(better, reach, longest)
        weights = torch.where(better, candidate, weights)
    return chosen, longest, weights
