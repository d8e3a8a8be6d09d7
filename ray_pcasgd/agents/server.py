"""Servers: each holds a part of the weights, and moves it by what its workers send."""

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ray_pcasgd.agents.attacks import ServedAttackers
from ray_pcasgd.agents.learner import NonFiniteLossError
from ray_pcasgd.agents.local_optimizer import parts_of
from ray_pcasgd.agents.local_tensors import joined
from ray_pcasgd.agents.mailbox import Delivery
from ray_pcasgd.agents.participant import Family, Incoming, LearnerSpec, Outcome, Participant, Published, Received
from ray_pcasgd.agents.server_recipe import ServerRecipe
from ray_pcasgd.agents.yellowfin import mean_trail, steps_around
from ray_pcasgd.base.numerics import is_finite
from ray_pcasgd.base.state import State, leaves_of, with_leaves
from ray_pcasgd.records import Read, Row, Snapshot, of_neighbor
from ray_pcasgd.rules.correction import Late
from ray_pcasgd.rules.gatherer import Position, has_expired
from ray_pcasgd.rules.parameter_server import ParameterServer
from ray_pcasgd.rules.server import Delivered
from ray_pcasgd.tasks.task import TaskData

SERVERS = Family(slack=-1, prepares=False, may_be_lost=False, title="Server")


@dataclass(frozen=True, kw_only=True)
class ServerSpec(LearnerSpec):
    """What a server is built from; its neighbors are the workers, and it has no samples."""

    recipe: ServerRecipe

    @property
    def place(self) -> int:
        """The server's number among the servers, from 0."""
        return self.agent - self.recipe.num_workers

    @property
    def family(self) -> Family:
        """What the agent has in common with those of its family."""
        return SERVERS

    @property
    def share(self) -> tuple[int, ...]:
        """Which part of its workers' messages it gets."""
        return (self.place,)

    def build(self, data: TaskData) -> "Server":
        """Return the agent."""
        return Server(self, data)


class Server(Participant):
    """Holds a part of the weights; ``step`` takes it over one update to its next version."""

    spec: ServerSpec
    evaluates = False
    remembers_versions = True

    def __init__(self, spec: ServerSpec, data: TaskData) -> None:
        recipe = spec.recipe
        self.spec = spec
        replica = recipe.build(data)
        self.sizes = replica.sizes
        """Numbers of each of the model's parameter tensors."""
        self.version = 0
        self.part = recipe.part(spec.place, replica.weights.numel())
        self.parts = parts_of([slot.shape for slot in replica.layout], self.part)
        """What of the server's part is which tensor's."""
        self.sizes_here = tuple(part.size for part in self.parts)
        """Numbers of each of them."""
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
        self.optimizer_state = recipe.optimizer.start(self.weights, self.parts)
        fragments = recipe.fragments
        self.rule_state = tuple(
            recipe.rule.init(fragments.cut(self.weights, number), recipe.num_workers)
            for number in range(fragments.fragments)
        )
        """Of each fragment, which the rule moves by itself; of whole weights one."""
        self.position = Position(recipe.local_steps)
        self.history: dict[int, Tensor] = {0: self.weights} if recipe.keeps_versions else {}
        """Where the correction needs the gap, or the optimizer the way: weights by version, of those that workers
        compute at, and the newest; for the optimizer also the version before and after each."""
        self.taken: tuple[int, ...] = ()
        """The versions at which the gradients of the last step were computed, where the optimizer asks for them."""
        self.held: set[int] = set()
        """The versions whose update has not moved the weights, as far back as the history goes."""
        self.view = recipe.rule.view if isinstance(recipe.rule, ParameterServer) else None
        self.nesterov = recipe.rule.nesterov if isinstance(recipe.rule, ParameterServer) else None
        kept = self.view.delay if self.view else 0 if self.nesterov is None else 1
        self.recent: deque[Tensor] = deque([self.weights], 1 + kept)
        """The weights of the last versions, as far as views or momentum need them, the newest last."""
        faults = recipe.faults
        looks = faults is not None and faults.attack.reads_others
        self.attackers = ServedAttackers(faults, recipe.seed) if faults and looks else None
        """Those whose lies look at others; ``None`` without any."""
        self.computed_at = dict.fromkeys(spec.neighbors, 0)
        """The version that each worker's last gradient was computed at which it took."""
        self.progress_before = 0
        """Its progress before the row that was taken last."""

    @property
    def device(self) -> torch.device:
        """Where the agent computes."""
        return torch.device(self.spec.recipe.device)

    @property
    def progress(self) -> int:
        """Steps taken, of ``num_steps``: mini-batches over the number of workers, rounded down."""
        return self.position.steps

    @property
    def is_done(self) -> bool:
        """Whether all steps of the run are taken."""
        return self.progress >= self.spec.recipe.num_steps

    def take(self, row: Row, received: Sequence[Received]) -> Outcome:
        """Take one update; its loss is the mean of those that come with the gradients."""
        self.progress_before = self.progress
        measures = self.step(received)
        for one in received:
            self.computed_at[one.read.neighbor] = row.step - one.read.staleness
        losses = [one.note.loss for one in received if one.note is not None]
        return Outcome(sum(losses) / len(losses), measures)

    def message(self, row: Row | None) -> Published:
        """Return the present version, as it is published: whole, whatever part of it a worker is sent."""
        recipe, seen = self.spec.recipe, self.weights
        if self.view is not None:
            seen = self.view.of(self.recent, recipe.seed, self.version)
        elif self.nesterov is not None:
            assert isinstance(recipe.rule, ParameterServer)
            delay = recipe.rule.delay_of(recipe.num_workers)
            seen = self.nesterov.sent(self.weights, self.recent[0], self.version, delay)
        return Published(recipe.published(self.spec.agent, self.version, seen), self.buffers)

    def fragment_of(self, published: Published, number: int) -> Published:
        """Return one fragment of a published version, as a worker is answered it."""
        return replace(published, weights=self.spec.recipe.fragment_of(published.weights, number))

    def outgoing(self) -> Mapping[str, int | None]:
        """Return the bytes of the server's versions, where these are fewer."""
        recipe = self.spec.recipe
        return {} if recipe.wire.weights.is_plain else {"weights": recipe.bytes_of_version(self.weights.numel())}

    @property
    def _length(self) -> int:
        """Numbers of each vector of a worker's message."""
        return self.spec.recipe.fragments.length(self.weights.numel())

    @property
    def _num_vectors(self) -> int:
        """Vectors of a worker's message."""
        return self.spec.recipe.rule.message_vectors

    def opened(self, read: Read, published: Published) -> Received:
        """Return a worker's version as the server reads it: its part of it."""
        own, sent = self.spec.recipe.format_of_workers, published.weights
        vectors = [own.opened("weights", one, self._length) for one in sent.chunk(self._num_vectors)]
        return super().opened(read, published)._replace(weights=vectors[0] if len(vectors) == 1 else torch.cat(vectors))

    def incoming(self) -> Incoming:
        """Return what the messages to the server hold; a worker's own tensors come to the first server alone."""
        forms = self.forms if self.spec.place == 0 else {}
        number, own = self._num_vectors, self.spec.recipe.format_of_workers
        encoded = {} if own.is_plain else {"weights": number * own.num_bytes(self._length)}
        return Incoming(
            number * self._length, self.buffers.numel(), forms=forms, num_tensors=len(self.sizes), encoded=encoded
        )

    def is_late(self, note: Delivery) -> bool:
        """Return whether there were so many updates since a gradient was begun that none takes it."""
        return has_expired(self.spec.recipe.rule.gathering, note.round, self.version)

    def bytes_sent(self, row: Row, receivers: int | None = None) -> int:
        """Return the bytes that are sent for an update; those need it whose gradients it took."""
        return self.message_bytes * (len(row.reads) if receivers is None else receivers)

    def step(self, received: Sequence[Received]) -> dict[str, float]:
        """Take one update over what was received, sorted by worker and version; return what was measured.

        Raises:
            NonFiniteLossError: the result is not finite; the server stays at its version.

        """
        recipe = self.spec.recipe
        if self.attackers is not None:
            told = self.attackers.told([(*one.read[:2], one.weights) for one in received])
            received = [one._replace(weights=vector) for one, vector in zip(received, told, strict=True)]
        step_size = recipe.step_size_at(self.progress)
        eta = torch.tensor(step_size, device=self.device)
        moved = self._gathered(received, eta)
        left_out = self._left_out(received)
        is_held = bool(left_out) and min(left_out.values()) >= 1
        if is_held:
            weights = self.weights
        elif recipe.rule.workers_step:
            weights = moved
        else:
            start = self.weights
            if self.nesterov is not None:
                start = self.nesterov.extrapolated(start, self.recent[0], self.version)
            more = {"trail": mean_trail(self.history, self.taken, self.held)} if self.taken else {}
            self.optimizer_state, direction = recipe.optimizer.direction(
                self.optimizer_state, start, moved, self.parts, self.moving(received), step_size, **more
            )
            weights = start - eta * direction
        buffers = self.buffers if is_held else self._mean_buffers(received)
        for what, numbers in (("weights", weights), ("buffers", buffers)):
            if not is_finite(numbers):
                raise NonFiniteLossError(self.spec.agent, self.progress, math.nan, what)
        self.weights, self.buffers = weights, buffers
        self.recent.append(weights)
        if self.spec.place == 0 and not is_held:
            # What a worker has not sent is with it as it was made.
            self.local = joined([{**self.made, **state.local} for state in received])
        if recipe.senses_momentum and is_held:
            self.held.add(self.version)
        elif recipe.senses_momentum:
            self.taken = tuple(self.version - state.read.staleness for state in received)
        self.version += 1
        if recipe.keeps_versions:
            self.history[self.version] = self.weights
        self.position.advance(state.read.neighbor for state in received)
        own = {} if recipe.rule.workers_step else recipe.optimizer.measures(self.optimizer_state)
        return {"gradients": float(len(received))} | own | self._screened(len(received), left_out)

    def _mean_buffers(self, received: Sequence[Received]) -> Tensor:
        """Return the mean of the workers' buffers, in their order; the server's own where there are none."""
        if not self.buffers.numel():
            return self.buffers
        buffers = received[0].buffers
        for state in received[1:]:
            buffers = buffers + state.buffers
        return buffers / len(received)

    def _screened(self, number: int, left_out: Mapping[int, float]) -> dict[str, float]:
        """Return what the last update's screens or filters have measured of so many messages."""
        rule = self.spec.recipe.rule
        screened = {of_neighbor("screened", worker): share for worker, share in left_out.items()}
        is_enough = rule.is_enough(number)
        if is_enough is not None:
            screened["alone"] = float(not is_enough)
        unfiltered = rule.unfiltered(self.rule_state[0])
        if unfiltered is not None:
            screened["unfiltered"] = float(unfiltered)
        return screened

    def _left_out(self, received: Sequence[Received]) -> dict[int, float]:
        """Return by how much the rule has left out what was received, by worker; empty where it leaves nothing out."""
        shares = self.spec.recipe.rule.left_out(self.rule_state[0])
        if shares is None:
            return {}
        values = shares.tolist()
        return {state.read.neighbor: values[state.read.neighbor] for state in received}

    def _gathered(self, received: Sequence[Received], eta: Tensor) -> Tensor:
        """Return what the rule makes of what was received, fragment by fragment; none of the others moves."""
        rule, fragments = self.spec.recipe.rule, self.spec.recipe.fragments
        by_part: dict[int, list[Delivered]] = {}
        for state in received:
            part = fragments.part(state.read.version)
            by_part.setdefault(part, []).append(self._delivered(state, part, eta))
        states, result = list(self.rule_state), self.weights
        for part, delivered in sorted(by_part.items()):
            if rule.gathering.begins_epoch(self.version):
                # That no parameter moves, the workers say.
                states[part], moved = rule.remembered(states[part], delivered), torch.zeros_like(self.weights)
            else:
                states[part], moved = rule.gather(states[part], fragments.cut(self.weights, part), delivered)
            result = fragments.filled(moved, part, result)
        self.rule_state = tuple(states)
        return result

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
            "optimizer": self.spec.recipe.optimizer.saved(self.optimizer_state),
            "rule": leaves_of(self.rule_state),
            "position": self.position.state(),
            "history": self.history,
            "computed_at": dict(self.computed_at),
            **({"taken": list(self.taken), "held": sorted(self.held)} if self.spec.recipe.senses_momentum else {}),
            **({"recent": list(self.recent)} if self.view or self.nesterov else {}),
            **({} if self.attackers is None else {"attackers": self.attackers.state()}),
        }

    def restore(self, state: State) -> None:
        """Go on from a state of a server with the same settings."""
        self.version = state["version"]
        self.weights, self.buffers = state["weights"].to(self.device), state["buffers"].to(self.device)
        self.local = {name: tensor.to(self.device) for name, tensor in state["local"].items()}
        self.optimizer_state = self.spec.recipe.optimizer.restored(self.optimizer_state, state["optimizer"])
        self.rule_state = with_leaves(self.rule_state, state["rule"])
        self.position.restore(state["position"])
        self.history = {version: weights.to(self.device) for version, weights in state["history"].items()}
        self.computed_at = dict(state["computed_at"])
        self.taken, self.held = tuple(state.get("taken", ())), set(state.get("held", ()))
        if self.attackers is not None:
            self.attackers.restore(state["attackers"], self.device)
        kept = state.get("recent", [self.weights])
        self.recent = deque([weights.to(self.device) for weights in kept], self.recent.maxlen)

    def keep(self, is_needed: Callable[[int], bool] | None = None) -> None:
        """Forget the old weights, but for versions that are needed and the present one.

        ``None``: needed are those from the oldest on that some worker's last gradient was computed at.
        """
        oldest = min(self.computed_at.values())
        computed = is_needed or (lambda version: version >= oldest)

        around: set[int] = set()
        if self.spec.recipe.senses_momentum:
            for version in {*self.taken, *(v for v in self.history if computed(v))}:
                for first in steps_around(version, self.held):
                    around |= {first, first + 1}
        for version in [v for v in self.history if v < self.version and not (computed(v) or v in around)]:
            del self.history[version]
        oldest_kept = min(self.history, default=self.version)
        self.held = {version for version in self.held if version >= oldest_kept}

    def _delivered(self, state: Received, part: int, eta: Tensor) -> Delivered:
        read, recipe = state.read, self.spec.recipe
        present = recipe.fragments.cut(self.weights, part)
        gap = computed_at = present[:0]
        if recipe.rule.needs_gap:
            computed_at = recipe.fragments.cut(self.history[self.version - read.staleness], part)
            gap = present - computed_at
        tau, workers = (
            torch.tensor(float(number), device=self.device) for number in (read.staleness, recipe.num_workers)
        )
        share = recipe.shares[read.neighbor] if recipe.shares else 1.0
        return Delivered(
            read.neighbor,
            Late(state.weights, gap, tau, eta, workers, present, computed_at),
            share,
            self.sizes_here,
        )

    @property
    def message_bytes(self) -> int:
        """Bytes of one version's message to one worker."""
        return self.spec.recipe.wire.weights.num_bytes(self._length) + 4 * self.buffers.numel()

    def snapshot(self) -> Snapshot:
        """Return the server's part of the replica as the current version left it."""
        return Snapshot(self.weights, self.buffers, self.local)

    def evaluation_point(self, row: Row) -> int | None:
        """Return the progress that the last update has reached and that is evaluated, if there is one."""
        recipe = self.spec.recipe
        if self.is_done:
            return recipe.num_steps
        every = recipe.evaluate_every
        reached = self.progress // every * every
        return reached if reached > self.progress_before else None
