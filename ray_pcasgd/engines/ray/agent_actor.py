"""What the live actor of a peer is made from."""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import ray
import torch
from ray.actor import ActorHandle
from torch import Tensor

from ray_pcasgd.agents.learner import NonFiniteLossError
from ray_pcasgd.agents.mailbox import Header, Mailbox, Message
from ray_pcasgd.agents.participant import Received
from ray_pcasgd.agents.peer import AgentSpec, Peer
from ray_pcasgd.engines.failures import measured
from ray_pcasgd.engines.ray.cuts import Restored
from ray_pcasgd.engines.ray.shell import Driving, Shell
from ray_pcasgd.engines.ray.transport import Contents, Parcel, portable
from ray_pcasgd.engines.ray.validation import Expected, RejectedError, fetch_checked
from ray_pcasgd.records import Event, Read, Row, StepReport
from ray_pcasgd.tasks.task import TaskData


class Found(NamedTuple):
    """A version that is going to be read, and where it lies."""

    read: Read
    state: Contents
    direction: Parcel | None
    mass: float


class AgentActor(Shell):
    """The actor of a peer."""

    spec: AgentSpec

    def __init__(
        self,
        spec: AgentSpec,
        data: TaskData,
        driving: Driving,
        scheduler: ActorHandle[Any],
        restored: Restored | None = None,
        first_call: int = 0,
    ) -> None:
        super().__init__(spec, Mailbox(spec.neighbors), driving, scheduler, first_call)
        self.agent = Peer(spec, data)
        self.step_seconds = 0.0
        self.is_isolated = False
        self.is_restored = restored is not None
        if restored is not None:
            self.restore(restored)

    def restore(self, restored: Restored) -> None:
        """Go on from the agent's part of a state."""
        self.is_isolated = restored.is_isolated
        for message in restored.messages:
            self.mailbox.start(message)
        for neighbor, version in restored.left.items():
            self.mailbox.isolate(neighbor, version)

    @property
    def version(self) -> int:
        """The agent's version."""
        return self.agent.version

    @property
    def device(self) -> torch.device:
        """Where the agent computes."""
        return self.agent.replica.device

    def begin(self) -> None:
        """Put the version that all start from into the mailbox."""
        if self.is_restored:
            return
        start = self.packed(self.agent.weights, self.agent.buffers)
        for k in self.spec.neighbors:
            self.mailbox.start(Message(Header(k, 0, self.started_at, 0.0), start))

    def compute(self) -> float | None:
        """Compute the direction; ``None`` where the agent leaves the run, because its loss is not finite."""
        try:
            return self.agent.check_finite(self.agent.compute())
        except NonFiniteLossError as error:
            self.isolate(error, None)
            return None

    def apply(self, received: Sequence[Received], held: int) -> dict[str, float] | None:
        """Take the rule's step; ``None`` where the agent leaves the run, because the result is not finite."""
        agent = self.agent
        try:
            return agent.apply(received, held)
        except NonFiniteLossError as error:
            # Its neighbors may still need the direction at its last version, which they know of in every engine.
            owes = self.spec.recipe.rule.needs_directions
            self.isolate(error, self.packed(agent.weights, agent.buffers, agent.direction) if owes else None)
            return None

    def isolate(self, error: NonFiniteLossError, contents: Contents | None) -> None:
        """Leave the run after the present version; end it where that is not asked for."""
        if not self.spec.recipe.isolate_non_finite:
            raise error
        self.unsent.append(Event("agent_isolated", error.agent, error.step, str(error)))
        self.is_isolated = True
        self.send(contents, isolated=True)

    @property
    def expected(self) -> Expected:
        """What the agent's messages must be."""
        sizes = (self.agent.weights.numel(), self.agent.buffers.numel())
        return Expected(self.spec.neighbors, self.spec.recipe.num_steps, *sizes)

    def find(self, read: Read) -> Found | None:
        """Return where the version that is read lies; ``None`` where it was rejected.

        Called with the lock held, since a newer message may replace it any time.
        """
        message = self.mailbox.get(read.neighbor, read.version)
        assert message is not None, read
        if message.contents is None:
            return None
        direction = self.direction_of(read.neighbor, read.version)
        return Found(read, message.contents, direction, message.header.mass)

    def open_all(self, found: Sequence[Found]) -> list[Received]:
        """Return the versions found, fetched, except rejected ones; without the lock, as fetching may take long."""
        received = []
        for item in found:
            try:
                received.append(self.open(item))
            except RejectedError as error:
                with self.changed:
                    self.reject(item.read.neighbor, item.read.version, error)
        return received

    def open(self, found: Found) -> Received:
        """Return what was found, fetched.

        Raises:
            RejectedError: it is not what it must be.

        """
        device = self.agent.replica.device
        expected = self.expected
        direction: Tensor | None = None
        if self.spec.recipe.needs_direction(self.spec.agent, found.read):
            # Only an agent that has left the run owes a direction: it has moved nowhere since.
            direction = torch.zeros_like(self.agent.weights)
            if found.direction is not None:
                direction = fetch_checked("direction", found.direction, expected.weights, device)
        weights = fetch_checked("weights", found.state.weights, expected.weights, device)
        buffers = fetch_checked("buffers", found.state.buffers, expected.buffers, device)
        return Received(found.read, weights, buffers, direction, found.mass)

    def forget(self, read: Read) -> None:
        """Drop what no later step asks for, once this has been read; called with the lock held."""
        if self.agent.pushes:
            self.mailbox.discard(read.neighbor, read.version)
        else:
            self.mailbox.forget(read.neighbor, read.version)

    def publish(self) -> None:
        """Send the agent's new version to its neighbors."""
        agent = self.agent
        needed = self.spec.recipe.rule.needs_directions
        direction = agent.direction if needed else None
        self.send(self.packed(agent.weights, agent.buffers, direction) if self.spec.receivers else None)

    def send(self, contents: Contents | None, isolated: bool = False) -> None:
        """Send one message to every neighbor, and report those that are gone."""
        common = self.header()._replace(isolated=isolated)
        # That an agent has left the run concerns all, not only those whom this version would be sent to.
        receivers = self.spec.receivers if isolated else self.agent.receivers()
        headers = {k: self.address(common, k) for k in receivers if self.can_reach(k)}
        may_skip = self.may_skip and not (common.final or isolated or self.is_back_at == common.version)
        in_pairs = self.spec.recipe.rule.needs_directions
        sent = self.outbox.send(headers, contents, may_skip, in_pairs)
        self.held = tuple(k for k in receivers if k not in sent.to) if self.agent.pushes else ()
        for k in sent.gone:
            self.lose(k)
            self.unsent.append(Event("neighbor_lost", self.spec.agent, self.version, f"agent {k} does not answer"))

    def header(self) -> Header:
        """Return the header of the agent's present version."""
        version = self.agent.version
        final = version == self.spec.recipe.num_steps
        return Header(self.spec.agent, version, time.time(), self.step_seconds, final=final, mass=self.agent.mass)

    may_skip = False
    """Whether messages may be left out to a neighbor that does not take them: never the last one, nor the first of an
    agent that is back, nor the one that says that it has left."""
    is_back_at = -1
    """The version at which the agent has come back into the run."""
    held: tuple[int, ...] = ()
    """Where rules push shares: who was not sent the agent's present version."""

    def can_reach(self, neighbor: int) -> bool:
        """Return whether messages get through to a neighbor."""
        return True

    def lose(self, neighbor: int) -> None:
        """Take in that a neighbor is gone."""

    def address(self, header: Header, neighbor: int) -> Header:
        """Return the header for one neighbor."""
        return header

    def direction_of(self, neighbor: int, version: int) -> Parcel | None:
        """Return the direction at a version, if it is here."""
        following = self.mailbox.following(neighbor, version)
        return following.direction if following else None

    def finish_step(self, row: Row, loss: float, measures: dict[str, float]) -> None:
        """Report a step that was taken, with an evaluation where the recipe asks for one."""
        agent = self.agent
        evaluates = self.spec.recipe.evaluates_at(agent.progress)
        snapshot: Any = ray.put(portable(agent.snapshot())) if evaluates else None
        evaluation = None
        if evaluates:
            evaluation, failed = measured(agent.evaluate, self.spec.recipe.task, self.spec.agent, agent.progress)
            self.unsent += [failed] if failed else []
        self.unsent.append(
            StepReport(
                row=row,
                progress=agent.progress,
                loss=loss,
                measures=measures,
                bytes_sent=agent.message_bytes * len(agent.receivers()),
                wall_seconds=time.time() - self.started_at,
                snapshot=snapshot,
                evaluation=evaluation,
            )
        )
        self.report(flush=evaluates or self.reports_at_once)

    @property
    def reports_at_once(self) -> bool:
        """Whether each step is handed in by itself."""
        return False
