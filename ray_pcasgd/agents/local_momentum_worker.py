"""Workers of FedGLOMO: local steps with momentum that reduces variance, from two points with the same mini-batches."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ray_pcasgd.agents.learner import ModelError
from ray_pcasgd.agents.participant import Received
from ray_pcasgd.agents.worker import Worker, WorkerSpec
from ray_pcasgd.base.state import State
from ray_pcasgd.rules.fedglomo import FedGLOMO
from ray_pcasgd.tasks.batches import Batches
from ray_pcasgd.tasks.task import TaskData

CHANGED_WITH_FEDGLOMO = (
    "task.model: a forward pass changes the model's own weights; allowed with algorithm.name = 'fedglomo' are models "
    "that do not"
)


@dataclass(frozen=True, kw_only=True)
class LocalMomentumWorkerSpec(WorkerSpec):
    """What a worker of FedGLOMO is built from."""

    def build(self, data: TaskData) -> "LocalMomentumWorker":
        """Return the agent."""
        return LocalMomentumWorker(self, data)


class Descent:
    """Local steps along ``v_s = g(w_s) + v_{s-1} - g(w_{s-1})``; plain data."""

    def __init__(self, start: Tensor) -> None:
        self.points: tuple[Tensor, ...] = (start,)
        """Where the next mini-batch's gradients are needed: ``w_{s-1}``, after the first step, and ``w_s``."""
        self.estimate = torch.zeros_like(start)
        """v of the last step, shape (D,)."""

    @property
    def weights(self) -> Tensor:
        """w_s, shape (D,)."""
        return self.points[-1]

    def advance(self, gradients: Sequence[Tensor], step_size: Tensor) -> None:
        """Take the step whose gradients at ``points`` are given, all of one mini-batch and of shape (D,)."""
        *before, here = gradients
        self.estimate = here + (self.estimate - before[0]) if before else here
        self.points = (self.weights, self.weights - step_size * self.estimate)


class LocalMomentumWorker(Worker):
    """Takes its local steps from where its servers are, and with momentum at these from where its last round began."""

    def __init__(self, spec: WorkerSpec, data: TaskData) -> None:
        super().__init__(spec, data)
        rule = spec.recipe.rule
        assert isinstance(rule, FedGLOMO)
        self.rule = rule
        self.shard = self.stream("snapshots") if rule.first == "shard" else None
        """Its own mini-batches for the gradient of the whole shard, where a round begins with that."""
        self.before: Tensor | None = None
        """``x_{k-1}``, where its last round began, shape (D,); ``None`` where there was none, or nobody asks for it."""

    def step(self, received: Sequence[Received], cancelled: Callable[[], bool] = lambda: False) -> float | None:
        """Take the round's local steps from what was received, and return the mean loss there.

        ``None`` is returned where the work was cancelled; there is a next version all the same.

        Raises:
            NonFiniteLossError: the loss or the gradient is not finite.

        """
        self.begin(received)
        here, there = Descent(self.weights), None if self.before is None else Descent(self.before)
        losses = []
        for number in range(self.round_length):
            self.local_step = number
            loss = self._advance(here, there, cancelled)
            if loss is None:
                self.version += 1
                return None
            losses.append(self.check_finite(loss))
        sent = self._sent_of(there)
        self.check_version(sent, self.replica.buffers)
        self.finish()
        self.sent = sent
        self.before = self.start if self.rule.has_momentum else None
        return sum(losses) / len(losses)

    def _sent_of(self, there: Descent | None) -> Tensor:
        """Return ``delta``, and with momentum behind it ``delta - delta'``."""
        delta = self.start - self.weights
        if not self.rule.has_momentum:
            return delta
        if there is None or self.before is None:
            return torch.cat([delta, torch.zeros_like(delta)])
        return torch.cat([delta, delta - (self.before - there.weights)])

    def take_weights(self) -> None:
        """Go on from the weights that the forward pass has left; allowed are those that it was given."""
        if not torch.equal(self.replica.weights, self.weights):
            # No number equals one that is not: of a descent that has left all bounds, before its gradient is looked at.
            self.check_version(self.weights, self.replica.buffers)
            raise ModelError(self.spec.agent, self.progress, CHANGED_WITH_FEDGLOMO)

    def rejoin(self, received: Sequence[Received], version: int) -> None:
        """Come back into the run at ``version``, without a round before."""
        super().rejoin(received, version)
        self.before = None

    def state(self) -> State:
        """Return all that the steps to come depend on; its tensors are the worker's own."""
        before = self.weights if self.before is None else self.before
        return super().state() | {"before": before, "has_before": self.before is not None}

    def restore(self, state: State) -> None:
        """Go on from a state of a worker with the same settings."""
        super().restore(state)
        self.before = state["before"].to(self.weights.device) if state["has_before"] else None

    def _advance(self, here: Descent, there: Descent | None, cancelled: Callable[[], bool]) -> float | None:
        """Take one step of each descent, with one mini-batch; return its loss at the worker's own weights."""
        points = (*(() if there is None else there.points), *here.points)
        computed = self._gradients(points, cancelled)
        if computed is None:
            return None
        gradients, loss = computed
        step_size = torch.tensor(self.present_step_size, device=self.device)
        if there is not None:
            there.advance(gradients[: len(there.points)], step_size)
        here.advance(gradients[-len(here.points) :], step_size)
        self.weights = here.weights
        self.replica.load(self.weights, self.replica.buffers.clone())
        return loss

    def _gradients(self, points: Sequence[Tensor], cancelled: Callable[[], bool]) -> tuple[list[Tensor], float] | None:
        """Return the gradients of the next mini-batch at some points, and its loss at the last one.

        Nothing is left of the forward passes at the others. Where the round begins, it may be the whole shard's.
        """
        compute = self._compute_next()
        buffers, local = self.replica.buffers.clone(), self.replica.copy_of_local()
        found, loss = [], None
        for point in points:
            self.weights = point
            self.replica.load(point, buffers)
            self.replica.load_local(local)
            loss = compute(cancelled)
            if loss is None:
                return None
            found.append(self.direction)
        assert loss is not None
        return found, loss

    def _compute_next(self) -> Callable[[Callable[[], bool]], float | None]:
        """Return what computes the gradient of the next mini-batch, or of the shard, at the present weights."""
        if self.shard is None or self.local_step:
            batch = self.draw(self.batches)
            return lambda cancelled: self.compute_on(batch, cancelled, self.pieces)
        shard = self.shard
        assert isinstance(shard, Batches)
        self.skip_batch()
        return lambda cancelled: self.compute_over(shard, self.version, cancelled)
