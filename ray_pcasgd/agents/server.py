"""Workers and their servers: the same shape as peers, a server's neighbors being its workers."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ray_pcasgd.agents.learner import Learner, LearnerSpec, ModelError, NonFiniteLossError, Training
from ray_pcasgd.agents.local_tensors import is_same, joined
from ray_pcasgd.agents.optimizer import SGD
from ray_pcasgd.base.numerics import is_finite
from ray_pcasgd.base.state import State, leaves_of, with_leaves
from ray_pcasgd.records import Read, Snapshot
from ray_pcasgd.rules.correction import Late
from ray_pcasgd.rules.gatherer import Position
from ray_pcasgd.rules.server import Delivered, ServerRule
from ray_pcasgd.tasks.task import TaskData

CHANGED_WEIGHTS = (
    "task.model: a forward pass changes the model's own weights; allowed with a server that holds them are models "
    "that do not"
)


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
    """A message as it was received: a server's part of the weights, or a part of what a worker sends."""

    read: Read
    vector: Tensor
    buffers: Tensor
    """Mixed buffers; the first server's alone, empty elsewhere."""
    local: Mapping[str, Tensor] = {}
    """Of a worker: its own tensors that are not as the model was made; to the first server alone."""
    with_gradient: Tensor | None = None
    """Of a worker: which parameter tensors got a gradient, shape (T,); not given: all."""


class Worker(Learner):
    """Computes at its servers' weights; ``step`` takes it from one version, which is one message, to the next."""

    spec: WorkerSpec

    def __init__(self, spec: WorkerSpec, data: TaskData) -> None:
        super().__init__(spec, data)
        rule = spec.recipe.rule
        # Momentum and weight decay are the server's, after its correction, unless workers keep weights of their own.
        self.optimizer = spec.recipe.optimizer if rule.workers_step else SGD()
        self.optimizer_state = self.optimizer.init(self.weights)
        self.made = self.replica.copy_of_local()
        """Its own tensors as the model was made, the same for all."""
        self.changed_local: dict[str, Tensor] = {}
        """Those that were changed since, as of its present version."""

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

        ``None`` is returned where the work was cancelled; there is a next version all the same.

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
        """Make what was computed the next version.

        Raises:
            NonFiniteLossError: its weights or buffers are not finite.

        """
        buffers = self.replica.buffers.clone()
        self.check_version(self.weights, buffers)
        self.buffers = buffers
        self.changed_local = {
            name: tensor.clone()
            for name, tensor in self.replica.local().items()
            if name not in self.made or not is_same(tensor, self.made[name])
        }
        self.version += 1

    def take_weights(self) -> None:
        """Go on from the weights that the forward pass has left, where the worker has weights of its own."""
        if self.spec.recipe.rule.workers_step:
            super().take_weights()
        elif not torch.equal(self.replica.weights, self.weights):
            raise ModelError(self.spec.agent, self.progress, CHANGED_WEIGHTS)

    def rejoin(self, received: Sequence[Received], version: int) -> None:
        """Come back into the run at ``version``, with the servers' weights; what else it remembered is lost."""
        self.weights = torch.cat([state.vector for state in received])
        self.buffers = received[0].buffers
        self.optimizer_state = self.optimizer.init(self.weights)
        self.replica.load_local(self.spec.recipe.build(self.data).local(all_frozen=True))
        self.changed_local = {}
        self.version = version
        self.batches.restore(self.progress)

    def state(self) -> State:
        """Return all that the steps to come depend on; its tensors are the worker's own."""
        return {
            "version": self.version,
            "progress": self.progress,
            "weights": self.weights,
            "buffers": self.buffers,
            "local": self.replica.local(),
            "batches": self.batches.state(),
            "optimizer": leaves_of(self.optimizer_state),
        }

    def restore(self, state: State) -> None:
        """Go on from a state of a worker with the same settings."""
        device = self.weights.device
        self.version = state["version"]
        self.weights, self.buffers = state["weights"].to(device), state["buffers"].to(device)
        self.replica.load_local(state["local"])
        self.batches.restore(state["batches"])
        self.optimizer_state = with_leaves(self.optimizer_state, state["optimizer"])

    def skip(self) -> None:
        """Pass over a step whose work was cancelled, with its mini-batches."""
        for _ in range(self.spec.recipe.rule.local_steps):
            self.skip_batch()
        self.version += 1

    @property
    def own_step_size(self) -> float:
        """0: the server tests what becomes of a gradient, and the worker's own weights are tested as they are sent."""
        return 0.0

    @property
    def message(self) -> Tensor:
        """What the worker sends: its gradient, or its weights; shape (D,)."""
        return self.weights if self.spec.recipe.rule.workers_step else self.direction

    @property
    def message_bytes(self) -> int:
        """Bytes of one step's messages to all servers."""
        own = sum(tensor.nbytes for tensor in self.changed_local.values())
        return 4 * (self.weights.numel() + self.buffers.numel()) + own


class Server:
    """Holds a part of the weights; ``step`` takes it over one update to its next version."""

    def __init__(self, spec: ServerSpec, data: TaskData) -> None:
        recipe = spec.recipe
        self.spec = spec
        self.device = torch.device(recipe.device)
        replica = recipe.build(data)
        self.sizes = replica.sizes
        self.version = 0
        self.part = recipe.part(spec.place, replica.weights.numel())
        self.weights = replica.weights[self.part].clone()
        """The server's part, never changed in place."""
        # Buffers are few: the first server keeps them all.
        self.buffers = replica.buffers.clone() if spec.place == 0 else replica.buffers[:0].clone()
        self.made = replica.copy_of_local()
        """The tensors that are each worker's own, as the model was made."""
        self.local = self.made
        """The same, as they follow from its workers'; the first server's alone."""
        self.forms = replica.forms
        """Shape and type of the tensors that workers may send besides, where they have any yet."""
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
        """Take one update over what was received, sorted by worker and version; return what was measured.

        Raises:
            NonFiniteLossError: the result is not finite; the server stays at its version.

        """
        recipe = self.spec.recipe
        eta = torch.tensor(recipe.step_size_at(self.progress), device=self.device)
        delivered = [self._delivered(state, eta) for state in received]
        self.rule_state, moved = recipe.rule.gather(self.rule_state, self.weights, delivered)
        if recipe.rule.workers_step:
            weights = moved
        else:
            self.optimizer_state, direction = recipe.optimizer.direction(
                self.optimizer_state, self.weights, moved, self.sizes, self.moving(received)
            )
            weights = self.weights - eta * direction
        buffers = self.buffers
        if self.buffers.numel():
            buffers = received[0].buffers
            for state in received[1:]:
                buffers = buffers + state.buffers
            buffers = buffers / len(received)
        for what, numbers in (("weights", weights), ("buffers", buffers)):
            if not is_finite(numbers):
                raise NonFiniteLossError(self.spec.agent, self.progress, math.nan, what)
        self.weights, self.buffers = weights, buffers
        if self.spec.place == 0:
            # What a worker has not sent is with it as it was made.
            self.local = joined([{**self.made, **state.local} for state in received])
        self.version += 1
        if recipe.rule.needs_gap:
            self.history[self.version] = self.weights
        self.position.advance(len(received))
        return {"gradients": float(len(received))}

    def moving(self, received: Sequence[Received]) -> Tensor | None:
        """Return which of the server's parameters some worker has a gradient of; ``None`` where that is all."""
        reached = [state.with_gradient for state in received if state.with_gradient is not None]
        if len(reached) < len(received):
            return None
        by_any = torch.stack(reached).any(0)
        return by_any.repeat_interleave(torch.tensor(self.sizes, device=self.device))[self.part]

    def state(self) -> State:
        """Return all that the steps to come depend on; its tensors are the server's own."""
        return {
            "version": self.version,
            "progress": self.progress,
            "weights": self.weights,
            "buffers": self.buffers,
            "local": self.local,
            "optimizer": leaves_of(self.optimizer_state),
            "rule": leaves_of(self.rule_state),
            "position": self.position.state(),
            "history": self.history,
        }

    def restore(self, state: State) -> None:
        """Go on from a state of a server with the same settings."""
        self.version = state["version"]
        self.weights, self.buffers = state["weights"].to(self.device), state["buffers"].to(self.device)
        self.local = {name: tensor.to(self.device) for name, tensor in state["local"].items()}
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
        return Snapshot(self.weights, self.buffers, self.local)

    def evaluation_point(self, progress_before: int) -> int | None:
        """Return the progress that the last update has reached and that is evaluated, if there is one."""
        recipe = self.spec.recipe
        if self.is_done:
            return recipe.num_steps
        every = recipe.evaluate_every
        reached = self.progress // every * every
        return reached if reached > progress_before else None
