"""Predicting and clipping the stale neighbors, and everything between the two (Wang et al., TMLR 2024)."""

from typing import Any, ClassVar, Literal, NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ray_pcasgd.base import one_pass
from ray_pcasgd.base.numerics import Vectors, blockwise, sums_by_place
from ray_pcasgd.base.sum_terms import Prediction
from ray_pcasgd.records import IndexedReads, Own, Reads
from ray_pcasgd.rules.base import DriftForm, DriftKind, Rule, clipped_row, mix
from ray_pcasgd.rules.bound import Bound, CurvatureBound
from ray_pcasgd.rules.compensation import (
    AdaptiveCompensation,
    Compensation,
    ConstantCompensation,
    RelativeCompensation,
)
from ray_pcasgd.rules.reach import FullReach, Reach, StableReach, capped
from ray_pcasgd.rules.stability import reach_of_own_drift, strength_at_drag, strength_of_own_drift

Clipping = Literal["move-to-self", "renormalize"]

AnyReads = Reads | IndexedReads
"""What one agent reads, or what several read: the numbers that decide have the same names, and a leading axis of B."""


class MixingRow(NamedTuple):
    """One agent's row of a mixing matrix: its own weight, shape (), and its neighbors', shape (K,)."""

    own: Tensor
    neighbors: Tensor


def clip(clipping: Clipping, own: Own, reads: AnyReads, keep: Tensor) -> MixingRow:
    """Return the row of the mixing matrix without the neighbors outside the mask ``keep``, shape (K,)."""
    moved, kept = clipped_row(own.mixing, reads.mixing, keep)
    if clipping == "move-to-self":
        return MixingRow(moved, kept)
    left = own.mixing
    for weight in kept.unbind(-1):
        left = left + weight
    # 1 where nothing was dropped, lest the rounding of the sum change a row that is complete.
    left = torch.where(keep.all(-1), 1.0, left)
    alone = left == 0
    left = torch.where(alone, 1.0, left)
    return MixingRow(torch.where(alone, 1.0, own.mixing / left), kept / left[..., None])


def between(theta: Tensor, clipped: MixingRow, predicted: MixingRow) -> MixingRow:
    """Return ``theta * predicted + (1 - theta) * clipped``, to the bit either row where both are equal."""
    own = clipped.own + theta * (predicted.own - clipped.own)
    return MixingRow(own, clipped.neighbors + theta[..., None] * (predicted.neighbors - clipped.neighbors))


class Rows(NamedTuple):
    """Whom an agent predicts at a step, and the two rows between which its candidates lie."""

    guessed: Tensor
    """The mask, shape (K,), of the unreliable neighbors whose weights can be predicted."""
    clipped: MixingRow
    """Without the unreliable neighbors."""
    predicted: MixingRow
    """Without those of them that cannot be predicted."""

    @property
    def late(self) -> Tensor:
        """The mixing weights of predicted neighbors, shape (K,), 0 for all others."""
        return torch.where(self.guessed, self.predicted.neighbors, 0.0)


class Blend(NamedTuple):
    """How one candidate predicts."""

    theta: Tensor
    """Share of the predicting step, shape ()."""
    reach: Tensor
    """Steps by which each neighbor is rolled forward, shape (K,)."""


class PredictingRule(Rule):
    """A rule that predicts the present weights of unreliable neighbors from an old version ``(x_k, u_k)``.

    The prediction is ``p_ik = x_k - eta s (u_k + lambda u_k .* u_k .* drift)`` with the reach ``s``, the published one
    ``s = tau``; or, by the reader's own drift, ``p_ik = x_k + (s/a) (x_i(t-a) - x_i(t-2a))``,
    ``a`` the message's age. By displacement, ``u_k`` is an exponential mean of ``(x_k(v') - x_k(v)) / (eta (v - v'))``
    over successive versions ``v' < v`` that the reader has read of it, 0 where it knows but one: its own steps and what
    it has mixed in.
    """

    prediction: Literal["direction", "displacement", "own-drift"] = "direction"
    """How a late neighbor is rolled forward: by its own `direction`, which its messages carry (the published method);
    or, for which messages hold weights alone, half the bytes, by its mean `displacement` between its versions that
    were read, or by the reader's `own-drift` over as many steps before. The last has no compensation."""
    reach: Reach = FullReach()
    """By how many of the steps that were missed a late neighbor is rolled forward: `full`, the published method;
    `damped`; a number, at most so many; or `stable`, as far as the stability bound allows at the present theta."""
    bounded: bool | None = None
    """Whether every reach is cut to what the stability bound allows at the present theta, as `stable` is, so that
    nothing is predicted past it, however late a neighbor is or seems to be; `false` is the published method. Not given:
    true in live runs, where a staleness may be large or wrong, and false in planned ones. With `theta: staleness` theta
    follows from the bound, so that it changes nothing there."""
    stability: Bound = CurvatureBound()
    """The stability bound, which counts with `theta: staleness`, with `reach: stable` and where `bounded`: `curvature`,
    the whole one by the loss's measured curvature; or a number c of theta W s <= c, W the late neighbors' mixing
    weight. Prediction by own drift has a bound of its own, min(1/4, 2/(s+2)), which c multiplies; it asks for no
    curvature."""
    compensation: Compensation | None = None
    """lambda of the predicting step: a number, or `constant`, `adaptive` or `relative` with their own settings. Not
    given: 0.04, the published one, where the local optimizer is SGD, whose directions are gradients; 0 with others."""
    drift: DriftForm | None = None
    """How an agent knows its own drift, which the compensation multiplies: `exact`, as published, from its own last
    versions, about as many as the oldest message is steps old; or `velocity`, from one vector, its mean velocity. Not
    given: `velocity` where the stability bound counts, `exact` elsewhere. Prediction by `own-drift` needs the `exact`
    one: it is all that predicts there. With `direction` and a lambda of 0, nothing is kept."""
    clipping: Clipping = "move-to-self"
    """Where the mixing weight of a dropped neighbor goes: to the agent itself, which keeps the matrix doubly
    stochastic, or to all that remain (`renormalize`)."""
    oldest_age: int = Field(64, ge=1)
    """Oldest message, in own steps, from which a neighbor is predicted; an older unreliable one is dropped from the
    predicting step too. With `drift: exact`, an agent keeps at most so many of its own versions; with `own-drift`,
    twice as many."""

    numeric_settings: ClassVar[tuple[str, ...]] = ("compensation.lambda_0",)

    @model_validator(mode="after")
    def _predicts_by_an_exact_drift(self) -> Self:
        # Measured on digits: with the velocity, the test loss is up to half as large again at a delay of 10, and at 20
        # hardly anything is learned.
        if self.prediction == "own-drift" and self.drift == "velocity":
            raise ValueError("drift = 'velocity': allowed with prediction = 'own-drift' is exact")
        return self

    @model_validator(mode="after")
    def _own_drift_is_not_compensated(self) -> Self:
        if self.prediction == "own-drift" and self.compensation is not None and self.compensation.lambda_0 > 0:
            raise ValueError(
                f"compensation = {self.compensation.name} {self.compensation.lambda_0:g}: allowed with prediction = "
                "'own-drift' is null; it has none"
            )
        return self

    @property
    def predicts(self) -> bool:
        """Whether late neighbors are predicted: always, unless the rule has a setting for it."""
        return True

    @property
    def compensating(self) -> ConstantCompensation | AdaptiveCompensation | RelativeCompensation:
        """How lambda is found; where it is not given, as with SGD."""
        return self.compensation or ConstantCompensation()

    @property
    def needs_directions(self) -> bool:  # type: ignore[override]
        """Whether it predicts by the directions ``u_k``, or what takes their place."""
        return self.prediction != "own-drift"

    @property
    def reads_displacements(self) -> bool:  # type: ignore[override]
        """Whether displacements take the directions' place, so that no message holds one."""
        return self.prediction == "displacement"

    @property
    def needs_drift(self) -> bool:  # type: ignore[override]
        """Whether the agent's own drift has a part in the prediction."""
        return self.prediction == "own-drift" or self.compensating.lambda_0 > 0

    @property
    def drift_form(self) -> DriftForm:
        """How an agent knows its drift."""
        if self.drift is not None:
            return self.drift
        return "velocity" if self.has_bound and self.needs_directions else "exact"

    @property
    def drift_kind(self) -> DriftKind:
        """Which drift of its own an agent is asked for."""
        return "mean" if self.needs_directions else "before"

    @property
    def age_max(self) -> int:
        """The oldest age, in own steps, for which the drift is asked."""
        return self.oldest_age

    @property
    def has_bound(self) -> bool:
        """Whether the stability bound has a say: not in the published method."""
        return isinstance(self.reach, StableReach) or bool(self.bounded)

    @property
    def measures_curvature(self) -> bool:
        """Whether agents measure the loss's curvature along what is predicted."""
        return self.has_bound and self.needs_directions and isinstance(self.stability, CurvatureBound)

    @property
    def curvature_every(self) -> int:
        """Own steps from one measurement to the next, where late neighbors are read."""
        return self.stability.every if isinstance(self.stability, CurvatureBound) else 1

    @property
    def curvature_samples(self) -> int:
        """The most samples of a mini-batch that it is measured on."""
        return self.stability.samples if isinstance(self.stability, CurvatureBound) else 1

    def coefficients(self, agent: int, step: int) -> dict[str, float]:
        """Return lambda_0; and where the bound asks for it the curvature, which agents measure, and its warm-up."""
        found = {"lambda_0": self.compensating.lambda_0}
        if not self.measures_curvature:
            return found
        assert isinstance(self.stability, CurvatureBound)
        return found | {"curvature": 0.0, "trust": self.stability.trust_at(step)}

    def init(self, weights: Tensor, num_neighbors: int) -> Any:
        """Return the state of the compensation."""
        return self.compensating.init(weights, num_neighbors)

    def rows(self, own: Own, reads: AnyReads) -> Rows:
        """Return whom the agent predicts, and the rows of its clipping and of its predicting step."""
        guessed = ~reads.reliable & (reads.age <= self.oldest_age)
        clipped = clip(self.clipping, own, reads, reads.reliable)
        return Rows(guessed, clipped, clip(self.clipping, own, reads, reads.reliable | guessed))

    def blend_at(self, theta: Tensor, rows: Rows, own: Own, reads: AnyReads, gain: float | Tensor = 1.0) -> Blend:
        """Return how a candidate of a given theta predicts; ``gain`` is a factor of the stability bound."""
        steps = self.reach.steps(reads.staleness)
        if isinstance(self.reach, StableReach) or self.bounded:
            strength = theta * total(rows.late)
            steps = capped(steps, self._longest_reach(strength, own, gain))
        return Blend(theta, steps)

    def _largest_strength(self, reach: Tensor, own: Own, gain: float | Tensor) -> Tensor:
        """Return the largest weight of late neighbors that is stable at their mean reach; both of shape ()."""
        if self.prediction == "own-drift":
            return strength_of_own_drift(reach) * (self.stability.c * gain)
        return self.stability.strength(reach, own, gain)

    def _longest_reach(self, strength: Tensor, own: Own, gain: float | Tensor) -> Tensor:
        """Return the longest reach that is stable at a weight of late neighbors; both of shape ()."""
        if self.prediction == "own-drift":
            return reach_of_own_drift(strength / (self.stability.c * gain))
        return self.stability.reach(strength, own, gain)

    def chosen_blend(self, rows: Rows, own: Own, reads: AnyReads, gain: float | Tensor = 1.0) -> Blend:
        """Return the blend whose theta is as large as the stability bound allows at what was read."""
        weights = rows.late
        far = total(weights)
        divisor = torch.where(far > 0, far, 1.0)
        steps = self.reach.steps(reads.staleness)
        reach = total(weights * steps) / divisor
        strength = self._largest_strength(reach, own, gain)
        if isinstance(self.reach, StableReach):
            strength = strength_at_drag(strength, total(weights * reads.staleness) / divisor, self.reach.drag)
        theta = (strength / divisor).clamp(max=1.0)
        if isinstance(self.reach, StableReach):
            return self.blend_at(theta, rows, own, reads, gain)
        # No other reach has to be cut: theta is what the bound allows at their mean.
        return Blend(theta, steps)

    def blends(
        self, blends: tuple[Blend, ...], state: Vectors, rows: Rows, own: Own, reads: Reads
    ) -> tuple[Vectors, Vectors]:
        """Return the compensation's next state and ``theta x_pre + (1 - theta) x_cli``, shape (D,), of each blend."""
        state, weights, _ = self.blends_and_moves(blends, state, rows, own, reads, with_moves=False)
        return state, weights

    def blends_and_moves(
        self, blends: tuple[Blend, ...], state: Vectors, rows: Rows, own: Own, reads: Reads, *, with_moves: bool = True
    ) -> tuple[Vectors, Vectors, Vectors]:
        """Return what ``blends`` does, and what prediction takes from each, ``theta sum_k w_ik (x_k - p_ik)``.

        Predicting and clipping are weighted sums of the same vectors, so a candidate is one sum over the blended row,
        less theta times what the neighbors have moved since by the model, ``sum_{k in U_i} w_ik (x_k - p_ik)``.
        """
        blended_rows = [between(blend.theta, rows.clipped, rows.predicted) for blend in blends]
        # Candidates of one reach share what their neighbors have moved.
        reaches = list({id(blend.reach): blend.reach for blend in blends}.values())
        places = [next(i for i, reach in enumerate(reaches) if reach is blend.reach) for blend in blends]
        rates = [self._rate(rows, reach, own, reads) for reach in reaches]
        used = (rows.guessed & (reads.staleness > 0)).to(own.mixing.dtype)
        scales = self._scales(own, reads)
        numbers = (*(n for row in blended_rows for n in row), *(blend.theta for blend in blends), *rates, *scales)
        vectors = (own.weights, *reads.weights, own.direction)
        # A state is one of square roots, whose last bit is PyTorch's own.
        if not state and one_pass.takes(sum(self._moving(reads), vectors), (own.step_size, *numbers), len(blends)):
            weights = torch.stack([torch.cat((a.view(1), row, -own.step_size.view(1))) for a, row in blended_rows])
            thetas = torch.stack([blend.theta for blend in blends])
            prediction = self._prediction(torch.stack(rates), scales, thetas, tuple(places), reads)
            return state, *one_pass.weighted_sums(vectors, weights, prediction, with_taken=with_moves)

        def blend(mine: Vectors, neighbors: Vectors, directions: Vectors, drifts: Vectors, state: Vectors) -> Vectors:
            x, u = mine
            state = self.compensating.advance(state, directions, used)
            moved = [self._moved(rate, x, directions, drifts, state, scales) for rate in rates]
            # Not 0 * moved: clipping stays finite where the prediction overflows.
            foreseen = [
                (theta * moved[place]).masked_fill((theta == 0).to(x.device), 0.0)
                for (theta, _), place in zip(blends, places, strict=True)
            ]
            blended = [
                mix(row.own, x, row.neighbors, neighbors) - own.step_size * u - ahead
                for row, ahead in zip(blended_rows, foreseen, strict=True)
            ]
            return *blended, *state, *(foreseen if with_moves else ())

        mine = (own.weights, own.direction)
        results = blockwise(blend, mine, reads.weights, reads.directions, reads.drift, state)
        end = len(blends) + len(state)
        return results[len(blends) : end], results[: len(blends)], results[end:]

    def _prediction(
        self, rates: Tensor, scales: Vectors, thetas: Tensor, places: tuple[int, ...], reads: Reads
    ) -> Prediction:
        """Return the terms of ``_moved``, for whole vectors; ``rates`` have shape (R, K), one row for each reach."""
        bends = None
        if self.prediction == "own-drift":
            rates = -rates
        elif self.needs_drift:
            strengths = [self.compensating.strength((), scale, k) for k, scale in enumerate(scales)]
            bends = rates * torch.stack(strengths) if strengths else rates
        return Prediction(*self._moving(reads), rates, bends, thetas, places)

    def _moving(self, reads: Reads) -> tuple[Vectors, Vectors]:
        """Return along which vectors neighbors are rolled forward, and the drifts that bend these."""
        if self.prediction == "own-drift":
            return reads.drift, ()
        return reads.directions, reads.drift if self.needs_drift else ()

    @property
    def predicts_by_sums(self) -> bool:
        """Whether all that predicts is directions and one velocity, weighed by numbers that count for all of D."""
        is_constant = isinstance(self.compensating, ConstantCompensation)
        return self.prediction == "direction" and is_constant and not (self.needs_drift and self.drift_form == "exact")

    def blends_of_many(self, blend: Blend, rows: Rows, own: Own, reads: IndexedReads) -> tuple[Tensor, Tensor]:
        """Return for B agents what ``blends_and_moves`` does of one blend: its weights and its move, both (B, D).

        The drift over an age ``a`` is ``(a-1)/2 v``, so that ``sum_k r_k u_k (1 + lambda u_k drift_k)`` consists of two
        sums over what lies in the table, ``sum_k r_k u_k + v sum_k r_k lambda (a_k-1)/2 u_k^2``.
        """
        row = between(blend.theta, rows.clipped, rows.predicted)
        rate = self._rate(rows, blend.reach, own, reads) * blend.theta[:, None]
        moved = sums_by_place(rate, reads.places, reads.directions)
        if self.needs_drift:
            drifts = torch.where(reads.age > 0, (reads.age - 1) / 2, 0.0)
            bends = rate * own.coefficients["lambda_0"][:, None] * drifts
            used, places = torch.unique(reads.places[bends != 0], return_inverse=True)
            among_used = torch.zeros_like(reads.places).masked_scatter_(bends != 0, places)
            squares = reads.directions[used]
            moved.addcmul_(reads.velocity, sums_by_place(bends, among_used, squares.mul_(squares)))
        weights = sums_by_place(row.neighbors, reads.places, reads.weights).addcmul_(row.own[:, None], own.weights)
        return weights.addcmul_(own.step_size[:, None], own.direction, value=-1).sub_(moved), moved

    def _rate(self, rows: Rows, reach: Tensor, own: Own, reads: AnyReads) -> Tensor:
        """Return by what each neighbor's direction, or the agent's own drift, is multiplied; shape (K,)."""
        if self.needs_directions:
            return torch.where(rows.guessed, rows.predicted.neighbors * (own.step_size[..., None] * reach), 0.0)
        return torch.where(rows.guessed, rows.predicted.neighbors * (reach / reads.age.clamp(min=1.0)), 0.0)

    def _scales(self, own: Own, reads: Reads) -> Vectors:
        """Return lambda_0 as it counts for each neighbor, K tensors of shape (); none where none is asked for."""
        if self.prediction == "own-drift":
            return ()
        return self.compensating.scales(own.coefficients["lambda_0"], reads.directions, reads.drift)

    def _moved(
        self, rate: Tensor, x: Tensor, directions: Vectors, drifts: Vectors, state: Vectors, scales: Vectors
    ) -> Tensor:
        """Return ``sum_k w_ik (x_k - p_ik)`` over a block of the weights."""
        moved = torch.zeros_like(x)
        for k, own_rate in enumerate(rate.unbind()):
            moved = moved + self._moved_by(own_rate, k, directions, drifts, state, scales)
        return moved

    def _moved_by(
        self, rate: Tensor, k: int, directions: Vectors, drifts: Vectors, state: Vectors, scales: Vectors
    ) -> Tensor:
        """Return what the rate of neighbor k makes of its direction, or of the agent's own drift; (D,) or a block."""
        if self.prediction == "own-drift":
            return -(rate * drifts[k])
        direction = directions[k]
        if not self.needs_drift:
            return direction * rate
        bend = rate * self.compensating.strength(state, scales[k], k)
        return direction * (rate + bend * (direction * drifts[k]))

    def rolled_forward(
        self, reach: Tensor, state: Vectors, rows: Rows, own: Own, reads: Reads
    ) -> tuple[Vectors, Vectors]:
        """Return the compensation's next state and what each neighbor's weights are taken for, K of shape (D,).

        That is the prediction ``p_ik`` of those that are predicted, over a reach of shape (K,), and ``x_k`` of others.
        """
        steps = reach * own.step_size if self.needs_directions else reach / reads.age.clamp(min=1.0)
        rates = torch.where(rows.guessed, steps, 0.0)
        used = (rows.guessed & (reads.staleness > 0)).to(own.mixing.dtype)
        scales, number = self._scales(own, reads), len(reads.weights)

        def roll(neighbors: Vectors, directions: Vectors, drifts: Vectors, state: Vectors) -> Vectors:
            state = self.compensating.advance(state, directions, used)
            moved = (
                self._moved_by(rate, k, directions, drifts, state, scales) for k, rate in enumerate(rates.unbind())
            )
            return *(x - ahead for x, ahead in zip(neighbors, moved, strict=True)), *state

        found = blockwise(roll, reads.weights, reads.directions, reads.drift, state)
        return found[number:], found[:number]


def total(values: Tensor) -> Tensor:
    """Return the sum of values of shape (K,), in the neighbors' order; of several agents' (B, K), each one's (B,)."""
    result = values.new_zeros(())
    for value in values.unbind(-1):
        result = result + value
    return result
