"""Workers of asynchronous SVRG: full gradients at snapshots, and between them differences from these."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ray_pcasgd.agents.participant import Received
from ray_pcasgd.agents.worker import Worker, WorkerSpec
from ray_pcasgd.base.state import State
from ray_pcasgd.tasks.batches import Batches
from ray_pcasgd.tasks.task import TaskData


@dataclass(frozen=True, kw_only=True)
class SnapshotWorkerSpec(WorkerSpec):
    """What a worker is built from whose server makes snapshots."""

    def build(self, data: TaskData) -> "SnapshotWorker":
        """Return the agent."""
        return SnapshotWorker(self, data)


class SnapshotWorker(Worker):
    """Computes the gradient of its whole shard where an epoch begins, else one mini-batch's there and where it is."""

    def __init__(self, spec: WorkerSpec, data: TaskData) -> None:
        super().__init__(spec, data)
        self.may_be_stacked = False
        self.shard = self.stream("snapshots")
        self.anchor: Tensor | None = None
        """w~, the weights of the present epoch's snapshot, shape (D,); ``None`` where it was not there to read them."""

    def step(self, received: Sequence[Received], cancelled: Callable[[], bool] = lambda: False) -> float | None:
        """Compute at what was received what the next message holds, and return the mean loss.

        ``None`` is returned where the work was cancelled; there is a next version all the same.

        Raises:
            NonFiniteLossError: the loss or the gradient is not finite.

        """
        self.begin(received)
        number = received[0].read.version
        if self.spec.recipe.rule.gathering.begins_epoch(number):
            loss = self._full_gradient(number // self._epoch, cancelled)
        else:
            loss = self._difference(cancelled)
        if loss is None:
            self.version += 1
            return None
        self.finish()
        return self.check_finite(loss)

    def rejoin(self, received: Sequence[Received], version: int) -> None:
        """Come back into the run at ``version``, without a snapshot."""
        super().rejoin(received, version)
        self.anchor = None

    def state(self) -> State:
        """Return all that the steps to come depend on; its tensors are the worker's own."""
        anchor = self.weights if self.anchor is None else self.anchor
        return super().state() | {"anchor": anchor, "has_anchor": self.anchor is not None}

    def restore(self, state: State) -> None:
        """Go on from a state of a worker with the same settings."""
        super().restore(state)
        self.anchor = state["anchor"].to(self.weights.device) if state["has_anchor"] else None

    @property
    def _epoch(self) -> int:
        epoch = self.spec.recipe.rule.gathering.epoch
        assert epoch is not None
        return epoch

    def _full_gradient(self, epoch: int, cancelled: Callable[[], bool]) -> float | None:
        """Set ``direction`` to the gradient over all samples of the shard, and the anchor to where it is."""
        assert isinstance(self.shard, Batches)
        local = self.replica.copy_of_local()
        loss = self.compute_over(self.shard, epoch, cancelled, lambda: self._forget_pass(local))
        self.skip_batch()
        if loss is None:
            return None
        self.anchor = self.weights
        self._moves_nothing()
        return loss

    def _difference(self, cancelled: Callable[[], bool]) -> float | None:
        """Set ``direction`` to the gradient of the next mini-batch less that at the anchor; return the loss here."""
        batch, here, there = self.draw(self.batches), self.weights, None
        if self.anchor is not None:
            local = self.replica.copy_of_local()
            self.weights = self.anchor
            self.replica.load(self.weights, self.buffers)
            done = self.compute_on(batch, cancelled, self.pieces)
            there, reached = self.direction, self.with_gradient
            self.weights = here
            self._forget_pass(local)
            if done is None:
                return None
        loss = self.compute_on(batch, cancelled, self.pieces)
        if loss is None:
            return None
        if there is None:
            self.direction = torch.zeros_like(self.weights)
            self._moves_nothing()
            return loss
        self.direction = self.direction - there
        both = (self.with_gradient, reached)
        self.with_gradient = None if both[0] is None or both[1] is None else both[0] | both[1]
        return loss

    def _moves_nothing(self) -> None:
        """Say in the next message that no parameter has a gradient by which it would move."""
        self.with_gradient = torch.zeros(len(self.replica.sizes), dtype=torch.bool, device=self.device)

    def _forget_pass(self, local: dict[str, Tensor]) -> None:
        """Let nothing be left of a forward pass."""
        self.replica.load(self.weights, self.buffers)
        self.replica.load_local(local)
