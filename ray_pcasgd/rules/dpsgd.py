"""Decentralised SGD: average with the neighbors, then step; with or without waiting for their present weights."""

from typing import Any, ClassVar, Literal

from ray_pcasgd.records import IndexedReads, Own, Reads, Update
from ray_pcasgd.rules.base import DefaultBarrier, Probe, Rule, averaged_step, averaged_steps


class DPSGD(Rule):
    """D-PSGD: every agent waits for the present weights of all its neighbors (Lian et al., NeurIPS 2017)."""

    takes_fragments: ClassVar[bool] = True
    takes_scalars_on_cpu: ClassVar[bool] = True
    name: Literal["d-psgd"] = "d-psgd"

    default_barrier: ClassVar[DefaultBarrier] = "all"

    def step(self, state: Any, own: Own, reads: Reads, probe: Probe | None = None) -> tuple[Any, Update]:
        """Return ``w_ii x_i + sum_k w_ik x_k - eta u_i``."""
        return state, Update(averaged_step(own.mixing, reads.mixing, own, reads), {})

    @property
    def steps_many(self) -> bool:
        """True: always."""
        return True

    def step_many(self, state: Any, own: Own, reads: IndexedReads) -> tuple[Any, Update]:
        """Return what ``step`` does, for B agents."""
        return state, Update(averaged_steps(own.mixing, reads.mixing, own, reads), {})


class DASGD(Rule):
    """D-ASGD: the step of D-PSGD with the versions that have come, however old they are."""

    takes_fragments: ClassVar[bool] = True
    takes_scalars_on_cpu: ClassVar[bool] = True
    name: Literal["d-asgd"] = "d-asgd"

    def step(self, state: Any, own: Own, reads: Reads, probe: Probe | None = None) -> tuple[Any, Update]:
        """Return ``w_ii x_i + sum_k w_ik x_k - eta u_i``."""
        return state, Update(averaged_step(own.mixing, reads.mixing, own, reads), {})

    @property
    def steps_many(self) -> bool:
        """True: always."""
        return True

    def step_many(self, state: Any, own: Own, reads: IndexedReads) -> tuple[Any, Update]:
        """Return what ``step`` does, for B agents."""
        return state, Update(averaged_steps(own.mixing, reads.mixing, own, reads), {})
