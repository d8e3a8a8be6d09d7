"""An agent: its replica, its optimizer, its batches and its rule. No clock, no Ray, no files."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ray_pcasgd.agents.local_round import LocalRound
from ray_pcasgd.agents.participant import NO_LOSS, Outcome, Received
from ray_pcasgd.agents.peer_reads import Gathered, PeerReads
from ray_pcasgd.agents.peer_spec import PeerSpec
from ray_pcasgd.records import Row, Update
from ray_pcasgd.rules.base import Probe
from ray_pcasgd.tasks.step import loss_with
from ray_pcasgd.tasks.task import TaskData


@dataclass(frozen=True, kw_only=True)
class AgentSpec(PeerSpec):
    """What one peer is built from, where it lives."""

    def build(self, data: TaskData) -> "Peer":
        """Return the agent."""
        return Peer(self, data)


class Peer(PeerReads):
    """One peer of a run.

    A step is ``prepare`` (mini-batch, loss, direction at the current weights) and then ``take`` (the rule over what
    was read). Engines call the two apart, because a direction is needed by others before its agent has read.
    """

    spec: AgentSpec

    def apply(self, received: Sequence[Received], held: int = 0) -> dict[str, float]:
        """Take the rule's step with the versions that were read, and return the rule's measures.

        ``held`` receivers were not sent their shares of the present version, where rules push shares.
        """
        rule = self.spec.recipe.rule
        gathered = self.gather(received, held)
        own, reads = self.rule_inputs(gathered)
        if rule.corrects_gradients:
            self.optimize(rule.correct(own, reads))
            own = own._replace(direction=self.direction)
        probe = self.probe() if rule.probes_at(self.version) else None
        self.rule_state, update = rule.step(self.rule_state, own, reads, probe)
        self.commit(update, gathered)
        measures = {name: value.item() for name, value in update.measures.items()}
        return measures | self.told_of_neighbors({k: v.tolist() for k, v in update.of_neighbors.items()}, gathered)

    def step(self, received: Sequence[Received]) -> tuple[float, dict[str, float]]:
        """Take one whole step; return the mini-batch loss and the rule's measures."""
        loss = self.compute()
        return loss, self.apply(received)

    def compute(self) -> float:
        """Set ``direction`` to u at the current weights, of a round of local steps to its mean; return the loss."""
        steps = self.steps_ahead
        if steps == 1:
            return super().compute()
        own = LocalRound(self)
        for _ in range(steps):
            own.advance(super().compute())
        return own.finish()

    @property
    def has_to_prepare(self) -> bool:
        """Whether the next step's direction is still to be computed."""
        return self.loss is None and self.is_running

    def prepare(self, loss: float | None = None) -> None:
        """Compute the next step's direction, or take over one that was computed together with others'."""
        self.loss = self.check_finite(self.compute() if loss is None else loss)
        self.note_direction()

    def take(self, row: Row, received: Sequence[Received]) -> Outcome:
        """Take a step, or come back into the run as the agent of a recorded run did."""
        if row.kind == "rejoined":
            self.rejoin(received, row.step + 1)
            return NO_LOSS
        return self.taken(self.apply(received, len(row.held)))

    def taken(self, measures: dict[str, float]) -> Outcome:
        """Return what a step came to, whose rule has measured this; the next step has a loss of its own."""
        loss, self.loss = self.loss, None
        assert loss is not None
        return Outcome(loss, measures | self.own_measures())

    def is_own(self, row: Row) -> bool:
        """Return whether a schedule's row is one that the run takes: a recorded one may have more steps."""
        return row.step < self.rounds.last(self.spec.agent)

    def batch_key(self, row: Row) -> Hashable | None:
        """Return what rows have in common that may run as one batch: as much to gather, and alike in probing."""
        if row.kind == "rejoined":
            return None
        gathers = len(row.reads) if self.pushes else len(self.spec.neighbors)
        return gathers, self.spec.recipe.rule.probes_at(row.step)

    def evaluation_point(self, row: Row) -> int | None:
        """Return the progress at which there is an evaluation now, if there is one."""
        return self.rounds.evaluation_point(self.spec.agent, self.version, self.spec.recipe.evaluate_every)

    def probe(self) -> Probe:
        """Return the losses of candidate weights on the next mini-batch of the agent's probe stream."""
        batch = self.draw(self.probe_batches)
        recipe = self.spec.recipe

        def losses(candidates: tuple[Tensor, ...]) -> Tensor:
            results = []
            with torch.no_grad(), self.replica.undisturbed():
                for candidate in candidates:
                    self.seed_forward_pass()
                    # Copies: the model's own code may change whatever it is given.
                    tensors = self.replica.named(candidate.clone(), self.replica.buffers.clone())
                    tensors |= self.replica.copy_of_local()
                    results.append(loss_with(recipe.loss_of, self.replica.module, tensors, batch))
            return torch.stack(results)

        return losses

    def probe_at(self, inputs: Tensor, targets: Tensor, buffers: Tensor, local: dict[str, Tensor]) -> Probe:
        """Return the losses of candidate weights on a mini-batch, where they run stacked; pure."""

        def losses(candidates: tuple[Tensor, ...]) -> Tensor:
            with torch.no_grad():
                return torch.stack([self.loss_at(x, buffers, local, inputs, targets)[0] for x in candidates])

        return losses

    def commit(self, update: Update, gathered: Gathered) -> None:
        """Make the update the agent's next version.

        Raises:
            NonFiniteLossError: it has numbers that are not finite; the agent stays at its version.

        """
        buffers = self.mix_buffers(gathered)
        self.check_version(update.weights, buffers)
        if self.pushes:
            self.mass = self.mass_of(gathered)
        self.weights = update.weights
        self.buffers = buffers.clone() if buffers.numel() else buffers
        self.load()
        self.version += 1
        if self.displacements is not None:
            self.displacements.record(self.weights)
