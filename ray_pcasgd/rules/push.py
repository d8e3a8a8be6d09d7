"""Stochastic gradient push: averaging on directed graphs, where no agent needs an answer (Assran et al. 2019)."""

from typing import Any, ClassVar, Literal

from pydantic import Field

from ray_pcasgd.records import Own, Reads, Update
from ray_pcasgd.rules.base import DefaultBarrier, Probe, Rule, averaged_step
from ray_pcasgd.rules.exchange import Reading


class _Push(Rule):
    """The step that both forms share.

    Every agent sends equal shares of its biased weights ``x = w z`` and of its mass ``w`` to itself and to all agents
    that read it. With ``m_k`` the mass that a version brings (``own.mixing`` is what the agent has kept,
    ``reads.mixing`` what has come), ``w <- m_i + sum_k m_k`` and ``z <- (m_i z_i + sum_k m_k z_k - eta u_i) / w``.
    Reliability does not count: to leave a share out would lose it.

    **Choice**: messages hold ``z`` and ``w`` of a version, and the gradient at ``z_i`` comes in after the shares, as
    in D-PSGD here; Assran et al. send after the gradient.

    **Choice**: below a mass of ``smallest_mass`` the step is ``eta u_i / smallest_mass``, so that it does not grow
    without bound where an agent's mass has gone elsewhere: to a straggler that takes its shares late, or with an agent
    that was lost.
    """

    reading: ClassVar[Reading] = "every"

    smallest_mass: float = Field(0.25, gt=0, le=1)
    """Mass below which an agent's steps grow no further, in (0, 1]; with even speeds and short delays no agent comes
    near it."""

    def step(self, state: Any, own: Own, reads: Reads, probe: Probe | None = None) -> tuple[Any, Update]:
        """Return the de-biased weights after one step; the measure ``mass`` is w."""
        total = own.mixing
        for mass in reads.mixing.unbind():
            total = total + mass

        rate = own.step_size * (total / self.smallest_mass).clamp(max=1.0)
        biased = averaged_step(own.mixing, reads.mixing, own._replace(step_size=rate), reads)
        # In place, since memory for another long vector costs more than the division.
        return state, Update(biased.div_(total), {"mass": total})


class SGP(_Push):
    """Stochastic gradient push: step t takes in version t of every agent that is read."""

    default_barrier: ClassVar[DefaultBarrier] = "all"

    name: Literal["sgp"] = "sgp"


class OverlapSGP(_Push):
    """Stochastic gradient push, overlapped: each share is taken in when it has come.

    ``barrier: {name: bounded, staleness: tau}`` makes it their tau-overlap: no agent gets more than tau steps ahead of
    those that it reads. Without a barrier the mass gathers at stragglers, and agents with little mass take too large
    steps.
    """

    default_barrier: ClassVar[DefaultBarrier] = "bounded"

    name: Literal["sgp-overlap"] = "sgp-overlap"
