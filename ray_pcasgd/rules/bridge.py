"""Decentralized SGD that stands attackers among its neighbors: what they send is screened (BRIDGE and its cousins)."""

from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ray_pcasgd.base.numerics import Vectors
from ray_pcasgd.records import Own, Reads, Update
from ray_pcasgd.rules.base import Probe
from ray_pcasgd.rules.prediction import PredictingRule
from ray_pcasgd.rules.reach import FixedReach
from ray_pcasgd.rules.screens import AnyScreen, TrimmedMean
from ray_pcasgd.rules.votes import Votes, count


class Bridge(PredictingRule):
    """BRIDGE: the mean over the neighbors is one that b attackers cannot move at will (Fang, Yang, Bajwa 2022).

        y_i = Screen({x_k : k a neighbor} and x_i)
        x_i <- y_i - eta u_i

    (IEEE TSIPN 2022, arXiv 1908.08098, Algorithm 1.) The paper's screens are `trimmed-mean` (BRIDGE-T), `median` (M),
    `krum` (K) and `bulyan` (B). Others can take their place: `nearest-neighbors` (MoNNA), `centered-clipping` and
    `geometric-median`. Mixing weights count with `centered-clipping` alone; with all others neighbors count alike.
    Nearest-neighbor mixing may come before any of them; **Choice**: between peers, whom its paper does not treat, each
    agent mixes what it has before it, its own weights among them.

    The paper's agents are in step. **Choice**: who is late is screened as it is (`late: keep`), left out (`clip`), or
    first rolled forward over the steps that were missed, as `p-asgd` does, and screened by what it is taken for
    (`predict`): a neighbor that is honest and late is far away, as an attacker is. Where fewer neighbors are left than
    the screen needs, the agent takes its own step alone.
    """

    name: Literal["bridge"] = "bridge"
    screen: AnyScreen = TrimmedMean()
    """How the mean over the neighbors is screened."""
    attackers: int = Field(1, ge=0, le=1000)
    """b: how many attackers each agent stands among its neighbors, from 0 on. Every agent needs `2b + 1` neighbors with
    `trimmed-mean` and `centered-clipping`, `2b` with `median`, `nearest-neighbors` and `geometric-median`, `2b + 2`
    with `krum`, and `4b + 2` with `bulyan`."""
    late: Literal["keep", "clip", "predict"] = "keep"
    """What is screened of an unreliable neighbor: its weights as they were read (`keep`); nothing (`clip`); or their
    prediction (`predict`), to which alone the settings of prediction belong."""

    numeric_settings: ClassVar[tuple[str, ...]] = ()

    @model_validator(mode="after")
    def _predicts_where_it_says_how(self) -> Self:
        if self.predicts:
            return self
        for name in PredictingRule.model_fields:
            value = getattr(self, name)
            if value != PredictingRule.model_fields[name].default:
                told = f"{value.number:g}" if isinstance(value, FixedReach) else repr(getattr(value, "name", value))
                raise ValueError(f"{name} = {told}: allowed with late = {self.late!r} is the default")
        return self

    @property
    def predicts(self) -> bool:
        """Whether late neighbors are predicted."""
        return self.late == "predict"

    @property
    def needs_directions(self) -> bool:  # type: ignore[override]
        """Whether it predicts by the directions ``u_k``, or what takes their place."""
        return self.predicts and super().needs_directions

    @property
    def reads_displacements(self) -> bool:  # type: ignore[override]
        """Whether displacements take the directions' place."""
        return self.predicts and super().reads_displacements

    @property
    def needs_drift(self) -> bool:  # type: ignore[override]
        """Whether the agent's own drift has a part in the prediction."""
        return self.predicts and super().needs_drift

    @property
    def has_bound(self) -> bool:
        """Whether the stability bound has a say."""
        return self.predicts and super().has_bound

    def coefficients(self, agent: int, step: int) -> dict[str, float]:
        """Return the numbers of the prediction, where there is one."""
        return super().coefficients(agent, step) if self.predicts else {}

    def init(self, weights: Tensor, num_neighbors: int) -> Any:
        """Return the state of the prediction's compensation, where there is one."""
        return super().init(weights, num_neighbors) if self.predicts else ()

    def step(self, state: Any, own: Own, reads: Reads, probe: Probe | None = None) -> tuple[Any, Update]:
        """Return ``Screen(x_i, x_k) - eta u_i``, or ``x_i - eta u_i`` where too few neighbors are left."""
        if not reads.weights:
            alone = own.weights - own.step_size * own.direction
            return state, Update(alone, {"alone": torch.ones_like(own.mixing)}, {"screened": reads.mixing})
        state, weights, present = self._judged(state, own, reads)
        screened = self.screen.apply(Votes(own.weights, weights, present, reads.mixing, True), self.attackers)
        is_enough = count(present) >= self.screen.least(self.attackers, center_votes=True)
        mean = torch.where(is_enough, screened.vector, own.weights)
        dropped = torch.where(is_enough & present, screened.dropped, 1.0)
        alone = (~is_enough).to(own.mixing.dtype)
        return state, Update(mean - own.step_size * own.direction, {"alone": alone}, {"screened": dropped})

    def _judged(self, state: Any, own: Own, reads: Reads) -> tuple[Any, Vectors, Tensor]:
        """Return the next state, what each neighbor is judged by, and the mask of those that are."""
        there = reads.mixing > 0
        if not self.predicts:
            return state, reads.weights, there & reads.reliable if self.late == "clip" else there
        rows = self.rows(own, reads)
        reach = self.blend_at(torch.ones_like(own.mixing), rows, own, reads).reach
        state, weights = self.rolled_forward(reach, state, rows, own, reads)
        return state, weights, there & (reads.reliable | rows.guessed)
