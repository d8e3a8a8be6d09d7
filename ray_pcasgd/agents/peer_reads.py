"""What a peer's rule sees of the versions that were read."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ray_pcasgd.agents.participant import Received
from ray_pcasgd.agents.peer_messages import PeerMessages
from ray_pcasgd.records import Own, Read, Reads, Snapshot, of_neighbor
from ray_pcasgd.rules.base import Taken, clipped_row, mix


class Gathered(NamedTuple):
    """What one step's rule is going to see, before it becomes tensors; lists and tuples have one item a neighbor.

    Where every version is read, they have one item a version, and ``mixing`` is the mass that comes with it.
    """

    own: list[float]
    """w_ii and eta."""
    coefficients: dict[str, float]
    """The rule's own numbers."""
    mixing: list[float]
    staleness: list[float]
    age: list[float]
    reliable: list[bool]
    weights: tuple[Tensor, ...]
    directions: tuple[Tensor, ...]
    drift: tuple[Tensor, ...]
    buffers: tuple[Tensor, ...]


class PeerReads(PeerMessages):
    """A peer that makes of what it has read the arguments of its rule."""

    def gather(self, received: Sequence[Received], held: int = 0) -> Gathered:
        """Return what the rule is going to see, neighbor by neighbor; those that were not read have weight 0.

        It measures the curvature before, where the rule asks for it and something is going to be predicted.
        """
        if self.pushes:
            return self.gather_shares(received, held)
        spec, recipe = self.spec, self.spec.recipe
        if self.attacker is not None:
            for one in received:
                self.attacker.note(one.read.neighbor, one.weights)
        received = self.with_displacements(received)
        by_neighbor = {r.read.neighbor: r for r in received}
        slots = [by_neighbor.get(k) for k in spec.neighbors]
        own_mixing, mixing = spec.mixing_at(self.version)
        missing = sum(weight for weight, slot in zip(mixing, slots, strict=True) if slot is None)
        reliable = [slot is None or recipe.reliable(spec.agent, slot.read) for slot in slots]
        self.measure_curvature(slots, reliable)
        ages = [self._drift_age(slot, trusted) for slot, trusted in zip(slots, reliable, strict=True)]
        drifts = self._drifts(received, {age for age in ages if age})
        return Gathered(
            own=[own_mixing + missing, self.own_step_size],
            coefficients=self.coefficients(received),
            mixing=[0.0 if s is None else w for w, s in zip(mixing, slots, strict=True)],
            staleness=[0.0 if s is None else self.missed(s.read) for s in slots],
            age=[0.0 if s is None else float(s.read.age) for s in slots],
            reliable=reliable,
            weights=tuple(self._zeros if s is None else s.weights for s in slots),
            directions=tuple(self._direction(s, r) for s, r in zip(slots, reliable, strict=True)),
            drift=tuple(drifts[age] for age in ages),
            buffers=tuple(self.buffers if s is None else s.buffers for s in slots),
        )

    def gather_shares(self, received: Sequence[Received], held: int) -> Gathered:
        """Return what the rule is going to see of each version; what the agent sent to others is no longer its own.

        All shares of one agent are equal, so ``held`` of them that were not sent are as many of its own.
        """
        spec = self.spec
        shares = dict(zip(spec.neighbors, spec.mixing, strict=True))
        nothing = (self._nothing,) * len(received)
        return Gathered(
            own=[spec.own_mixing * (1 + held) * self.mass, self.own_step_size],
            coefficients=self.coefficients(received),
            mixing=[shares[r.read.neighbor] * r.mass for r in received],
            staleness=[self.missed(r.read) for r in received],
            age=[float(r.read.age) for r in received],
            reliable=[True] * len(received),
            weights=tuple(r.weights for r in received),
            directions=nothing,
            drift=nothing,
            buffers=tuple(r.buffers for r in received),
        )

    def with_displacements(self, received: Sequence[Received]) -> Sequence[Received]:
        """Return what was read, with the neighbors' displacements in the place of directions, where the rule says so.

        They are so long that the rule's step size of a round, and its staleness in rounds of the agent's own length,
        come to the displacement of the versions that were missed. Where the step size is 0, nothing is predicted.
        """
        if self.neighbor_paths is None:
            return received
        for one in received:
            self.neighbor_paths.note(one.read.neighbor, one.read.version, one.weights)
        return [one._replace(direction=self._displacement(one)) for one in received]

    def _displacement(self, one: Received) -> Tensor:
        assert self.neighbor_paths is not None
        read, length, eta = one.read, self.rounds.length, self.own_step_size
        velocity = self.neighbor_paths.velocity(read.neighbor) if self._predicts(read) and eta > 0 else None
        if velocity is None:
            return self._zeros
        return velocity * (length(self.spec.agent) / (length(read.neighbor) * eta))

    def missed(self, read: Read) -> float:
        """Return a read's staleness in rounds of the agent's own length, as by mini-batches that were missed."""
        theirs, own = self.rounds.length(read.neighbor), self.rounds.length(self.spec.agent)
        return float(read.staleness) if theirs == own else read.staleness * theirs / own

    def coefficients(self, received: Sequence[Received]) -> dict[str, float]:
        """Return the rule's own numbers at this step."""
        rule = self.spec.recipe.rule
        coefficients = rule.coefficients(self.spec.agent, self.progress) | self.observed_coefficients(received)
        return coefficients | self.measured_coefficients(0)

    def measured_coefficients(self, variant: int) -> dict[str, float]:
        """Return those of the rule's numbers that were measured."""
        return {} if self.curvature is None else {"curvature": self.curvature.coefficient(variant)}

    def measure_curvature(self, slots: Sequence[Received | None], reliable: Sequence[bool]) -> None:
        """Measure the loss's curvature along what is predicted, where it is due, on a mini-batch of its own stream."""
        if self.curvature is None or not self.curvature.is_due(self.version):
            return
        direction = self._predicted_direction(slots, reliable)
        if direction is None:
            return
        # By the version alone, so that an agent that comes back into a run draws what a replay draws.
        self.curvature_batches.restore(self.version)
        batch = self.draw(self.curvature_batches)
        each = zip(self.all_snapshots(), self.all_optimizer_states(), self._each_of(direction), strict=True)
        self.curvature.take(
            self.version,
            [self.feedback_of(self.curvature_on(at, batch, along), state, along) for at, state, along in each],
        )

    def _predicted_direction(self, slots: Sequence[Received | None], reliable: Sequence[bool]) -> Tensor | None:
        """Return the late neighbors' mean direction, shape (D,), by their mixing weights; ``None`` without any."""
        rule, total = self.spec.recipe.rule, None
        for slot, trusted, weight in zip(slots, reliable, self.spec.mixing, strict=True):
            if slot is None or trusted or slot.read.age > rule.age_max or not self._predicts(slot.read):
                continue
            assert slot.direction is not None
            share = weight * slot.direction
            total = share if total is None else total.add_(share)
        return total

    def _each_of(self, direction: Tensor) -> Sequence[Tensor]:
        """Return a direction of the agent; of variants, each one's."""
        return (direction,)

    def all_snapshots(self) -> list[Snapshot]:
        """Return the replica as the current version left it; of variants, each one's."""
        return [self.snapshot()]

    def all_optimizer_states(self) -> list[Any]:
        """Return what the optimizer remembers; of variants, each one's."""
        return [self.optimizer_state]

    def observed_coefficients(self, received: Sequence[Received]) -> dict[str, float]:
        """Return those of the rule's numbers that follow from what was read."""
        others = [
            Taken(
                self.rounds.progress(r.read.neighbor, r.read.version + r.read.staleness), self.samples[r.read.neighbor]
            )
            for r in received
        ]
        own = Taken(self.progress, len(self.spec.shard))
        return self.spec.recipe.rule.observed_coefficients(own, others)

    def rule_inputs(self, gathered: Gathered) -> tuple[Own, Reads]:
        """Return the rule's arguments for this agent alone."""
        device = torch.device("cpu") if self.spec.recipe.rule.takes_scalars_on_cpu else self.weights.device
        # In one tensor: to make three of them takes as long as a layer of a small network.
        single = [*gathered.own, *gathered.coefficients.values()]
        numbers = torch.tensor([*single, *gathered.mixing, *gathered.staleness, *gathered.age], device=device)
        first, count = len(single), len(gathered.mixing)
        ours, mixing, staleness, age = numbers.tensor_split((first, first + count, first + 2 * count))
        own_mixing, step_size, *values = ours.unbind()
        coefficients = dict(zip(gathered.coefficients, values, strict=True))
        stepped, led = self.rule_directions
        own = Own(self.weights, stepped, own_mixing, step_size, coefficients, led, self.public_copy)
        reliable = torch.tensor(gathered.reliable, dtype=torch.bool, device=device)
        reads = Reads(gathered.weights, gathered.directions, gathered.drift, mixing, staleness, age, reliable)
        return own, reads

    @property
    def rule_directions(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The direction that the rule steps along, and where that is zeros the one that has led here; shape (D,)."""
        return self.direction, ()

    @property
    def public_copy(self) -> tuple[Tensor, ...]:
        """What the agent's readers know of it, shape (D,), where rules send differences; else empty."""
        return ()

    def mix_buffers(self, gathered: Gathered) -> Tensor:
        """Return the agent's mixed buffers averaged with those of its reliable neighbors, shape (F,)."""
        if not self.buffers.numel():
            return self.buffers
        # The weights are on the CPU, where it costs less to make them than on a GPU.
        if self.pushes:
            total = self.mass_of(gathered)
            shares = torch.tensor([value / total for value in (gathered.own[0], *gathered.mixing)])
            return mix(shares[0], self.running_buffers, shares[1:], gathered.buffers)
        mixing = torch.tensor(gathered.mixing)
        reliable = torch.tensor(gathered.reliable, dtype=torch.bool)
        own, weights = clipped_row(torch.tensor(gathered.own[0]), mixing, reliable)
        # Who is not trusted, or was not read, is left out: a weight of zero does not make every number zero.
        counting = [k for k, (w, r) in enumerate(zip(gathered.mixing, gathered.reliable, strict=True)) if r and w]
        return mix(own, self.running_buffers, weights[counting], tuple(gathered.buffers[k] for k in counting))

    def _direction(self, slot: Received | None, reliable: bool) -> Tensor:
        """Return the direction of a neighbor that is going to be predicted; zeros of any other."""
        if not self.spec.recipe.rule.needs_directions:
            return self._nothing
        if slot is None or reliable or not slot.read.staleness:
            return self._zeros
        assert slot.direction is not None, slot.read
        return slot.direction

    def _drift_age(self, slot: Received | None, reliable: bool) -> int:
        """Return the age for which the drift is asked; 0 where it is not asked."""
        if slot is None or reliable or slot.read.age > self.spec.recipe.rule.age_max:
            return 0
        return slot.read.age

    def _drifts(self, received: Sequence[Received], ages: set[int]) -> Mapping[int, Tensor]:
        """Return the agent's own drift over each age, and that for age 0, which is zero."""
        if self.displacements is None:
            return dict.fromkeys((0, *ages), self._nothing)
        self.displacements.note(one.read for one in received)
        return {0: self._zeros, **self.displacements.drifts(ages)}

    @staticmethod
    def mass_of(gathered: Gathered) -> float:
        """Return the mass that is left and that has come."""
        return gathered.own[0] + sum(gathered.mixing)

    def told_of_neighbors(self, measures: Mapping[str, Sequence[float]], gathered: Gathered) -> dict[str, float]:
        """Return measures of each neighbor under names of their own, of those neighbors that were read."""
        neighbors = self.spec.neighbors
        return {
            of_neighbor(name, neighbor): value
            for name, values in measures.items()
            for neighbor, value, weight in zip(neighbors, values, gathered.mixing, strict=True)
            if weight
        }
