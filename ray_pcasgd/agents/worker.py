"""Workers: they compute at their servers' weights, and send what they have computed."""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ray_pcasgd.agents.attacks import saved
from ray_pcasgd.agents.error_feedback import ErrorFeedback
from ray_pcasgd.agents.learner import Learner, ModelError
from ray_pcasgd.agents.local_tensors import is_same
from ray_pcasgd.agents.mailbox import Delivery
from ray_pcasgd.agents.optimizer import SGD
from ray_pcasgd.agents.participant import (
    NO_LOSS,
    Family,
    Incoming,
    LearnerSpec,
    Outcome,
    Participant,
    Published,
    Received,
)
from ray_pcasgd.agents.server_recipe import ServerRecipe
from ray_pcasgd.agents.wire import WireFormat
from ray_pcasgd.base.state import State
from ray_pcasgd.records import Read, Row
from ray_pcasgd.tasks.batches import Batches
from ray_pcasgd.tasks.task import TaskData
from ray_pcasgd.tasks.trees import moved

WORKERS = Family(slack=0, prepares=False, counts=False, title="Worker")

CHANGED_WEIGHTS = (
    "task.model: a forward pass changes the model's own weights; allowed with a server that holds them are models "
    "that do not"
)


@dataclass(frozen=True, kw_only=True)
class WorkerSpec(LearnerSpec):
    """What a worker is built from; its neighbors are the servers."""

    recipe: ServerRecipe

    @property
    def family(self) -> Family:
        """What the agent has in common with those of its family."""
        return WORKERS

    def build(self, data: TaskData) -> "Worker":
        """Return the agent."""
        return Worker(self, data)


class Worker(Learner, Participant):
    """Computes at its servers' weights; ``step`` takes it from one version, which is one message, to the next."""

    spec: WorkerSpec

    def __init__(self, spec: WorkerSpec, data: TaskData) -> None:
        super().__init__(spec, data)
        rule = spec.recipe.rule
        # Momentum and weight decay are the server's, after its correction, unless workers keep weights of their own.
        self.optimizer = spec.recipe.optimizer if rule.workers_step else SGD()
        self.optimizer_state = self.optimizer.start(self.weights, self.replica.parts)
        self.made = self.replica.copy_of_local()
        """Its own tensors as the model was made, the same for all."""
        self.changed_local: dict[str, Tensor] = {}
        """Those that were changed since, as of its present version."""
        self.pieces = max(rule.pieces, spec.recipe.accumulate)
        """In which a mini-batch is computed."""
        self.may_be_stacked = self.pieces == 1 and not rule.workers_step and spec.recipe.precision == "float32"
        self.start = self.weights
        """Where its present round has begun; in fragments, each of them where it was taken in last."""
        self.sent = self.weights
        """What a worker with the local optimizer sends of its last round, shape (D,)."""
        form = spec.recipe.format_of_workers
        parts = spec.recipe.num_servers * rule.message_vectors
        num_feedbacks = parts * spec.recipe.wire.fragments if form.is_sparse else 0
        self.feedback = tuple(ErrorFeedback(form) for _ in range(num_feedbacks))
        """Of each part of a message, fragment by fragment, where most of what is sent is left out."""
        self.loss = math.nan
        """Of its present version, where that is a step's."""
        self.local_step = 0
        """Mini-batches since its present version, where the next one has several."""

    @property
    def progress(self) -> int:
        """Mini-batches so far."""
        return self.version * self.round_length

    @property
    def round_length(self) -> int:
        """Mini-batches of one message."""
        return self.spec.recipe.local_steps[self.spec.agent]

    @property
    def is_running(self) -> bool:
        """Whether the agent takes further steps: its servers say when a run is over."""
        return True

    def take(self, row: Row, received: Sequence[Received]) -> Outcome:
        """Take a step, pass over one that was cancelled, or come back as the worker of a recorded run did."""
        if row.kind == "cancelled":
            self.skip()
            return NO_LOSS
        if row.kind == "rejoined":
            self.rejoin(received, row.step + 1)
            return NO_LOSS
        loss = self.step(received)
        assert loss is not None
        return self.taken(loss)

    def taken(self, loss: float) -> Outcome:
        """Return what a step came to."""
        self.loss = loss
        return Outcome(loss, self.own_measures())

    def message(self, row: Row | None) -> Published | None:
        """Return what a step has computed; of other rows nothing is published."""
        if row is None or row.kind != "step":
            return None
        notes = {read.neighbor: Delivery(read.version, read.version + read.staleness, self.loss) for read in row.reads}
        return Published(
            self.encoded, self.buffers, notes=notes, local=self.changed_local, with_gradient=self.with_gradient
        )

    @property
    def encoded(self) -> Tensor:
        """What the worker sends, as it travels: one server's part after another."""
        recipe, vector = self.spec.recipe, self.computed
        fragments = recipe.fragments
        if recipe.format_of_workers.is_plain and not recipe.has_fragments and recipe.rule.message_vectors == 1:
            return vector
        parts = [fragments.cut(whole, self.version) for whole in recipe.parts_of_message(vector)]
        feedback = self.feedback[fragments.part(self.version) :: fragments.fragments]
        forms = feedback or (recipe.format_of_workers,) * len(parts)
        draws = (recipe.draw_of_worker(self.spec.agent, self.version, place) for place in range(len(parts)))
        return torch.cat([form.encode(part, draw) for form, part, draw in zip(forms, parts, draws, strict=True)])

    def incoming(self) -> Incoming:
        """Return what the messages to the worker hold: the weights, or parts of them that differ in size."""
        recipe = self.spec.recipe
        differ = recipe.num_servers > 1 or recipe.has_fragments
        size, own = (None if differ else self.weights.numel()), recipe.wire.weights
        encoded = {} if own.is_plain else {"weights": None if size is None else own.num_bytes(size)}
        return Incoming(size, self.buffers.numel(), encoded=encoded)

    def outgoing(self) -> Mapping[str, int | None]:
        """Return the bytes of what the worker publishes, to all servers together, where these are fewer."""
        own = self.spec.recipe.format_of_workers
        return {} if own.is_plain else {"weights": self._bytes_of(own)}

    def example_of(self, name: str) -> Tensor:
        """Return a tensor of the form in which the agent publishes its ``weights`` or ``buffers``."""
        example = super().example_of(name)
        if name != "weights" or example.dtype == torch.uint8:
            return example
        return example.repeat(self.spec.recipe.rule.message_vectors)[: sum(self._lengths)]

    @property
    def _lengths(self) -> list[int]:
        """Numbers of each part of a message, as ``parts_of_message`` has them."""
        recipe = self.spec.recipe
        of_servers = [recipe.fragments.length(size) for size in recipe.sizes(self.weights.numel())]
        return [length for length in of_servers for _ in range(recipe.rule.message_vectors)]

    def _bytes_of(self, own: WireFormat) -> int:
        """Return the bytes of a message to all servers."""
        return sum(map(own.num_bytes, self._lengths))

    def starts(self) -> dict[int, Published]:
        """Return each server's version 0: its part of what the worker starts from itself."""
        recipe, whole = self.spec.recipe, self.weights.clone()
        found = {}
        for server in self.spec.neighbors:
            place = server - recipe.num_workers
            weights = recipe.published(server, 0, whole[recipe.part(place, whole.numel())])
            found[server] = Published(weights, self.buffers[:0] if place else self.buffers)
        return found

    def opened(self, read: Read, published: Published) -> Received:
        """Return a server's version as the worker reads it."""
        recipe = self.spec.recipe
        size = recipe.sizes(self.weights.numel())[read.neighbor - recipe.num_workers]
        return super().opened(read, published)._replace(weights=recipe.opened(published.weights, size))

    def share(self, published: Published, reader: int) -> Published:
        """Return a server's part of what the worker has published; buffers and own tensors are the first server's."""
        recipe = self.spec.recipe
        place, own = reader - recipe.num_workers, recipe.format_of_workers
        lengths = self._lengths if own.is_plain else [own.num_bytes(length) for length in self._lengths]
        each = recipe.rule.message_vectors
        part = published.weights[sum(lengths[: place * each]) : sum(lengths[: (place + 1) * each])]
        if place:
            return replace(published, weights=part, buffers=published.buffers[:0], local={})
        return replace(published, weights=part)

    def batch_key(self, row: Row) -> Hashable | None:
        """Return what rows have in common that may run as one batch: they compute."""
        return "step" if row.kind == "step" and self.may_be_stacked else None

    def evaluation_point(self, row: Row) -> int | None:
        """Return ``None``: servers are evaluated."""
        return None

    def bytes_sent(self, row: Row, receivers: int | None = None) -> int:
        """Return the bytes that are sent for a row, to all servers; where the worker is back, those of its weights."""
        recipe = self.spec.recipe
        if row.kind == "rejoined":
            sizes = recipe.sizes(self.weights.numel())
            return sum(map(recipe.bytes_of_version, sizes)) + 4 * self.buffers.numel()
        return self.message_bytes if row.kind == "step" else 0

    def begin(self, received: Sequence[Received]) -> None:
        """Take in the servers' versions, sorted by server, or the fragment that its last message held."""
        recipe, version = self.spec.recipe, self.version
        fragments, sizes = recipe.fragments, recipe.sizes(self.weights.numel())
        begun = [
            recipe.rule.begin(
                fragments.cut(own, version),
                fragments.cut(state.weights, version) if len(state.weights) == len(own) else state.weights,
            )
            for own, state in zip(self.weights.split_with_sizes(sizes), received, strict=True)
        ]

        def taken_in(others: Tensor) -> Tensor:
            wholes = zip(begun, others.split_with_sizes(sizes), strict=True)
            return torch.cat([fragments.filled(part, version, own) for part, own in wholes])

        self.weights = taken_in(self.weights)
        self.start = taken_in(self.start) if recipe.has_fragments else self.weights
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
        for number in range(self.round_length):
            self.local_step = number
            loss = self.compute_unless(cancelled, self.pieces)
            if loss is None:
                self.version += 1
                return None
            losses.append(self.check_finite(loss))
            if rule.workers_step:
                self.take_local_step()
        self.finish()
        self.sent = rule.sent(self.start, self.weights)
        return sum(losses) / len(losses)

    def compute_over(
        self,
        shard: Batches,
        passes: int,
        cancelled: Callable[[], bool],
        forget: Callable[[], None] = lambda: None,
    ) -> float | None:
        """Set ``direction`` to u of all samples of a shard, and return their mean loss; ``None``: it was cancelled.

        Args:
            shard: The shard, as a stream of its own.
            passes: How often that was done before.
            cancelled: Whether the work is not wanted any more.
            forget: Called after each mini-batch's passes.

        """
        task = self.spec.recipe.task
        total, loss, whole = torch.zeros_like(self.weights), 0.0, 0
        for number, batch in shard.whole(passes):
            weight = task.weight_of(batch)
            own = self.as_trained_on(moved(batch, self.device))
            mean = self.compute_on(own, cancelled, self.pieces, ("snapshots", number))
            forget()
            if mean is None:
                return None
            # A loss over nothing is not a number.
            if weight:
                total += weight * self.direction
                loss, whole = loss + weight * mean, whole + weight
        self.direction = total / max(whole, 1)
        return loss / max(whole, 1)

    def optimize(self, gradient: Tensor) -> None:
        """Set ``direction`` to the optimizer's for a mini-batch's gradient, shape (D,), as the rule has it."""
        super().optimize(self.spec.recipe.rule.pulled(gradient, self.weights, self.start))

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
        self.start = self.weights = torch.cat([state.weights for state in received])
        self.buffers = received[0].buffers
        self.optimizer_state = self.optimizer.start(self.weights, self.replica.parts)
        self.replica.load_local(self.spec.recipe.build(self.data).local(all_frozen=True))
        self.changed_local = {}
        for one in self.feedback:
            one.forget()
        if self.attacker is not None:
            self.attacker.forget()
        self.forget_scale()
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
            "optimizer": self.optimizer.saved(self.optimizer_state),
            **({"start": self.start} if self.spec.recipe.has_fragments else {}),
            **({"feedback": [one.state() for one in self.feedback]} if self.feedback else {}),
            **saved(self.attacker),
            **self.saved_scale(),
        }

    def restore(self, state: State) -> None:
        """Go on from a state of a worker with the same settings."""
        device = self.weights.device
        self.version = state["version"]
        self.weights, self.buffers = state["weights"].to(device), state["buffers"].to(device)
        if self.spec.recipe.has_fragments:
            self.start = state["start"].to(device)
        self.replica.load_local(state["local"])
        self.batches.restore(state["batches"])
        self.optimizer_state = self.optimizer.restored(self.optimizer_state, state["optimizer"])
        for one, own in zip(self.feedback, state["feedback"] if self.feedback else (), strict=True):
            one.restore(own, device)
        if self.attacker is not None:
            self.attacker.restore(state["attacker"], device)
        self.restore_scale(state)

    def skip(self) -> None:
        """Pass over a step whose work was cancelled, with its mini-batches."""
        for _ in range(self.round_length):
            self.skip_batch()
        self.version += 1

    @property
    def present_step_size(self) -> float:
        """The step size eta of the step whose gradient is computed."""
        return self.spec.recipe.step_size_at(self.progress + self.local_step)

    @property
    def own_step_size(self) -> float:
        """0: the server tests what becomes of a gradient, and the worker's own weights are tested as they are sent."""
        return 0.0

    @property
    def computed(self) -> Tensor:
        """What the worker sends: its gradient, what the rule makes of its round, or an attacker's lie; shape (D,).

        Lies that look at others are told at the server.
        """
        own = self.sent if self.spec.recipe.rule.workers_step else self.direction
        if self.attacker is None or self.attacker.reads_others:
            return own
        return self.attacker.sent(self.version, own)

    @property
    def message_bytes(self) -> int:
        """Bytes of one step's messages to all servers."""
        own = sum(tensor.nbytes for tensor in self.changed_local.values())
        return self._bytes_of(self.spec.recipe.format_of_workers) + 4 * self.buffers.numel() + own
