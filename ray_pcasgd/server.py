"""Workers and their servers: the same shape as peers, a server's neighbors being its workers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ray_pcasgd.learner import Learner, LearnerSpec, Training
from ray_pcasgd.optimizer import SGD
from ray_pcasgd.records import Read, Snapshot
from ray_pcasgd.replica import Replica
from ray_pcasgd.rules.correction import Late
from ray_pcasgd.run_state import State, leaves_of, with_leaves
from ray_pcasgd.schedule.server_planner import Position
from ray_pcasgd.server_rules import Delivered, ServerRule
from ray_pcasgd.tasks.task import TaskData


@dataclass(frozen=True, kw_only=True)
class ServerRecipe(Training):
    """What all workers and servers of a run share."""

    rule: ServerRule
    num_workers: int

    @property
    def num_servers(self) -> int:
        """Servers that share the parameters."""
        return self.rule.shards

    def part(self, server: int, num_parameters: int) -> slice:
        """Return the parameters of a server, counted from 0; the parts differ in size by one at most."""
        share, larger = divmod(num_parameters, self.num_servers)
        start = server * share + min(server, larger)
        return slice(start, start + share + (server < larger))


@dataclass(frozen=True, kw_only=True)
class WorkerSpec(LearnerSpec):
    """What a worker is built from; its neighbors are the servers."""

    recipe: ServerRecipe


@dataclass(frozen=True, kw_only=True)
class ServerSpec(LearnerSpec):
    """What a server is built from; its neighbors are the workers, and it has no samples."""

    recipe: ServerRecipe

    @property
    def place(self) -> int:
        """The server's number among the servers, from 0."""
        return self.agent - self.recipe.num_workers


class Received(NamedTuple):
    """A message as it came to hand: a server's part of the weights, or a part of what a worker sends."""

    read: Read
    vector: Tensor
    buffers: Tensor
    """Floating-point buffers; the first server's alone, empty elsewhere."""


class Worker(Learner):
    """Computes at its servers' weights; ``step`` takes it from one version, which is one message, to the next."""

    spec: WorkerSpec

    def __init__(self, spec: WorkerSpec, data: TaskData) -> None:
        super().__init__(spec, data)
        rule = spec.recipe.rule
        # Momentum and weight decay are the server's, after its correction, unless workers keep weights of their own.
        self.optimizer = spec.recipe.optimizer if rule.workers_step else SGD()
        self.optimizer_state = self.optimizer.init(self.weights)

    @property
    def progress(self) -> int:
        """Mini-batches so far."""
        return self.version * self.spec.recipe.rule.local_steps

    def begin(self, received: Sequence[Received]) -> None:
        """Take in the servers' versions, sorted by server."""
        center = torch.cat([state.vector for state in received])
        self.weights = self.spec.recipe.rule.begin(self.weights, center)
        self.buffers = received[0].buffers
        self.replica.load(self.weights, self.buffers)

    def step(self, received: Sequence[Received], cancelled: Callable[[], bool] = lambda: False) -> float | None:
        """Compute at what was received what the next message holds, and return the mean loss.

        Nothing is returned where the work was cancelled; there is a next version all the same.

        Raises:
            NonFiniteLossError: the loss or the gradient is not finite.

        """
        self.begin(received)
        rule = self.spec.recipe.rule
        losses = []
        for _ in range(rule.local_steps):
            loss = self.compute_unless(cancelled, rule.pieces)
            if loss is None:
                self.version += 1
                return None
            losses.append(self.check_finite(loss))
            if rule.workers_step:
                eta = torch.tensor(self.spec.recipe.step_size_at(self.progress + len(losses) - 1))
                self.weights = self.weights - eta.to(self.weights.device) * self.direction
                self.replica.load(self.weights, self.replica.buffers.clone())
        self.finish()
        return sum(losses) / len(losses)

    def finish(self) -> None:
        """Make what was computed the next version."""
        self.buffers = self.replica.buffers.clone()
        self.version += 1

    def rejoin(self, received: Sequence[Received], version: int) -> None:
        """Come back into the run at ``version``, with the servers' weights; what else it remembered is lost."""
        self.weights = torch.cat([state.vector for state in received])
        self.buffers = received[0].buffers
        self.optimizer_state = self.optimizer.init(self.weights)
        self.version = version
        self.batches.restore(self.progress)

    def state(self) -> State:
        """Return all that the steps to come depend on; its tensors are the worker's own."""
        return {
            "version": self.version,
            "progress": self.progress,
            "weights": self.weights,
            "buffers": self.buffers,
            "integer_buffers": self.replica.integer_buffers,
            "batches": self.batches.state(),
            "optimizer": leaves_of(self.optimizer_state),
        }

    def restore(self, state: State) -> None:
        """Go on from a state of a worker with the same settings."""
        device = self.weights.device
        self.version = state["version"]
        self.weights, self.buffers = state["weights"].to(device), state["buffers"].to(device)
        for name, value in state["integer_buffers"].items():
            self.replica.integer_buffers[name].copy_(value)
        self.batches.restore(state["batches"])
        self.optimizer_state = with_leaves(self.optimizer_state, state["optimizer"])

    def skip(self) -> None:
        """Pass over a step whose work was cancelled, with its mini-batches."""
        for _ in range(self.spec.recipe.rule.local_steps):
            self.skip_batch()
        self.version += 1

    @property
    def message(self) -> Tensor:
        """What the worker sends: its gradient, or its weights; shape (D,)."""
        return self.weights if self.spec.recipe.rule.workers_step else self.direction

    @property
    def message_bytes(self) -> int:
        """Bytes of one step's messages to all servers."""
        return 4 * (self.weights.numel() + self.buffers.numel())


class Server:
    """Holds a part of the weights; ``step`` takes it over one update to its next version."""

    def __init__(self, spec: ServerSpec, data: TaskData) -> None:
        recipe = spec.recipe
        self.spec = spec
        self.device = torch.device(recipe.device)
        replica = Replica(recipe.task.build_model(data, recipe.seed), self.device)
        self.sizes = replica.sizes
        self.version = 0
        self.weights = replica.weights[recipe.part(spec.place, replica.weights.numel())].clone()
        """The server's part, never changed in place."""
        # Buffers are few: the first server keeps them all.
        self.buffers = replica.buffers.clone() if spec.place == 0 else replica.buffers[:0].clone()
        self.integer_buffers = {name: buffer.clone() for name, buffer in replica.integer_buffers.items()}
        self.optimizer_state = recipe.optimizer.init(self.weights)
        self.rule_state = recipe.rule.init(self.weights, recipe.num_workers)
        self.position = Position(recipe.num_workers, recipe.rule.local_steps)
        self.history: dict[int, Tensor] = {0: self.weights} if recipe.rule.needs_gap else {}
        """Where the correction needs the gap: weights by version, of those that workers compute at, and the newest."""

    @property
    def progress(self) -> int:
        """Steps taken, of ``num_steps``: mini-batches over the number of workers, rounded down."""
        return self.position.steps

    @property
    def is_done(self) -> bool:
        """Whether all steps of the run are taken."""
        return self.progress >= self.spec.recipe.num_steps

    def step(self, received: Sequence[Received]) -> dict[str, float]:
        """Take one update over what was received, sorted by worker and version; return what was measured."""
        recipe = self.spec.recipe
        eta = torch.tensor(recipe.step_size_at(self.progress), device=self.device)
        delivered = [self._delivered(state, eta) for state in received]
        self.rule_state, moved = recipe.rule.gather(self.rule_state, self.weights, delivered)
        if recipe.rule.workers_step:
            self.weights = moved
        else:
            self.optimizer_state, direction = recipe.optimizer.direction(
                self.optimizer_state, self.weights, moved, self.sizes
            )
            self.weights = self.weights - eta * direction
        if self.buffers.numel():
            total = received[0].buffers
            for state in received[1:]:
                total = total + state.buffers
            self.buffers = total / len(received)
        self.version += 1
        if recipe.rule.needs_gap:
            self.history[self.version] = self.weights
        self.position.advance(len(received))
        return {"gradients": float(len(received))}

    def state(self) -> State:
        """Return all that the steps to come depend on; its tensors are the server's own."""
        return {
            "version": self.version,
            "progress": self.progress,
            "weights": self.weights,
            "buffers": self.buffers,
            "optimizer": leaves_of(self.optimizer_state),
            "rule": leaves_of(self.rule_state),
            "position": self.position.state(),
            "history": self.history,
        }

    def restore(self, state: State) -> None:
        """Go on from a state of a server with the same settings."""
        self.version = state["version"]
        self.weights, self.buffers = state["weights"].to(self.device), state["buffers"].to(self.device)
        self.optimizer_state = with_leaves(self.optimizer_state, state["optimizer"])
        self.rule_state = with_leaves(self.rule_state, state["rule"])
        self.position.restore(state["position"])
        self.history = {version: weights.to(self.device) for version, weights in state["history"].items()}

    def keep(self, is_needed: Callable[[int], bool]) -> None:
        """Forget the old weights, but for versions that are needed and the present one."""
        for version in [v for v in self.history if v != self.version and not is_needed(v)]:
            del self.history[version]

    def _delivered(self, state: Received, eta: Tensor) -> Delivered:
        read, recipe = state.read, self.spec.recipe
        gap = self.weights[:0]
        if recipe.rule.needs_gap:
            gap = self.weights - self.history[self.version - read.staleness]
        tau, workers = (
            torch.tensor(float(number), device=self.device) for number in (read.staleness, recipe.num_workers)
        )
        return Delivered(read.neighbor, Late(state.vector, gap, tau, eta, workers))

    @property
    def message_bytes(self) -> int:
        """Bytes of one version's message to one worker."""
        return 4 * (self.weights.numel() + self.buffers.numel())

    def snapshot(self) -> Snapshot:
        """Return the server's part of the replica as the current version left it."""
        return Snapshot(self.weights, self.buffers, self.integer_buffers)

    def evaluation_point(self, progress_before: int) -> int | None:
        """Return the progress that the last update has reached and that is evaluated, if there is one."""
        recipe = self.spec.recipe
        if self.is_done:
            return recipe.num_steps
        every = recipe.evaluate_every
        reached = self.progress // every * every
        return reached if reached > progress_before else None
