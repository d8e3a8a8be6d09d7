"""What computes gradients: a replica of the model, a shard's batches and the local optimizer."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ray_pcasgd.agents.attacks import attacker_of, flipped
from ray_pcasgd.agents.clipping import clipped
from ray_pcasgd.agents.curvature import CompiledError, curvature_along
from ray_pcasgd.agents.fresh_replicas import FreshReplicas
from ray_pcasgd.agents.loss_scale import LossScale
from ray_pcasgd.agents.module_tensors import TensorsChangedError
from ray_pcasgd.agents.participant import LearnerSpec
from ray_pcasgd.agents.replica import Replica, unflatten
from ray_pcasgd.base import numerics
from ray_pcasgd.base.determinism import require_determinism
from ray_pcasgd.base.randomness import stream_seed
from ray_pcasgd.base.state import State
from ray_pcasgd.records import Snapshot
from ray_pcasgd.tasks.batches import Batches
from ray_pcasgd.tasks.loading import BackgroundBatches
from ray_pcasgd.tasks.ray_stream import StreamBatches
from ray_pcasgd.tasks.task import TaskData
from ray_pcasgd.tasks.trees import Batch, moved, split

AnyBatches = Batches | BackgroundBatches | StreamBatches

_LARGEST = torch.finfo(torch.float32).max


class LearnerError(RuntimeError):
    """A step is impossible, for a reason that lies in the model or the settings."""

    def __init__(self, agent: int, step: int, *more: Any) -> None:
        super().__init__(agent, step, *more)
        self.agent = agent
        self.step = step


class NonFiniteLossError(LearnerError):
    """A mini-batch loss that is infinite or not a number; or the gradient, the weights or the buffers are."""

    def __init__(self, agent: int, step: int, loss: float, what: str = "") -> None:
        super().__init__(agent, step, loss, what)
        self.loss = loss
        self.what = what
        """The part that is not finite although the loss was: ``weights`` or ``buffers``."""

    def __str__(self) -> str:
        if self.what:
            return f"agent {self.agent} has {self.what} that are not finite after step {self.step}"
        gradient = " with a gradient that is not finite" if math.isfinite(self.loss) else ""
        return f"agent {self.agent} has loss {self.loss}{gradient} at step {self.step}"


class ModelError(LearnerError):
    """The model's own code changed its tensors in a step in a way that a run cannot follow."""

    def __init__(self, agent: int, step: int, reason: str) -> None:
        super().__init__(agent, step, reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"agent {self.agent} at step {self.step}: {self.reason}"


class Learner:
    """One agent's replica, batches and optimizer."""

    def __init__(self, spec: LearnerSpec, data: TaskData) -> None:
        recipe = spec.recipe
        self.spec = spec
        self.data = data
        self.version = 0
        self.attacker = attacker_of(recipe.faults, recipe.seed, spec.agent)
        """Its memory as an attacker; ``None`` where it is honest."""
        self.replica = recipe.build(data)
        self.weights = self.replica.weights.clone()
        """The current version's weights, never changed in place: they are what neighbors are sent."""
        self.buffers = self.replica.buffers.clone()
        self.direction = torch.zeros_like(self.weights)
        self.with_gradient: Tensor | None = None
        """Which parameter tensors the last backward passes reached, shape (T,); ``None`` where they reached all."""
        self.loss_scale = LossScale() if recipe.precision == "fp16" else None
        """By what the next step's loss is multiplied; ``None``: by nothing."""
        self.batches = self.loaded(self.stream("batches"))
        self.fresh_replicas = FreshReplicas(partial(recipe.build, data), recipe.replica_of)
        self.optimizer = recipe.optimizer
        self.optimizer_state = self.optimizer.start(self.weights, self.replica.parts)

    @property
    def progress(self) -> int:
        """Steps taken so far, of ``num_steps``."""
        return self.version

    @property
    def device(self) -> torch.device:
        """Where the agent computes."""
        return self.replica.device

    def stream(self, purpose: str, at_most: int | None = None) -> Batches | StreamBatches:
        """Return the mini-batches of one of the agent's streams, with fewer samples where there would be too many."""
        recipe, spec = self.spec.recipe, self.spec
        size = recipe.batch_size if at_most is None else min(recipe.batch_size, at_most)
        return recipe.task.batches(self.data, spec.shard, size, recipe.seed, spec.agent, purpose)

    def loaded(self, batches: Batches | StreamBatches) -> AnyBatches:
        """Return a stream that is drawn from at each step, loaded as the settings say."""
        loading = self.spec.recipe.task.loading
        return loading.start(batches, self.device) if isinstance(batches, Batches) else batches

    def close(self) -> None:
        """End what makes batches in the background."""
        self.batches.close()

    def compute(self) -> float:
        """Set ``direction`` to u of the next mini-batch at the current weights, and return the batch's loss."""
        loss = self.compute_unless(lambda: False, self.spec.recipe.accumulate)
        assert loss is not None
        return loss

    def compute_unless(self, cancelled: Callable[[], bool], pieces: int = 1) -> float | None:
        """Do what ``compute`` does, unless it is cancelled meanwhile.

        The batch is taken in several pieces of almost equal size; before each of them, ``cancelled`` is asked, and
        ``None`` is returned where it says so.
        """
        return self.compute_on(self.draw(self.batches), cancelled, pieces)

    def compute_on(
        self, batch: Batch, cancelled: Callable[[], bool], pieces: int, seeded_as: tuple[str, int] | None = None
    ) -> float | None:
        """Do what ``compute_unless`` does with a mini-batch; ``seeded_as`` names what is random in its forward pass."""
        recipe = self.spec.recipe
        before = self.replica.copy_of_local() if pieces > 1 else None
        self.replica.forget_gradients()
        self.seed_forward_pass(*seeded_as or ())
        total = 0.0
        whole = recipe.task.weight_of(batch) if pieces > 1 else 0
        pieces = pieces if whole else 1
        for some in split(batch, pieces):
            if cancelled():
                if before is not None:
                    # No trace of the pieces that were computed: a replay passes over the whole batch.
                    with self.following_tensors():
                        self.replica.take_in()
                    self.replica.load_local(before)
                return None
            weight = recipe.task.weight_of(some) if whole else 0
            if weight or not whole:
                loss = recipe.loss_of(self.replica.module, some)
                if whole:
                    # By how much counts in it, so that the pieces' sum is the mean over the batch.
                    loss = loss * (weight / whole)
                torch.autograd.backward(loss if self.loss_scale is None else loss * self.loss_scale.factor)
                total += loss.item()
        with self.following_tensors():
            self.replica.take_in()
            self.take_weights()
        gradient, self.with_gradient = self.replica.take_gradient()
        if self.loss_scale is not None:
            gradient = self.unscaled(gradient, self.loss_scale)
        self.direction = clipped(recipe.gradient_clipping, gradient)
        if not self.optimizes_later:
            self.optimize(self.direction)
        return total

    def unscaled(self, gradient: Tensor, scale: LossScale) -> Tensor:
        """Return the gradient of a loss that was scaled, shape (D,), and note the next step's scale.

        One that is not finite by its scale is 0, and the step one in which no parameter got a gradient: all stay where
        they are, with what the optimizer remembers of them, wherever the optimizer is.
        """
        is_finite = numerics.is_finite(gradient)
        if not is_finite and not scale.may_shrink:
            return gradient
        self.loss_scale = scale.following(is_finite)
        if is_finite:
            return gradient.mul_(1 / scale.factor)
        self.with_gradient = torch.zeros(len(self.replica.sizes), dtype=torch.bool, device=self.device)
        return torch.zeros_like(gradient)

    def own_measures(self) -> dict[str, float]:
        """Return what a step's report says of the scale of losses, where there is one, and of the optimizer."""
        scale = {} if self.loss_scale is None else {"loss_scale": self.loss_scale.factor}
        return scale | self.optimizer.measures(self.optimizer_state)

    def saved_scale(self) -> State:
        """Return the part of a state that has the scale of losses, where there is one."""
        return {} if self.loss_scale is None else {"loss_scale": list(self.loss_scale)}

    def restore_scale(self, state: State) -> None:
        """Go on with the scale of a state, where there is one."""
        if self.loss_scale is not None:
            self.loss_scale = LossScale(*state["loss_scale"])

    def forget_scale(self) -> None:
        """Begin anew with the scale of losses, where there is one."""
        self.loss_scale = None if self.loss_scale is None else LossScale()

    optimizes_later = False
    """Whether ``compute`` leaves the bare gradient in ``direction``, because it is going to be corrected."""

    def optimize(self, gradient: Tensor) -> None:
        """Set ``direction`` to the optimizer's for a gradient of shape (D,)."""
        self.optimizer_state, self.direction = self.optimizer.direction(
            self.optimizer_state, self.point, gradient, self.replica.parts, self.moving, self.present_step_size
        )

    @property
    def point(self) -> Tensor:
        """Where the last gradient was computed, shape (D,)."""
        return self.weights

    @property
    def present_step_size(self) -> float:
        """The step size eta of the step whose gradient is computed."""
        return self.spec.recipe.step_size_at(self.progress)

    def take_local_step(self) -> None:
        """Move the agent's own weights by its direction: ``z <- z - eta u``, with the buffers as they are."""
        eta = torch.tensor(self.present_step_size)
        self.weights = self.weights - eta.to(self.weights.device) * self.direction
        self.replica.load(self.weights, self.replica.buffers.clone())

    @property
    def moving(self) -> Tensor | None:
        """Which numbers the last backward passes gave a gradient, shape (D,); ``None`` where all got one."""
        if self.with_gradient is None:
            return None
        return self.with_gradient.repeat_interleave(torch.tensor(self.replica.sizes, device=self.replica.device))

    @contextmanager
    def following_tensors(self) -> Iterator[None]:
        """Say of which agent and step the model's tensors cannot be followed."""
        try:
            yield
        except TensorsChangedError as error:
            raise ModelError(self.spec.agent, self.progress, str(error)) from error

    def take_weights(self) -> None:
        """Go on from the weights that the forward pass has left: some models change their own."""
        if not torch.equal(self.replica.weights, self.weights):
            self.weights = self.replica.weights.clone()

    def warm_up(self) -> None:
        """Run one forward and backward pass without an effect, so that libraries load what they load at first use.

        The first passes take several times as long as later ones. Where agents begin to train together without
        waiting for each other, the first one to finish them would be far ahead.
        """
        recipe, number = self.spec.recipe, self.batches.state()
        batch = self.draw(self.batches)
        self.batches.restore(number)
        self.seed_forward_pass()
        # Of another replica: the model's own code may count its passes.
        torch.autograd.backward(recipe.loss_of(recipe.build(self.data).module, batch))

    def require_determinism(self) -> None:
        """On a GPU, let this process compute steps by deterministic kernels alone, where the model allows it."""
        if self.device.type == "cuda":
            require_determinism(self.warm_up)

    def skip_batch(self) -> None:
        """Pass over the next mini-batch."""
        self.batches.restore(self.batches.state() + 1)

    def draw(self, batches: AnyBatches) -> Batch:
        """Return the next mini-batch of one of the agent's streams, on the agent's device."""
        batch = moved(batches.next(), self.replica.device)
        return self.as_trained_on(batch) if batches is self.batches else batch

    def as_trained_on(self, batch: Batch) -> Batch:
        """Return a mini-batch with the labels that the agent trains on: an attacker may flip them."""
        if self.attacker is None or not self.attacker.flips_labels:
            return batch
        inputs, targets = batch
        return inputs, flipped(targets, self.data.num_outputs)

    def seed_forward_pass(self, purpose: str = "forward", number: int | None = None) -> None:
        """Seed the global generators, which dropout draws from and cannot be told otherwise.

        Of each mini-batch anew: by its ``number``, or by how many were drawn.
        """
        number = self.batches.state() if number is None else number
        seed = stream_seed(self.spec.recipe.seed, purpose, self.spec.agent, number)
        # Not torch.manual_seed: without a GPU it formats a stack trace at every call, half of a small network's step.
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            # Not torch.cuda.manual_seed, which seeds the current device, whichever the agent computes on.
            index = torch.cuda.current_device() if self.device.index is None else self.device.index
            torch.cuda.default_generators[index].manual_seed(seed)

    def loss_at(
        self, weights: Tensor, buffers: Tensor, local: dict[str, Tensor], inputs: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return the loss at any weights (D,) and buffers, and the buffers as the forward pass left them; pure.

        For what runs stacked: model and loss, without a step of the user's own, in float32.
        """
        replica = self.replica
        # Each buffer is cloned by itself: under vmap, what is written to a view of the flat buffer is lost.
        mixed = {name: view.clone() for name, view in unflatten(buffers, replica.buffer_layout).items()}
        tensors = unflatten(weights, replica.layout) | mixed | {name: value.clone() for name, value in local.items()}
        loss = self.spec.recipe.task.loss(torch.func.functional_call(replica.module, tensors, (inputs,)), targets)
        # By now the dict holds whatever the module has put into the place of what it was given.
        left = [tensors[slot.name].reshape(-1) for slot in replica.buffer_layout]
        return loss, torch.cat(left) if left else buffers, {name: tensors[name] for name in local}

    def curvature_on(self, snapshot: Snapshot, batch: Batch, direction: Tensor) -> float | None:
        """Return a mini-batch's curvature at a snapshot along a direction; ``None`` where it is not finite.

        **Choice**: in float32, whatever the run's precision: of second derivatives, 8 bits would leave noise.
        """

        def measure(replica: Replica) -> float | None:
            replica.load(snapshot.weights, snapshot.buffers)
            replica.load_local(snapshot.local)
            self.seed_forward_pass()
            loss = partial(self.spec.recipe.task.loss_of, replica.module, batch)
            return curvature_along(loss, replica.parameters(), direction)

        # Of another module: the model's own code may count its passes.
        try:
            return self.fresh_replicas.measure(measure)
        except CompiledError:
            return self.fresh_replicas.measure(measure)

    def feedback_of(self, curvature: float | None, state: Any, direction: Tensor) -> float | None:
        """Return what the optimizer makes of a curvature along a direction, in one of its states."""
        if curvature is None:
            return None
        return self.optimizer.feedback(curvature, state, direction, self.replica.parts)

    def check_finite(self, loss: float) -> float:
        """Return the loss, or raise ``NonFiniteLossError`` where it, or the result of its step, is not finite.

        A finite loss may have a gradient that is not finite (a norm at 0), or one that is too large for any step.
        """
        # The cheapest bound first; where it tells nothing, each number is looked at.
        step_size, buffers = self.own_step_size, self.replica.buffers
        squared, total = numerics.values_of(torch.dot(self.direction, self.direction), buffers.sum())
        largest = math.sqrt(squared)
        if not step_size * largest <= _LARGEST:
            largest = self.direction.abs().max().item()
        if not (math.isfinite(loss) and math.isfinite(largest)):
            raise NonFiniteLossError(self.spec.agent, self.progress, loss)
        # Now rather than with the next version: by then others have read the direction, and predict with it.
        if step_size * largest > _LARGEST:
            raise NonFiniteLossError(self.spec.agent, self.progress, loss, "weights")
        if not (math.isfinite(total) or numerics.is_finite(buffers)):
            raise NonFiniteLossError(self.spec.agent, self.progress, loss, "buffers")
        return loss

    @property
    def own_step_size(self) -> float:
        """By what the direction is going to be multiplied."""
        return self.present_step_size

    def check_version(self, weights: Tensor, buffers: Tensor) -> None:
        """Raise ``NonFiniteLossError`` where the next version would not be finite, before others can read it.

        After the last step there is no further loss that would show it.
        """
        for what, is_finite in zip(("weights", "buffers"), numerics.all_finite(weights, buffers), strict=True):
            if not is_finite:
                raise NonFiniteLossError(self.spec.agent, self.progress, math.nan, what)

    def snapshot(self) -> Snapshot:
        """Return the replica as the current version left it."""
        return Snapshot(self.weights, self.buffers, self.replica.copy_of_local())

    def evaluate(self) -> dict[str, float]:
        """Return the current version's test loss and metrics."""
        with self.replica.undisturbed():
            return self.spec.recipe.examine(self.replica.module, self.data).values
