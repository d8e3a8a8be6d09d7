"""An agent: its replica, its optimizer, its batches and its rule. No clock, no Ray, no files."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ray_pcasgd.agents.attacks import saved
from ray_pcasgd.agents.curvature import MeasuredCurvature
from ray_pcasgd.agents.drift import DriftBefore, MeanDrift, MeanVelocity, OwnPath
from ray_pcasgd.agents.error_feedback import ErrorFeedback
from ray_pcasgd.agents.fragments import Fragments
from ray_pcasgd.agents.learner import Learner
from ray_pcasgd.agents.local_round import LocalRound
from ray_pcasgd.agents.mailbox import FALLBACK_VERSIONS
from ray_pcasgd.agents.neighbor_paths import NeighborPaths
from ray_pcasgd.agents.participant import (
    NO_LOSS,
    Family,
    Incoming,
    LearnerSpec,
    Outcome,
    Participant,
    Published,
    Received,
    Training,
)
from ray_pcasgd.agents.reliability import ByCluster, ByStaleness
from ray_pcasgd.agents.sent_weights import SentWeights
from ray_pcasgd.agents.wire import Wire
from ray_pcasgd.base.rounds import Rounds
from ray_pcasgd.base.state import State, leaves_of, with_leaves
from ray_pcasgd.records import Own, Read, Reads, Row, Snapshot, Update, of_neighbor
from ray_pcasgd.rules.base import Probe, Rule, Taken, clipped_row, mix
from ray_pcasgd.rules.exchange import Exchange
from ray_pcasgd.tasks.batches import Batches
from ray_pcasgd.tasks.ray_stream import StreamBatches
from ray_pcasgd.tasks.step import loss_with
from ray_pcasgd.tasks.task import TaskData

PEERS = Family(slack=FALLBACK_VERSIONS, runs_ahead=True, does_without=True, may_be_isolated=True, tells_neighbors=True)
PUSHING_PEERS = replace(PEERS, retention="once", may_be_isolated=False, pushes=True)
"""Those who push shares of their mass, each of which is read once."""


@dataclass(frozen=True, kw_only=True)
class Recipe(Training):
    """What all peers of a run share."""

    rule: Rule
    reliability: ByStaleness | ByCluster
    clusters: tuple[int, ...]
    """The cluster of each agent."""
    local_steps: tuple[int, ...] = ()
    """Mini-batches of each agent from one version to the next; empty: 1 for all."""
    wire: Wire = field(default_factory=Wire)
    """The formats of what they send."""
    combines_first: bool = False
    """Whether agents combine what they have read before a round's local steps (``combining``)."""
    publishes_whole: bool = False
    """Whether versions of which fragments are read are published whole: some row of a plan, or of a recorded schedule,
    comes back as their mean."""
    in_phases: Exchange | None = None
    """Who reads whom at which step, where the graph changes from step to step."""

    @property
    def exchange(self) -> Exchange:
        """Who reads whom, and who sends to whom."""
        return self.rule.exchange if self.in_phases is None else self.in_phases

    @cached_property
    def rounds(self) -> Rounds:
        """Which mini-batches lie between the agents' versions."""
        return Rounds(self.num_steps, self.local_steps)

    @cached_property
    def fragments(self) -> Fragments:
        """Into which parts versions are cut."""
        return Fragments(self.wire.fragments, self.seed)

    @cached_property
    def sent_weights(self) -> SentWeights:
        """What is sent of a version's weights."""
        return SentWeights(self.wire.weights, self.fragments)

    @property
    def has_fragments(self) -> bool:
        """Whether messages hold a part of a version's weights."""
        return self.wire.fragments > 1

    def reliable(self, agent: int, read: Read) -> bool:
        """Return whether ``agent`` trusts what it reads as it is."""
        return self.reliability.reliable(agent, read, self.clusters)

    def message_bytes(self, parameters: int, buffers: int) -> int:
        """Return the bytes of one version's message: weights, mixed buffers and, where it is needed, the direction."""
        numbers = self.fragments.length(parameters)
        direction = self.wire.directions.num_bytes(numbers) if self.sends_directions else 0
        return self.wire.weights.num_bytes(numbers) + direction + 4 * buffers

    @property
    def sends_directions(self) -> bool:
        """Whether messages hold directions."""
        return self.rule.needs_directions and not self.rule.reads_displacements

    def needs_direction(self, agent: int, read: Read) -> bool:
        """Return whether ``agent`` needs the direction at the version that it reads, not its weights alone."""
        return self.sends_directions and self.predicts(agent, read)

    def predicts(self, agent: int, read: Read) -> bool:
        """Return whether ``agent`` may predict by a direction what it reads."""
        # Nothing has led to the start, where it is the direction before a version that is sent with it.
        has_one = read.version > 0 or not self.combines_first
        return self.rule.needs_directions and has_one and read.staleness > 0 and not self.reliable(agent, read)


@dataclass(frozen=True, kw_only=True)
class AgentSpec(LearnerSpec):
    """What one peer is built from, where it lives."""

    recipe: Recipe
    mixing: tuple[float, ...]
    """w_ik, for each neighbor."""
    own_mixing: float
    samples: tuple[int, ...]
    """Size of each neighbor's shard."""
    borrowed: Any = None
    """Indices of the training samples that candidates are probed on, where they are not those of the agent's shard."""
    out_neighbors: tuple[int, ...] | None = None
    """Who reads the agent; not given: its neighbors, as on every undirected graph."""
    phases: tuple[tuple[float, tuple[float, ...]], ...] = ()
    """w_ii and w_ik of the steps that follow each other, again and again; empty: they are always the same."""

    def mixing_at(self, version: int) -> tuple[float, tuple[float, ...]]:
        """Return w_ii and w_ik of the step that begins with a version."""
        return self.phases[version % len(self.phases)] if self.phases else (self.own_mixing, self.mixing)

    @property
    def family(self) -> Family:
        """What the agent has in common with those of its family."""
        return PUSHING_PEERS if self.recipe.rule.reading == "every" else PEERS

    def build(self, data: TaskData) -> "Peer":
        """Return the agent."""
        return Peer(self, data)

    @property
    def steps_a_version(self) -> int:
        """Mini-batches of the agent's round."""
        return self.recipe.rounds.length(self.agent)

    @property
    def receivers(self) -> tuple[int, ...]:
        """Who may be sent messages."""
        return self.neighbors if self.out_neighbors is None else self.out_neighbors


def zeros_for(weights: Tensor) -> Tensor:
    """Return zeros of the shape of weights, of which only one number is kept: they must not be written to."""
    return weights.new_zeros(()).expand(weights.shape)


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


class Peer(Learner, Participant):
    """One peer of a run.

    A step is ``prepare`` (mini-batch, loss, direction at the current weights) and then ``take`` (the rule over what
    was read). Engines call the two apart, because a direction is needed by others before its agent has read.
    """

    spec: AgentSpec

    def __init__(self, spec: AgentSpec, data: TaskData) -> None:
        super().__init__(spec, data)
        rule = spec.recipe.rule
        self.optimizes_later = rule.corrects_gradients
        self.may_be_stacked = (
            rule.stackable
            and self.optimizer.stackable
            and spec.recipe.accumulate == 1
            and spec.recipe.precision == "float32"
        )
        self.publishes_directions = spec.recipe.sends_directions
        self.pushes = rule.reading == "every"
        """Whether agents push shares of their mass."""
        self.loss: float | None = None
        """Of the next step, where it is computed already."""
        self.local_step = 0
        """Mini-batches since the present version, while a round of several is computed."""
        self.probe_batches = self.loaded(self.probe_stream())
        self.samples = dict(zip(spec.neighbors, spec.samples, strict=True))
        """Size of each neighbor's shard."""
        self.rule_state = rule.init(self.weights, len(spec.neighbors))
        self.mass = 1.0
        """Where rules push shares of it: the sum over all agents of weights times mass is conserved."""
        measures = rule.measures_curvature and self.optimizer.has_feedback
        self.curvature = MeasuredCurvature(rule.curvature_every) if measures else None
        """That along what is predicted, by what the optimizer makes of it."""
        self.curvature_batches = self.stream("curvature", rule.curvature_samples)
        directions = spec.recipe.wire.directions
        self.feedback = ErrorFeedback(directions) if self.publishes_directions and directions.is_sparse else None
        """Of the directions that it sends, where most of their numbers are left out."""
        self.displacements = self.path() if rule.needs_drift and spec.neighbors else None
        self.neighbor_paths = NeighborPaths(spec.neighbors, self.weights) if rule.reads_displacements else None
        self._nothing = torch.zeros(0, device=self.weights.device)
        self._zeros = zeros_for(self.weights)

    def probe_stream(self) -> Batches | StreamBatches:
        """Return the mini-batches that candidates are probed on."""
        spec, recipe, data = self.spec, self.spec.recipe, self.data
        if data.probes is not None:
            every = np.arange(len(data.probes))
            return Batches(
                data.probes, every, recipe.batch_size, recipe.seed, spec.agent, "probes", None, data.normalization
            )
        if spec.borrowed is None:
            return self.stream("probes")
        return recipe.task.batches(data, spec.borrowed, recipe.batch_size, recipe.seed, spec.agent, "probes")

    def close(self) -> None:
        """End what makes batches in the background."""
        super().close()
        self.probe_batches.close()

    def path(self) -> OwnPath:
        """Return an empty memory of the agent's own path, as far as the rule may ask for it."""
        rule = self.spec.recipe.rule
        if rule.drift_form == "velocity":
            return MeanVelocity(self.weights)
        kind = MeanDrift if rule.drift_kind == "mean" else DriftBefore
        return kind(self.weights, rule.age_max, self.spec.neighbors)

    def apply(self, received: Sequence[Received], held: int = 0) -> dict[str, float]:
        """Take the rule's step with the versions that were read, and return the rule's measures.

        ``held`` receivers were not sent their shares of the present version, where rules push shares.
        """
        rule = self.spec.recipe.rule
        gathered = self.gather(received, held)
        own, reads = self.rule_inputs(gathered)
        if rule.corrects_gradients:
            self.optimize(rule.correct(own, reads))
            own = own._replace(direction=self.direction)
        probe = self.probe() if rule.probes_at(self.version) else None
        self.rule_state, update = rule.step(self.rule_state, own, reads, probe)
        self.commit(update, gathered)
        measures = {name: value.item() for name, value in update.measures.items()}
        return measures | self.told_of_neighbors({k: v.tolist() for k, v in update.of_neighbors.items()}, gathered)

    def told_of_neighbors(self, measures: Mapping[str, Sequence[float]], gathered: Gathered) -> dict[str, float]:
        """Return measures of each neighbor under names of their own, of those neighbors that were read."""
        neighbors = self.spec.neighbors
        return {
            of_neighbor(name, neighbor): value
            for name, values in measures.items()
            for neighbor, value, weight in zip(neighbors, values, gathered.mixing, strict=True)
            if weight
        }

    def step(self, received: Sequence[Received]) -> tuple[float, dict[str, float]]:
        """Take one whole step; return the mini-batch loss and the rule's measures."""
        loss = self.compute()
        return loss, self.apply(received)

    @property
    def rounds(self) -> Rounds:
        """Which mini-batches lie between the agents' versions."""
        return self.spec.recipe.rounds

    @property
    def progress(self) -> int:
        """Steps taken so far, of ``num_steps``: mini-batches."""
        return self.rounds.progress(self.spec.agent, self.version)

    @property
    def steps_ahead(self) -> int:
        """Mini-batches from the present version to the next one."""
        return self.rounds.steps_in(self.spec.agent, self.version)

    @property
    def present_step_size(self) -> float:
        """The step size eta of the mini-batch whose gradient is computed."""
        return self.spec.recipe.step_size_at(self.progress + self.local_step)

    @property
    def own_step_size(self) -> float:
        """By what the direction is going to be multiplied: the sum over the round's mini-batches."""
        recipe, first = self.spec.recipe, self.progress
        return sum(recipe.step_size_at(first + number) for number in range(max(1, self.steps_ahead)))

    def compute(self) -> float:
        """Set ``direction`` to u at the current weights, of a round of local steps to its mean; return the loss."""
        steps = self.steps_ahead
        if steps == 1:
            return super().compute()
        own = LocalRound(self)
        for _ in range(steps):
            own.advance(super().compute())
        return own.finish()

    @property
    def rule_directions(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The direction that the rule steps along, and where that is zeros the one that has led here; shape (D,)."""
        return self.direction, ()

    @property
    def public_copy(self) -> tuple[Tensor, ...]:
        """What the agent's readers know of it, shape (D,), where rules send differences; else empty."""
        return ()

    @property
    def has_to_prepare(self) -> bool:
        """Whether the next step's direction is still to be computed."""
        return self.loss is None and self.is_running

    def prepare(self, loss: float | None = None) -> None:
        """Compute the next step's direction, or take over one that was computed together with others'."""
        self.loss = self.check_finite(self.compute() if loss is None else loss)
        self.note_direction()

    def take(self, row: Row, received: Sequence[Received]) -> Outcome:
        """Take a step, or come back into the run as the agent of a recorded run did."""
        if row.kind == "rejoined":
            self.rejoin(received, row.step + 1)
            return NO_LOSS
        return self.taken(self.apply(received, len(row.held)))

    def taken(self, measures: dict[str, float]) -> Outcome:
        """Return what a step came to, whose rule has measured this; the next step has a loss of its own."""
        loss, self.loss = self.loss, None
        assert loss is not None
        return Outcome(loss, measures | self.own_measures())

    def message(self, row: Row | None) -> Published:
        """Return the present version, as it is published."""
        return self._published(self.spec.agent)

    def _published(self, sender: int) -> Published:
        """Return the present version as it is published by ``sender``, whose draws round it."""
        recipe = self.spec.recipe
        if recipe.publishes_whole:
            return self.whole_message
        weights = recipe.sent_weights.fragment(self.shown_weights, (recipe.seed, "weights", sender, self.version))
        return Published(weights, self.buffers, mass=self.mass)

    @property
    def shown_weights(self) -> Tensor:
        """The present version's weights, or what an attacker says that they are; shape (D,)."""
        return self.weights if self.attacker is None else self.attacker.sent(self.version, self.weights)

    @property
    def whole_message(self) -> Published:
        """The present version with all its numbers, for who comes back into a run whose messages hold fragments."""
        return Published(self.spec.recipe.sent_weights.whole(self.weights), self.buffers)

    @property
    def published_direction(self) -> Tensor | None:
        """The newest direction as it is published: at the present version once it is computed, else at the one before.

        ``None`` where no reader needs it.
        """
        if not self.publishes_directions:
            return None
        recipe = self.spec.recipe
        encode = recipe.wire.directions.encode if self.feedback is None else self.feedback.encode
        version = self.version - (self.loss is None)
        # Of the same part as the weights that are predicted with it.
        part = recipe.fragments.cut(self.direction, version + 1 - self.spec.family.direction_lag)
        return encode(part, (recipe.seed, "direction", self.spec.agent, version))

    def note_direction(self) -> None:
        """Take a new direction in where later ones depend on it, whether it is going to be sent or not."""
        if self.feedback is not None:
            _ = self.published_direction

    def incoming(self) -> Incoming:
        """Return what the messages to the agent hold: of weights, fragments or all of them."""
        last, is_in_parts = max(map(self.rounds.last, self.spec.neighbors), default=0), self.spec.recipe.has_fragments
        encoded = {name: None if is_in_parts and name == "weights" else n for name, n in self._encoded.items()}
        numbers = None if is_in_parts else self.weights.numel()
        return super().incoming()._replace(weights=numbers, last_version=last, encoded=encoded)

    @property
    def _encoded(self) -> Mapping[str, int]:
        """Bytes of a message's weights and direction, where these are fewer."""
        wire, numbers = self.spec.recipe.wire, self.spec.recipe.fragments.length(self.weights.numel())
        formats = {"weights": wire.weights, "direction": wire.directions}
        return {name: one.num_bytes(numbers) for name, one in formats.items() if not one.is_plain}

    def outgoing(self) -> Mapping[str, int | None]:
        """Return the bytes of what the agent publishes in a format of fewer of them, by name."""
        whole = {"weights": 4 * self.weights.numel()} if self.spec.recipe.publishes_whole else {}
        return {name: whole.get(name, number) for name, number in self._encoded.items()}

    def example_of(self, name: str) -> Tensor:
        """Return a tensor of the form in which the agent publishes its ``weights``, ``buffers`` or ``direction``."""
        example = super().example_of(name)
        is_whole = name == "buffers" or (name == "weights" and self.spec.recipe.publishes_whole)
        if example.dtype == torch.uint8 or is_whole:
            return example
        return example[: self.spec.recipe.fragments.length(len(example))]

    def starts(self) -> dict[int, Published]:
        """Return version 0 of each neighbor: the numbers are those of the agent itself."""
        if self.spec.recipe.wire.weights.is_plain:
            return dict.fromkeys(self.spec.neighbors, self.message(None))
        return {k: self._published(k) for k in self.spec.neighbors}

    def opened(self, read: Read, published: Published) -> Received:
        """Return a neighbor's version as this agent reads it; one that has left the run has moved nowhere since."""
        recipe, direction = self.spec.recipe, published.direction
        draw = (recipe.seed, "weights", read.neighbor, read.version)
        weights, whole = recipe.sent_weights.opened(published.weights, self.weights, draw)
        if direction is not None:
            direction = self.opened_direction(read, direction) if self.needs_direction(read) else None
        if direction is None and self.publishes_directions:
            direction = zeros_for(weights)
        return Received(read, weights, published.buffers, direction, published.mass, whole=whole)

    def opened_direction(self, read: Read, encoded: Tensor) -> Tensor:
        """Return the direction at a version that is read, zeros where nothing of it has come; shape (D,)."""
        wire, fragments = self.spec.recipe.wire, self.spec.recipe.fragments
        length = fragments.length(self.weights.shape[-1])
        part = wire.directions.opened("direction", encoded, length)
        if fragments.fragments > 1 and len(part) != length:
            raise ValueError(f"its direction has {len(part)} numbers; allowed are {length}")
        return fragments.filled(part, read.version, self._zeros)

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

    def _predicts(self, read: Read) -> bool:
        return self.spec.recipe.predicts(self.spec.agent, read)

    def needs_direction(self, read: Read) -> bool:
        """Return whether the direction at a version is needed, not its weights alone."""
        return self.spec.recipe.needs_direction(self.spec.agent, read)

    def is_own(self, row: Row) -> bool:
        """Return whether a schedule's row is one that the run takes: a recorded one may have more steps."""
        return row.step < self.rounds.last(self.spec.agent)

    def batch_key(self, row: Row) -> Hashable | None:
        """Return what rows have in common that may run as one batch: as much to gather, and alike in probing."""
        if row.kind == "rejoined":
            return None
        gathers = len(row.reads) if self.pushes else len(self.spec.neighbors)
        return gathers, self.spec.recipe.rule.probes_at(row.step)

    def evaluation_point(self, row: Row) -> int | None:
        """Return the progress at which there is an evaluation now, if there is one."""
        return self.rounds.evaluation_point(self.spec.agent, self.version, self.spec.recipe.evaluate_every)

    def bytes_sent(self, row: Row, receivers: int | None = None) -> int:
        """Return the bytes that are sent of the present version, and to who is back in place of fragments."""
        sent = self.message_bytes * (len(self.receivers()) if receivers is None else receivers)
        if row.kind == "rejoined" and self.spec.recipe.has_fragments:
            sent += len(row.reads) * 4 * (self.weights.numel() + self.buffers.numel())
        return sent

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

    def probe(self) -> Probe:
        """Return the losses of candidate weights on the next mini-batch of the agent's probe stream."""
        batch = self.draw(self.probe_batches)
        recipe = self.spec.recipe

        def losses(candidates: tuple[Tensor, ...]) -> Tensor:
            results = []
            with torch.no_grad(), self.replica.undisturbed():
                for candidate in candidates:
                    self.seed_forward_pass()
                    # Copies: the model's own code may change whatever it is given.
                    tensors = self.replica.named(candidate.clone(), self.replica.buffers.clone())
                    tensors |= self.replica.copy_of_local()
                    results.append(loss_with(recipe.loss_of, self.replica.module, tensors, batch))
            return torch.stack(results)

        return losses

    def probe_at(self, inputs: Tensor, targets: Tensor, buffers: Tensor, local: dict[str, Tensor]) -> Probe:
        """Return the losses of candidate weights on a mini-batch, where they run stacked; pure."""

        def losses(candidates: tuple[Tensor, ...]) -> Tensor:
            with torch.no_grad():
                return torch.stack([self.loss_at(x, buffers, local, inputs, targets)[0] for x in candidates])

        return losses

    @staticmethod
    def mass_of(gathered: Gathered) -> float:
        """Return the mass that is left and that has come."""
        return gathered.own[0] + sum(gathered.mixing)

    def commit(self, update: Update, gathered: Gathered) -> None:
        """Make the update the agent's next version.

        Raises:
            NonFiniteLossError: it has numbers that are not finite; the agent stays at its version.

        """
        buffers = self.mix_buffers(gathered)
        self.check_version(update.weights, buffers)
        if self.pushes:
            self.mass = self.mass_of(gathered)
        self.weights = update.weights
        self.buffers = buffers.clone() if buffers.numel() else buffers
        self.load()
        self.version += 1
        if self.displacements is not None:
            self.displacements.record(self.weights)

    def rejoin(self, received: Sequence[Received], version: int) -> None:
        """Come back into the run at ``version``: as the mean of what was received, or as it is if that is empty.

        All else that the agent remembers begins anew, so that the weights, and all that follows, depend only on the
        versions that were read.
        """
        if received:
            share = torch.tensor(1.0 / len(received), device=self.weights.device)
            shares = share.expand(len(received))
            nothing = torch.zeros((), device=self.weights.device)
            wholes = tuple(r.weights if r.whole is None else r.whole for r in received)
            self.weights = mix(nothing, self._zeros, shares, wholes)
            if self.buffers.numel():
                mean = mix(nothing, torch.zeros_like(self.buffers), shares, tuple(r.buffers for r in received))
                self.buffers = mean.clone()
            self.forget_local()
        self.load()
        self.loss = None
        self.direction = torch.zeros_like(self.weights)
        self.reset_memory()
        self.forget_scale()
        self.mass = 1.0
        if self.curvature is not None:
            self.curvature.forget()
        if self.feedback is not None:
            self.feedback.forget()
        if self.displacements is not None:
            self.displacements = self.path()
        if self.neighbor_paths is not None:
            self.neighbor_paths.forget()
        if self.attacker is not None:
            self.attacker.forget()
        self.version = version
        self.batches.restore(self.progress)
        self.probe_batches.restore(version)

    def forget_local(self) -> None:
        """Begin anew in the tensors that are the agent's own."""
        self.replica.load_local(self.spec.recipe.build(self.data).local(all_frozen=True))

    def reset_memory(self) -> None:
        """Begin anew in what optimizer and rule remember."""
        self.optimizer_state = self.optimizer.start(self.weights, self.replica.parts)
        self.rule_state = self.spec.recipe.rule.init(self.weights, len(self.spec.neighbors))

    def place(self, version: int, snapshot: Snapshot) -> None:
        """Put the agent where it was at a version, as its snapshot tells; what else it remembered is lost."""
        device = self.replica.device
        self.version = version
        self.weights, self.buffers = snapshot.weights.to(device), snapshot.buffers.to(device)
        if self.displacements is not None:
            # The way from where the model was made to here is none that the agent has gone.
            self.displacements = self.path()
        if self.neighbor_paths is not None:
            self.neighbor_paths.forget()
        self.restore_replica(self.buffers, snapshot.local)

    def state(self) -> State:
        """Return all that the steps to come depend on; its tensors are the agent's own."""
        return {
            "version": self.version,
            "loss": self.loss,
            "weights": self.weights,
            "buffers": self.buffers,
            "running_buffers": self.running_buffers,
            "local": self.local,
            "direction": self.direction,
            "with_gradient": self.with_gradient,
            "batches": self.batches.state(),
            "probe_batches": self.probe_batches.state(),
            "optimizer": self.optimizer.saved(self.optimizer_state),
            "rule": leaves_of(self.rule_state),
            "mass": self.mass,
            "curvature": self.curvature.state() if self.curvature else None,
            **({} if self.feedback is None else {"feedback": self.feedback.state()}),
            "displacements": self.displacements.state() if self.displacements else None,
            **({} if self.neighbor_paths is None else {"neighbor_paths": self.neighbor_paths.state()}),
            **saved(self.attacker),
            **self.saved_scale(),
        }

    def restore(self, state: State) -> None:
        """Go on from a state of an agent with the same settings, numbers excepted."""
        device = self.replica.device
        self.version, self.mass, self.loss = state["version"], state["mass"], state["loss"]
        if self.curvature is not None:
            self.curvature.restore(state["curvature"])
        if self.feedback is not None:
            self.feedback.restore(state["feedback"], device)
        self.weights, self.buffers, self.direction = (
            state[name].to(device) for name in ("weights", "buffers", "direction")
        )
        reached = state["with_gradient"]
        self.with_gradient = None if reached is None else reached.to(device)
        self.restore_replica(state["running_buffers"].to(device), state["local"])
        self.batches.restore(state["batches"])
        self.probe_batches.restore(state["probe_batches"])
        self.optimizer_state = self.optimizer.restored(self.optimizer_state, state["optimizer"])
        self.rule_state = with_leaves(self.rule_state, state["rule"])
        if self.displacements is not None:
            self.displacements.restore(state["displacements"], device)
        if self.neighbor_paths is not None:
            self.neighbor_paths.restore(state["neighbor_paths"], device)
        if self.attacker is not None:
            self.attacker.restore(state["attacker"], device)
        self.restore_scale(state)

    @property
    def running_buffers(self) -> Tensor:
        """The mixed buffers as the last forward pass left them."""
        return self.replica.buffers

    @property
    def local(self) -> dict[str, Tensor]:
        """The agent's own tensors as the last forward pass left them."""
        return self.replica.local()

    def restore_replica(self, running_buffers: Tensor, local: dict[str, Tensor]) -> None:
        """Put the present version into the replica, with the buffers that the last forward pass left."""
        self.replica.load(self.weights, running_buffers)
        self.replica.load_local(local)

    def load(self) -> None:
        """Put the present version into the replica."""
        self.replica.load(self.weights, self.buffers)

    def partners(self) -> tuple[int, ...]:
        """Return the neighbors that the agent reads at its next step."""
        spec = self.spec
        return spec.recipe.exchange.partners(spec.recipe.seed, spec.agent, self.version, spec.neighbors)

    def receivers(self) -> tuple[int, ...]:
        """Return whom the present version is sent to."""
        spec = self.spec
        if not self.is_running and spec.recipe.exchange.waits_for_partners:
            return spec.receivers  # lest one wait for a partner that has none to send any more
        return spec.recipe.exchange.receivers(spec.recipe.seed, spec.agent, self.version, spec.receivers)

    @property
    def message_bytes(self) -> int:
        """Bytes of one version's message."""
        return self.spec.recipe.message_bytes(self.weights.shape[-1], self.buffers.shape[-1])
