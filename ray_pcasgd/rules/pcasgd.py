"""PC-ASGD: a blend of predicting and of clipping the stale neighbors (Wang et al., TMLR 2024, arXiv 2208.13154)."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import BeforeValidator, Discriminator, Field, Tag, field_validator
from torch import Tensor

from ray_pcasgd.base import numerics
from ray_pcasgd.base.curves import Curve
from ray_pcasgd.base.settings import Settings, from_name
from ray_pcasgd.records import IndexedReads, Own, Reads, Update
from ray_pcasgd.rules.base import Probe, Rule, averaged_step, averaged_steps
from ray_pcasgd.rules.guard import GuardState, guarded, unguarded
from ray_pcasgd.rules.prediction import AnyReads, Blend, Clipping, PredictingRule, Rows, clip


class StalenessTheta(Settings):
    """The largest theta that the stability bound allows at what an agent reads."""

    name: Literal["staleness"] = "staleness"


def _kind_of_theta(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "agents"
    name = value.get("name") if isinstance(value, Mapping) else getattr(value, "name", value)
    return "staleness" if name == "staleness" else "curve"


Theta = Annotated[
    Annotated[StalenessTheta, BeforeValidator(from_name), Tag("staleness")]
    | Annotated[Curve, Tag("curve")]
    | Annotated[tuple[float, ...], Tag("agents")],
    Discriminator(_kind_of_theta),
]


class CASGD(Rule):
    """C-ASGD: unreliable neighbors are left out of the average; ``theta = 0`` of PC-ASGD, without its messages."""

    takes_fragments: ClassVar[bool] = True
    takes_scalars_on_cpu: ClassVar[bool] = True
    name: Literal["c-asgd"] = "c-asgd"
    clipping: Clipping = "move-to-self"
    """Where the mixing weight of a dropped neighbor goes: to the agent itself, which keeps the matrix doubly
    stochastic, or to all that remain (`renormalize`)."""

    def step(self, state: Any, own: Own, reads: Reads, probe: Probe | None = None) -> tuple[Any, Update]:
        """Return the clipping step ``w~_ii x_i + sum_{k in R_i} w~_ik x_k - eta u_i``."""
        row = clip(self.clipping, own, reads, reads.reliable)
        return state, Update(averaged_step(row.own, row.neighbors, own, reads), {})

    @property
    def steps_many(self) -> bool:
        """True: always."""
        return True

    def step_many(self, state: Any, own: Own, reads: IndexedReads) -> tuple[Any, Update]:
        """Return what ``step`` does, for B agents."""
        row = clip(self.clipping, own, reads, reads.reliable)
        return state, Update(averaged_steps(row.own, row.neighbors, own, reads), {})


class PASGD(PredictingRule):
    """P-ASGD: unreliable neighbors are rolled forward over the steps that were missed; ``theta = 1`` of PC-ASGD."""

    takes_fragments: ClassVar[bool] = True
    takes_scalars_on_cpu: ClassVar[bool] = True
    name: Literal["p-asgd"] = "p-asgd"

    def step(self, state: Any, own: Own, reads: Reads, probe: Probe | None = None) -> tuple[Any, Update]:
        """Return the predicting step ``w_ii x_i + sum_{k in R_i} w_ik x_k + sum_{k in U_i} w_ik p_ik - eta u_i``."""
        rows = self.rows(own, reads)
        blend = self.blend_at(torch.ones_like(own.mixing), rows, own, reads)
        state, (weights,) = self.blends((blend,), state, rows, own, reads)
        return state, Update(weights, {})

    @property
    def steps_many(self) -> bool:
        """Whether sums over what is read are all of it."""
        return self.predicts_by_sums

    def step_many(self, state: Any, own: Own, reads: IndexedReads) -> tuple[Any, Update]:
        """Return what ``step`` does, for B agents."""
        rows = self.rows(own, reads)
        blend = self.blend_at(torch.ones_like(own.mixing), rows, own, reads)
        return state, Update(self.blends_of_many(blend, rows, own, reads)[0], {})


class GuardedState(NamedTuple):
    """The memory of PC-ASGD with a guard."""

    guard: GuardState
    compensation: tuple[Tensor, ...]


class PCASGD(PredictingRule):
    """PC-ASGD: ``theta`` times the predicting step plus ``1 - theta`` times the clipping step.

    ``theta: staleness`` chooses theta at each step, for each agent, from what it reads: as large as the stability
    bound allows, ``theta = min(1, c / sum_{k in U_i} w_ik s_ik)``. A constant theta with ``reach: full`` is the
    published method.
    """

    takes_fragments: ClassVar[bool] = True
    takes_scalars_on_cpu: ClassVar[bool] = True
    name: Literal["pc-asgd"] = "pc-asgd"
    theta: Theta = Field(default=StalenessTheta())
    """Share of the predicting step, in [0, 1]: `staleness`, by which it follows from what is read; or a number, a curve
    over steps, or a list of one number per agent. 1 is P-ASGD, 0 is C-ASGD."""
    guard: bool = True
    """Whether the stability bound is halved where what prediction adds to a step outgrows the agent's usual steps, from
    where it rises slowly again. It counts where the bound does: with `theta: staleness`, with `reach: stable` and where
    `bounded`."""

    numeric_settings: ClassVar[tuple[str, ...]] = ("theta", *PredictingRule.numeric_settings)

    @field_validator("theta")
    @classmethod
    def _within_bounds(cls, theta: Any) -> Any:
        if isinstance(theta, StalenessTheta):
            return theta
        for value in theta if isinstance(theta, tuple) else theta.extremes():
            if not 0 <= value <= 1:
                raise ValueError(f"theta = {value:g}: allowed are values in [0, 1], and staleness")
        return theta

    @property
    def has_bound(self) -> bool:
        """Whether the stability bound has a say: not in the published method."""
        return isinstance(self.theta, StalenessTheta) or super().has_bound

    @property
    def _is_guarded(self) -> bool:
        return self.guard and self.has_bound

    def check(self, num_agents: int) -> None:
        """Raise ``ValueError`` where theta is given per agent, but not for ``num_agents`` agents."""
        if isinstance(self.theta, tuple) and len(self.theta) != num_agents:
            raise ValueError(f"theta = {list(self.theta)}: allowed is one value for each of the {num_agents} agents")

    def coefficients(self, agent: int, step: int) -> dict[str, float]:
        """Return theta of this agent at this step, where it is set, and lambda_0."""
        found = super().coefficients(agent, step)
        if isinstance(self.theta, StalenessTheta):
            return found
        return found | {"theta": self.theta[agent] if isinstance(self.theta, tuple) else self.theta.at(step)}

    def init(self, weights: Tensor, num_neighbors: int) -> Any:
        """Return the state before the first step."""
        compensation = super().init(weights, num_neighbors)
        return GuardedState(unguarded(weights), compensation) if self._is_guarded else compensation

    def step(self, state: Any, own: Own, reads: Reads, probe: Probe | None = None) -> tuple[Any, Update]:
        """Return ``theta x_pre + (1 - theta) x_cli``."""
        rows = self.rows(own, reads)
        if not self._is_guarded:
            blend = self._blend(rows, own, reads)
            state, (weights,) = self.blends((blend,), state, rows, own, reads)
            return state, Update(weights, {"theta": blend.theta})
        scalars = own.mixing.device
        guard = state.guard.at(scalars)
        blend = self._blend(rows, own, reads, guard.gain)
        compensation, (weights,), (moved,) = self.blends_and_moves((blend,), state.compensation, rows, own, reads)
        predicted, direction = (
            torch.stack((numerics.norm(moved), numerics.norm(own.newest_direction))).to(scalars).unbind()
        )
        guard = guarded(guard, predicted, own.step_size * direction).at(torch.device("cpu"))
        return GuardedState(guard, compensation), Update(weights, {"theta": blend.theta})

    @property
    def steps_many(self) -> bool:
        """Whether sums over what is read are all of it."""
        return self.predicts_by_sums

    def step_many(self, state: Any, own: Own, reads: IndexedReads) -> tuple[Any, Update]:
        """Return what ``step`` does, for B agents."""
        rows = self.rows(own, reads)
        blend = self._blend(rows, own, reads, state.guard.gain if self._is_guarded else 1.0)
        weights, moved = self.blends_of_many(blend, rows, own, reads)
        if self._is_guarded:
            own_step = own.step_size * numerics.norms(own.newest_direction)
            state = state._replace(guard=guarded(state.guard, numerics.norms(moved), own_step))
        return state, Update(weights, {"theta": blend.theta})

    def _blend(self, rows: Rows, own: Own, reads: AnyReads, gain: float | Tensor = 1.0) -> Blend:
        if isinstance(self.theta, StalenessTheta):
            return self.chosen_blend(rows, own, reads, gain)
        return self.blend_at(own.coefficients["theta"], rows, own, reads, gain)
