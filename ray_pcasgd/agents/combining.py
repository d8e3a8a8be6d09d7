"""Peers that combine first: adapt-then-combine, whose versions are what a round's local steps come to.

Version ``t`` of agent i is ``z_i(t)``. Its round ``t`` begins at what the rule makes of the versions that were read,
``y_i = R(z_i(t), z_k(v))``, takes the local steps from there, and ends at ``z_i(t+1) = y_i - a d_i``, ``d_i`` their
displacement and ``a`` the rule's outer step size. With nobody late on a complete graph, equal weights and ``d-psgd``,
that is federated averaging. Other peers read at a round's end, so that messages travel while it is computed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from ray_pcasgd.agents.learner import NonFiniteLossError
from ray_pcasgd.agents.participant import Family, Outcome, Published, Received
from ray_pcasgd.agents.peer import AgentSpec, Peer
from ray_pcasgd.agents.peer_reads import Gathered
from ray_pcasgd.agents.peer_spec import PEERS
from ray_pcasgd.records import Row, Update
from ray_pcasgd.tasks.task import TaskData

COMBINING_PEERS = replace(PEERS, prepares=False, direction_lag=0)


@dataclass(frozen=True, kw_only=True)
class CombiningSpec(AgentSpec):
    """What a peer that combines first is built from."""

    @property
    def family(self) -> Family:
        """What the agent has in common with those of its family."""
        return COMBINING_PEERS

    def build(self, data: TaskData) -> "CombiningPeer":
        """Return the agent."""
        return CombiningPeer(self, data)


class CombiningPeer(Peer):
    """One peer of a run that combines what it reads, and then computes; ``take`` does both."""

    @property
    def has_to_prepare(self) -> bool:
        """False: it computes at what it has combined."""
        return False

    @property
    def rule_directions(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Zeros, since the local steps come after the rule, and the mean direction of the last round; shape (D,)."""
        return self._zeros, (self.direction,)

    def take(self, row: Row, received: Sequence[Received]) -> Outcome:
        """Combine and compute, or come back into the run as the agent of a recorded run did."""
        if row.kind == "rejoined":
            return super().take(row, received)
        before = self.weights, self.buffers
        try:
            measures = self.apply(received, len(row.held))
            loss = self.compute()
        except NonFiniteLossError:
            self.stay_at(*before)
            raise
        return self.advanced(before, loss, measures)

    def commit(self, update: Update, gathered: Gathered) -> None:
        """Make the update what the round's local steps begin at.

        Raises:
            NonFiniteLossError: it has numbers that are not finite; the agent stays at its version.

        """
        buffers = self.mix_buffers(gathered)
        self.check_version(update.weights, buffers)
        self.weights = update.weights
        self.buffers = buffers.clone() if buffers.numel() else buffers
        self.load()

    def advanced(self, before: tuple[Tensor, Tensor], loss: float, measures: dict[str, float]) -> Outcome:
        """Make what the round's local steps have come to the next version, and return what they came to.

        Args:
            before: Weights and buffers of the present version.
            loss: The mean loss of the local steps, whose mean direction is ``direction``.
            measures: What the rule has measured.

        Raises:
            NonFiniteLossError: something of it is not finite; the agent stays at its version.

        """
        try:
            self.check_finite(loss)
            weights = self.weights - self.own_step_size * self.spec.recipe.rule.displacement_factor * self.direction
            buffers = self.replica.buffers.clone()
            self.check_version(weights, buffers)
        except NonFiniteLossError:
            self.stay_at(*before)
            raise
        self.weights, self.buffers = weights, buffers
        self.load()
        self.version += 1
        if self.displacements is not None:
            self.displacements.record(self.weights)
        self.note_direction()
        return Outcome(loss, measures | self.own_measures())

    def stay_at(self, weights: Tensor, buffers: Tensor) -> None:
        """Be where the present version is, after a round that came to nothing."""
        self.weights, self.buffers = weights, buffers
        self.load()

    def _published(self, sender: int) -> Published:
        """Return the present version as it is published, with the direction that has led to it."""
        return replace(super()._published(sender), direction=self.published_direction if self.version else None)
