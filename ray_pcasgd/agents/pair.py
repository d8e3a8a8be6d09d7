"""AD-PSGD: pairs of agents average, one pair after another, while all go on computing (Lian et al., ICML 2018)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ray_pcasgd.agents.learner import Learner
from ray_pcasgd.agents.participant import (
    NO_LOSS,
    Family,
    LearnerSpec,
    Outcome,
    Participant,
    Published,
    Received,
    Training,
)
from ray_pcasgd.agents.twin import Twin, meeting_of
from ray_pcasgd.records import Read, Row, Snapshot, Version
from ray_pcasgd.rules.acid import ACiD
from ray_pcasgd.tasks.task import TaskData

PAIRS = Family(slack=0, retention="counted", exchanges=True, has_states=False, holds_in_steps=False)


@dataclass(frozen=True, kw_only=True)
class PairSpec(LearnerSpec):
    """What one agent is built from."""

    recipe: Training
    is_active: bool
    """Whether it asks its neighbors; if not, they ask it."""
    acceleration: ACiD | None = None
    """A2CiD2, where the run has it, with all but ``gradient_seconds`` filled in."""

    @property
    def family(self) -> Family:
        """What the agent has in common with those of its family."""
        return PAIRS

    def build(self, data: TaskData) -> "PairPeer":
        """Return the agent."""
        return PairPeer(self, data)


class PairPeer(Learner, Participant):
    """One agent. ``step`` is its own; ``answer`` may come at any moment, also while it computes.

    Each of the two makes a version; ``progress`` counts the agent's own steps alone.
    """

    spec: PairSpec

    def __init__(self, spec: PairSpec, data: TaskData) -> None:
        super().__init__(spec, data)
        self.steps = 0
        self.twin = None if spec.acceleration is None else Twin(spec.acceleration, self.weights)
        self.loss: float | None = None
        """Of the next own step, where it is computed already."""
        self.computed_at = Version(self.weights, self.buffers)
        """What its own last step left, where its next gradient is computed, and where it is tested."""
        self.passed = self.computed_at
        """The same, as the forward pass there left it."""

    @property
    def progress(self) -> int:
        """Its own steps so far, of ``num_steps``."""
        return self.steps

    @property
    def has_to_prepare(self) -> bool:
        """Whether the next own step's gradient is still to be computed."""
        return self.loss is None and self.is_running

    def prepare(self, loss: float | None = None) -> None:
        """Compute the next own step's gradient."""
        self.loss = self.check_finite(self.compute() if loss is None else loss)

    def take(self, row: Row, received: Sequence[Received]) -> Outcome:
        """Take an own step, average as an agent asks that does so, or come back as the agent of a recorded run did."""
        if row.kind == "rejoined":
            steps = self.steps
            vars(self).update(vars(PairPeer(self.spec, self.data)))  # a lost agent has left nothing else
            self.rejoin(received, row.step + 1, steps, row.end)
            return NO_LOSS
        found = [Version(one.weights, one.buffers) for one in received]
        if row.kind == "passive":
            self.answer(found[0], row)
            return NO_LOSS
        loss, self.loss = self.loss, None
        assert loss is not None
        self.step(found[0] if found else None, row)
        return Outcome(loss, self.own_measures())

    def message(self, row: Row | None) -> Published:
        """Return the present version as the row sends it that takes the agent to the next one.

        ``None``: as it is, which is what an agent that comes back gets.
        """
        if self.twin is None:
            return Published(self.weights, self.buffers)
        weights = self.weights if row is None else self.twin.flowed(self.weights, row, meeting_of(row))[0]
        return Published(weights, self.buffers, whole=self.weights, twin=self.twin.weights)

    def opened(self, read: Read, published: Published) -> Received:
        """Return a version of another agent as this agent reads it."""
        return super().opened(read, published)._replace(whole=published.whole, twin=published.twin)

    def evaluation_point(self, row: Row) -> int | None:
        """Return the progress at which there is an evaluation after a row: after own steps alone."""
        is_due = row.kind == "step" and self.spec.recipe.evaluates_at(self.progress)
        return self.progress if is_due else None

    def bytes_sent(self, row: Row, receivers: int | None = None) -> int:
        """Return the bytes that are sent for a row."""
        sent = self.message_bytes
        if self.twin is not None and row.kind == "rejoined":
            sent += 4 * self.weights.numel()  # of each neighbor's twin
        return sent * len(row.reads)

    @property
    def present(self) -> Version:
        """What a partner averages with."""
        return Version(self.weights, self.buffers)

    @property
    def message_bytes(self) -> int:
        """Bytes of one version's message."""
        return 4 * (self.weights.numel() + self.buffers.numel())

    @property
    def point(self) -> Tensor:
        """Where the last gradient was computed, shape (D,)."""
        return self.passed.weights

    def take_weights(self) -> None:
        """Take in what the forward pass has left; partners may have changed the present version meanwhile."""
        at = self.computed_at
        weights, buffers = self.replica.weights, self.replica.buffers.clone()
        self.passed = Version(at.weights if torch.equal(weights, at.weights) else weights.clone(), buffers)

    def meet(self, partner: Version | None, row: Row) -> Version:
        """Return the average with a partner, where there is one, at the moment of a row; the twin takes its part."""
        weights = self.weights
        if self.twin is not None:
            weights = self.twin.flow(weights, row, meeting_of(row))
            if partner is not None:
                self.twin.average(weights, partner.weights)
        if partner is None:
            return Version(weights, self.buffers)
        return Version(0.5 * (weights + partner.weights), 0.5 * (self.buffers + partner.buffers))

    def answer(self, partner: Version, row: Row) -> None:
        """Average with the agent that asks; a gradient that is being computed is not disturbed.

        Raises:
            NonFiniteLossError: the average overflows.

        """
        weights, buffers = self.meet(partner, row)
        self.check_pair(weights, buffers)
        self.weights, self.buffers = weights, buffers
        self.version += 1

    def check_pair(self, weights: Tensor, buffers: Tensor) -> None:
        """Raise ``NonFiniteLossError`` where the next version, or the twin, would not be finite."""
        self.check_version(weights, buffers)
        if self.twin is not None:
            self.check_version(self.twin.weights, buffers)

    def step(self, partner: Version | None, row: Row) -> None:
        """Average with a partner, where there is one, and take the agent's own step.

        **Choice**: what the forward pass changed in the buffers, or even in the weights, is added to their average.

        Raises:
            NonFiniteLossError: the result is not finite; the agent stays at its version.

        """
        eta = self.spec.recipe.step_size_at(self.steps)
        averaged = self.meet(partner, row)
        if self.twin is not None:
            averaged = averaged._replace(weights=self.twin.flow(averaged.weights, row, row.end))
            twin = _with_change(self.twin.weights, self.computed_at.weights, self.passed.weights)
            self.twin.weights = twin - eta * self.direction
            self.twin.unit = self.twin.unit_at(row)
        weights, buffers = map(_with_change, averaged, self.computed_at, self.passed)
        weights = weights - eta * self.direction
        self.check_pair(weights, buffers)
        self.weights, self.buffers = weights, buffers
        self.computed_at = self.passed = self.present
        self.replica.load(self.weights, self.buffers)
        self.version += 1
        self.steps += 1

    def rejoin(self, found: Sequence[Received], version: int, steps: int, moment: float) -> None:
        """Come back into the run, of an agent just built: as the mean of the versions found, or as it is without any.

        Its twin is the mean of theirs, so that what they have of momentum stays.

        Args:
            found: The neighbors' versions, as they were after their own last rows.
            version: The version that the agent comes back at, above all that it had before it was lost.
            steps: Its own steps so far.
            moment: The second of the run at which it comes back.

        """
        if found:
            self.weights = _mean([one.weights if one.whole is None else one.whole for one in found])
            self.buffers = _mean([one.buffers for one in found])
        if self.twin is not None:
            twins = [one.twin for one in found if one.twin is not None]
            self.twin = Twin(self.twin.settings, _mean(twins) if twins else self.weights, moment)
        self.computed_at = self.passed = self.present
        self.replica.load(self.weights, self.buffers)
        self.version = version
        self.steps = steps
        self.batches.restore(steps)

    def snapshot(self) -> Snapshot:
        """Return the replica as the agent's own last step left it."""
        return super().snapshot()._replace(**self.computed_at._asdict())


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack([*tensors]).mean(dim=0)


def _with_change(averaged: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """Return what was averaged, with the change that a forward pass has made of ``before``."""
    if after is before:
        return averaged
    return after if averaged is before else averaged + (after - before)
