"""AD-PSGD: pairs of agents average, one pair after another, while all go on computing (Lian et al., ICML 2018)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ray_pcasgd.agents.learner import Learner, LearnerSpec, Training
from ray_pcasgd.base.settings import Settings
from ray_pcasgd.records import Snapshot, Version
from ray_pcasgd.tasks.task import TaskData


class ADPSGD(Settings):
    """AD-PSGD: once its gradient is ready, an agent averages with one random neighbor, then takes its own step.

    ``x_i, x_k <- (x_i + x_k) / 2`` as one act, then ``x_i <- x_i - eta u_i``, with ``u_i`` at the weights that i had
    when it began to compute. Only active agents ask, only passive ones are asked, at any moment: no agent that waits
    is itself waited for, so there is no deadlock (section 4 of the paper).
    """

    name: Literal["ad-psgd"] = "ad-psgd"


@dataclass(frozen=True, kw_only=True)
class PairSpec(LearnerSpec):
    """What one agent is built from."""

    recipe: Training
    is_active: bool
    """Whether it asks its neighbors; if not, they ask it."""


class PairPeer(Learner):
    """One agent. ``step`` is its own; ``answer`` may come at any moment, also while it computes.

    Each of the two makes a version; ``progress`` counts the agent's own steps alone.
    """

    def __init__(self, spec: PairSpec, data: TaskData) -> None:
        super().__init__(spec, data)
        self.steps = 0
        self.computed_at = Version(self.weights, self.buffers)
        """What its own last step left, where its next gradient is computed, and where it is tested."""
        self.passed = self.computed_at
        """The same, as the forward pass there left it."""

    @property
    def progress(self) -> int:
        """Its own steps so far, of ``num_steps``."""
        return self.steps

    @property
    def present(self) -> Version:
        """What a partner averages with."""
        return Version(self.weights, self.buffers)

    @property
    def message_bytes(self) -> int:
        """Bytes of one version's message."""
        return 4 * (self.weights.numel() + self.buffers.numel())

    def optimize(self, gradient: Tensor) -> None:
        """Set ``direction`` to the optimizer's, at the weights that the gradient was computed at."""
        self.optimizer_state, self.direction = self.optimizer.direction(
            self.optimizer_state, self.passed.weights, gradient, self.replica.sizes, self.moving
        )

    def take_weights(self) -> None:
        """Take in what the forward pass has left; partners may have changed the present version meanwhile."""
        at = self.computed_at
        weights, buffers = self.replica.weights, self.replica.buffers.clone()
        self.passed = Version(at.weights if torch.equal(weights, at.weights) else weights.clone(), buffers)

    def answer(self, partner: Version) -> None:
        """Average with the agent that asks; a gradient that is being computed is not disturbed.

        Raises:
            NonFiniteLossError: the average overflows.

        """
        weights = 0.5 * (self.weights + partner.weights)
        buffers = 0.5 * (self.buffers + partner.buffers)
        self.check_version(weights, buffers)
        self.weights, self.buffers = weights, buffers
        self.version += 1

    def step(self, partner: Version | None) -> None:
        """Average with a partner, where there is one, and take the agent's own step.

        **Choice**: what the forward pass changed in the buffers, or even in the weights, is added to their average.

        Raises:
            NonFiniteLossError: the result is not finite; the agent stays at its version.

        """
        eta = self.spec.recipe.step_size_at(self.steps)
        mine = self.present
        averaged = mine if partner is None else Version(*(0.5 * (a + b) for a, b in zip(mine, partner, strict=True)))
        weights, buffers = map(_with_change, averaged, self.computed_at, self.passed)
        weights = weights - eta * self.direction
        self.check_version(weights, buffers)
        self.weights, self.buffers = weights, buffers
        self.computed_at = self.passed = self.present
        self.replica.load(self.weights, self.buffers)
        self.version += 1
        self.steps += 1

    def rejoin(self, found: Sequence[Version], version: int, steps: int) -> None:
        """Come back into the run, of an agent just built: as the mean of the versions found, or as it is without any.

        Args:
            found: The neighbors' versions.
            version: The version that the agent comes back at, above all that it had before it was lost.
            steps: Its own steps so far.

        """
        if found:
            self.weights = torch.stack([one.weights for one in found]).mean(dim=0)
            self.buffers = torch.stack([one.buffers for one in found]).mean(dim=0)
        self.computed_at = self.passed = self.present
        self.replica.load(self.weights, self.buffers)
        self.version = version
        self.steps = steps
        self.batches.restore(steps)

    def snapshot(self) -> Snapshot:
        """Return the replica as the agent's own last step left it."""
        return super().snapshot()._replace(**self.computed_at._asdict())


def _with_change(averaged: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """Return what was averaged, with the change that a forward pass has made of ``before``."""
    if after is before:
        return averaged
    return after if averaged is before else averaged + (after - before)
