"""PC-ASGD: a blend of predicting and of clipping the stale neighbors (Wang et al., TMLR 2024, arXiv 2208.13154)."""

from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Discriminator, Field, Tag, field_validator

from ray_pcasgd.base.curves import Constant, Curve
from ray_pcasgd.records import Own, Reads, Update
from ray_pcasgd.rules.base import Probe, Rule, averaged_step
from ray_pcasgd.rules.prediction import Clipping, PredictingRule, clip

Theta = Annotated[
    Annotated[Curve, Tag("curve")] | Annotated[tuple[float, ...], Tag("agents")],
    Discriminator(lambda value: "agents" if isinstance(value, list | tuple) else "curve"),
]


class CASGD(Rule):
    """C-ASGD: unreliable neighbors are left out of the average; ``theta = 0`` of PC-ASGD, without its messages."""

    name: Literal["c-asgd"] = "c-asgd"
    clipping: Clipping = "move-to-self"
    """Where the mixing weight of a dropped neighbor goes: to the agent itself, which keeps the matrix doubly
    stochastic, or to all that remain (`renormalize`)."""

    def step(self, state: Any, own: Own, reads: Reads, probe: Probe | None = None) -> tuple[Any, Update]:
        """Return the clipping step ``w~_ii x_i + sum_{k in R_i} w~_ik x_k - eta u_i``."""
        row = clip(self.clipping, own, reads, reads.reliable)
        return state, Update(averaged_step(row.own, row.neighbors, own, reads), {})


class PASGD(PredictingRule):
    """P-ASGD: unreliable neighbors are rolled forward over the steps that were missed; ``theta = 1`` of PC-ASGD."""

    name: Literal["p-asgd"] = "p-asgd"

    def step(self, state: Any, own: Own, reads: Reads, probe: Probe | None = None) -> tuple[Any, Update]:
        """Return the predicting step ``w_ii x_i + sum_{k in R_i} w_ik x_k + sum_{k in U_i} w_ik p_ik - eta u_i``."""
        state, (weights,) = self.blends((torch.ones_like(own.mixing),), state, own, reads)
        return state, Update(weights, {})


class PCASGD(PredictingRule):
    """PC-ASGD: ``theta`` times the predicting step plus ``1 - theta`` times the clipping step."""

    numeric_settings: ClassVar[tuple[str, ...]] = ("theta", *PredictingRule.numeric_settings)

    name: Literal["pc-asgd"] = "pc-asgd"
    theta: Theta = Field(default=Constant(value=0.5))
    """Share of the predicting step, in [0, 1]: a number, a curve over steps, or a list of one number per agent.
    1 is P-ASGD, 0 is C-ASGD."""

    @field_validator("theta")
    @classmethod
    def _within_bounds(cls, theta: Curve | tuple[float, ...]) -> Curve | tuple[float, ...]:
        for value in theta if isinstance(theta, tuple) else theta.extremes():
            if not 0 <= value <= 1:
                raise ValueError(f"theta = {value:g}: allowed are values in [0, 1]")
        return theta

    def check(self, num_agents: int) -> None:
        """Raise ``ValueError`` where theta is given per agent, but not for ``num_agents`` agents."""
        if isinstance(self.theta, tuple) and len(self.theta) != num_agents:
            raise ValueError(f"theta = {list(self.theta)}: allowed is one value for each of the {num_agents} agents")

    def coefficients(self, agent: int, step: int) -> dict[str, float]:
        """Return theta of this agent at this step, and lambda_0."""
        theta = self.theta[agent] if isinstance(self.theta, tuple) else self.theta.at(step)
        return super().coefficients(agent, step) | {"theta": theta}

    def step(self, state: Any, own: Own, reads: Reads, probe: Probe | None = None) -> tuple[Any, Update]:
        """Return ``theta x_pre + (1 - theta) x_cli``."""
        theta = own.coefficients["theta"]
        state, (weights,) = self.blends((theta,), state, own, reads)
        return state, Update(weights, {"theta": theta})
