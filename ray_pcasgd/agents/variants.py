"""Variants of one agent that differ only in numbers, stepped all at once: theta, step size, lambda."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from ray_pcasgd.agents.clipping import clipped
from ray_pcasgd.agents.curvature import MeasuredCurvature
from ray_pcasgd.agents.learner import NonFiniteLossError
from ray_pcasgd.agents.participant import NO_LOSS, Outcome, Received
from ray_pcasgd.agents.peer import AgentSpec, Peer
from ray_pcasgd.agents.peer_memory import zeros_for
from ray_pcasgd.base.numerics import is_finite
from ray_pcasgd.base.state import State
from ray_pcasgd.records import Own, Reads, Row, Snapshot, Update
from ray_pcasgd.tasks.task import TaskData

_READ_DIMS = Reads._make((0, 0, 0, None, None, None, None))
"""Mixing, staleness, age and reliability are the same for all variants: they follow from the schedule."""


class Variants(Peer):
    """P variants of one peer: the same mini-batches and reads, other numbers, and so other weights.

    What an agent holds with shape (D,) has shape (P, D) here, and every step calls the same functions under
    ``torch.func.vmap``. Forward and backward passes use other kernels than an agent alone does, and differ from it by
    float32 rounding.
    """

    def __init__(self, specs: Sequence[AgentSpec], data: TaskData) -> None:
        # What a variant with a lambda of 0 does without, the others may need.
        super().__init__(max(specs, key=lambda spec: spec.recipe.rule.needs_drift), data)
        self.specs = specs
        self.losses: list[float] | None = None
        """Of the next step, of each variant, where they are computed already."""
        self._local: dict[str, Tensor]
        self.weights, self.buffers, self.direction, self.optimizer_state, self.rule_state, self._local = tree_map(
            lambda tensor: tensor.expand(len(specs), *tensor.shape).clone(),
            (
                self.weights,
                self.buffers,
                self.direction,
                self.optimizer_state,
                self.rule_state,
                self.replica.local(),
            ),
        )
        if self.curvature is not None:
            self.curvature = MeasuredCurvature(self.curvature.every, len(specs))
        self.overflows: list[NonFiniteLossError | None] = [None] * len(specs)
        """What came of the last step: the error of each variant whose weights or buffers are not finite."""
        self._running_buffers = self.buffers.clone()
        self._nothing = torch.zeros(len(specs), 0, device=self.weights.device)
        self._zeros = zeros_for(self.weights)
        if self.displacements is not None:
            self.displacements = self.path()

    @property
    def running_buffers(self) -> Tensor:
        """The mixed buffers as the last forward pass left them, shape (P, F)."""
        return self._running_buffers

    def load(self) -> None:
        """Make the present version's buffers those of the next forward pass."""
        self._running_buffers = self.buffers

    @property
    def local(self) -> dict[str, Tensor]:
        """The agent's own tensors as the last forward pass left them, with a leading axis of P."""
        return self._local

    def forget_local(self) -> None:
        """Begin anew in the tensors that are the agent's own."""
        made = self.spec.recipe.build(self.data).local()
        self._local = {name: tensor.expand(len(self.specs), *tensor.shape).clone() for name, tensor in made.items()}

    def reset_memory(self) -> None:
        """Begin anew in what optimizer and rule remember."""
        rule, neighbors = self.spec.recipe.rule, len(self.spec.neighbors)
        self.optimizer_state = self._each(partial(self.optimizer.start, parts=self.replica.parts))(self.weights)
        self.rule_state = self._each(lambda weights: rule.init(weights, neighbors))(self.weights)

    def restore_replica(self, running_buffers: Tensor, local: dict[str, Tensor]) -> None:
        """Take in the buffers that the last forward pass left."""
        self._running_buffers = running_buffers
        self._local = {name: values.to(self.weights.device) for name, values in local.items()}

    def state(self) -> State:
        """Return all that the steps to come depend on; its tensors are the agent's own."""
        return super().state() | {"losses": self.losses}

    def restore(self, state: State) -> None:
        """Go on from a state of variants with the same settings, numbers excepted."""
        super().restore(state)
        self.losses = state["losses"]

    def take_all(self, row: Row, received: Sequence[Received]) -> list[Outcome]:
        """Do what ``take`` does for every variant; ``overflows`` has the errors."""
        losses, self.losses = self.losses, None
        if row.kind == "rejoined":
            self.rejoin(received, row.step + 1)
            self.overflows = [None] * len(self.specs)
            return [NO_LOSS] * len(self.specs)
        assert losses is not None
        return list(map(Outcome, losses, self.apply_all(received, len(row.held))))

    def compute_all(self) -> list[float]:
        """Do what ``compute`` does for every variant; return their losses, unchecked."""
        inputs, targets = self.draw(self.batches)
        self.seed_forward_pass()

        def loss_of(
            weights: Tensor, buffers: Tensor, local: dict[str, Tensor]
        ) -> tuple[Tensor, tuple[Tensor, Tensor, dict[str, Tensor]]]:
            loss, buffers, local = self.loss_at(weights, buffers, local, inputs, targets)
            return loss, (loss, buffers, local)

        gradient = torch.func.grad(loss_of, has_aux=True)
        state = (self.weights, self._running_buffers, self._local)
        gradients, (losses, self._running_buffers, self._local) = self._each(gradient)(*state)
        self.direction = clipped(self.spec.recipe.gradient_clipping, gradients)
        if not self.optimizes_later:
            self.optimize(self.direction)
        values: list[float] = losses.tolist()
        return values

    def optimize(self, gradient: Tensor) -> None:
        """Set ``direction`` to the optimizer's for gradients of shape (P, D)."""

        def direction(state: Any, weights: Tensor, gradient: Tensor) -> tuple[Any, Tensor]:
            return self.optimizer.direction(state, weights, gradient, self.replica.parts)

        self.optimizer_state, self.direction = self._each(direction)(self.optimizer_state, self.weights, gradient)

    def errors(self, losses: Sequence[float]) -> list[NonFiniteLossError | None]:
        """Return, for each variant, the error of a loss or a direction that is not finite."""
        sums = self.direction.sum(1)
        finite = (sums.isfinite() & torch.tensor(losses, device=sums.device).isfinite()).tolist()
        own = self.spec.agent
        return [
            None if is_finite else NonFiniteLossError(own, self.progress, loss)
            for loss, is_finite in zip(losses, finite, strict=True)
        ]

    def check_version(self, weights: Tensor, buffers: Tensor) -> None:
        """Note, for each variant, the error of a next version that is not finite; the others go on."""
        self.overflows = [None] * len(self.specs)
        for what, numbers in (("buffers", buffers), ("weights", weights)):
            for variant, (total, own) in enumerate(zip(numbers.sum(1).isfinite().tolist(), numbers, strict=True)):
                if not (total or is_finite(own)):
                    self.overflows[variant] = NonFiniteLossError(self.spec.agent, self.progress, math.nan, what)

    def apply_all(self, received: Sequence[Received], held: int = 0) -> list[dict[str, float]]:
        """Do what ``apply`` does for every variant; return their measures."""
        rule = self.spec.recipe.rule
        gathered = self.gather(received, held)
        own, reads = self.rule_inputs(gathered)
        own = own._replace(**self._numbers_of_each(received))
        in_dims = (Own._make((0, 0, None, 0, dict.fromkeys(own.coefficients, 0), (), ())), _READ_DIMS)
        if rule.corrects_gradients:
            self.optimize(self._each(rule.correct, in_dims)(own, reads))
            own = own._replace(direction=self.direction)
        if rule.probes_at(self.version):
            inputs, targets = self.draw(self.probe_batches)
            self.seed_forward_pass()

            def step(state: Any, own: Own, reads: Reads, buffers: Tensor, local: dict[str, Tensor]) -> Any:
                return rule.step(state, own, reads, self.probe_at(inputs, targets, buffers, local))

            extra = (self._running_buffers, self._local)
            self.rule_state, update = self._each(step, (0, *in_dims, 0, 0))(self.rule_state, own, reads, *extra)
        else:
            self.rule_state, update = self._each(rule.step, (0, *in_dims))(self.rule_state, own, reads)
        self.commit(Update(update.weights, {}), gathered)
        columns = {name: values.tolist() for name, values in update.measures.items()}
        of_neighbors = {name: values.tolist() for name, values in update.of_neighbors.items()}
        return [
            {name: column[p] for name, column in columns.items()}
            | self.told_of_neighbors({name: values[p] for name, values in of_neighbors.items()}, gathered)
            for p in range(len(self.specs))
        ]

    def _numbers_of_each(self, received: Sequence[Received]) -> dict[str, Any]:
        """Return the fields of ``Own`` that differ between the variants, with a leading axis."""
        agent, step, device = self.spec.agent, self.version, self.weights.device
        observed = self.observed_coefficients(received)
        each = [
            spec.recipe.rule.coefficients(agent, step) | observed | self.measured_coefficients(variant)
            for variant, spec in enumerate(self.specs)
        ]
        step_sizes = [spec.recipe.step_size_at(step) for spec in self.specs]
        return {
            "step_size": torch.tensor(step_sizes, device=device),
            "coefficients": {name: torch.tensor([one[name] for one in each], device=device) for name in each[0]},
        }

    def _each_of(self, direction: Tensor) -> Sequence[Tensor]:
        """Return each variant's of a direction of shape (P, D)."""
        return direction.unbind()

    def all_optimizer_states(self) -> list[Any]:
        """Return what each variant's optimizer remembers."""
        return [tree_map(lambda tensor, place=p: tensor[place], self.optimizer_state) for p in range(len(self.specs))]

    def all_snapshots(self) -> list[Snapshot]:
        """Return each variant's replica as the last forward pass left it."""
        return [
            one._replace(buffers=buffers) for one, buffers in zip(self.snapshots(), self._running_buffers, strict=True)
        ]

    def snapshots(self) -> list[Snapshot]:
        """Return each variant's replica as the current version left it."""
        return [
            Snapshot(weights, buffers, {name: values[p].clone() for name, values in self._local.items()})
            for p, (weights, buffers) in enumerate(zip(self.weights, self.buffers, strict=True))
        ]

    def evaluate_at(self, snapshot: Snapshot) -> dict[str, float]:
        """Return the test loss and metrics of one variant's snapshot."""
        task, replica = self.spec.recipe.task, self.replica
        with replica.undisturbed():
            replica.load(snapshot.weights, snapshot.buffers)
            replica.load_local(snapshot.local)
            return task.examine(replica.module, self.data, replica.device).values

    @staticmethod
    def _each(function: Any, in_dims: Any = 0) -> Any:
        # All variants draw the same random numbers, since each of them alone would.
        return torch.func.vmap(function, in_dims, randomness="same")
