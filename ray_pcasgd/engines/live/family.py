"""What distinguishes the families of agents where the driver of a run has to know it; asked in this place alone."""

from dataclasses import dataclass

from ray_pcasgd.agents.learner import LearnerSpec
from ray_pcasgd.agents.pair import PairSpec
from ray_pcasgd.agents.peer import AgentSpec
from ray_pcasgd.agents.server import ServerSpec, WorkerSpec


@dataclass(frozen=True)
class Family:
    """What distinguishes a family of agents where the driver of a run has to know it."""

    counts: bool
    """Its progress says how far the run is; not a worker's."""
    has_states: bool
    """A run can go on from its state; not from a pair's."""
    may_be_lost: bool
    """The run goes on without it; not without a server."""
    may_be_isolated: bool
    """Its links may be cut: a peer's that pushes no shares, which would be lost."""
    holds_in_steps: bool
    """Delays in steps have a meaning; not for pairs."""
    tells_neighbors: bool
    """It sends its neighbors itself that it leaves: peers."""
    pushes: bool
    """It pushes shares of its mass, which must not be lost."""


def family_of(spec: LearnerSpec) -> Family:
    """Return the facts of an agent's family."""
    is_peer, is_pair = isinstance(spec, AgentSpec), isinstance(spec, PairSpec)
    pushes = isinstance(spec, AgentSpec) and spec.recipe.rule.reading == "every"
    return Family(
        counts=not isinstance(spec, WorkerSpec),
        has_states=not is_pair,
        may_be_lost=not isinstance(spec, ServerSpec),
        may_be_isolated=is_peer and not pushes,
        holds_in_steps=not is_pair,
        tells_neighbors=is_peer,
        pushes=pushes,
    )
