"""The actor around an agent: it waits, reads the clock, sends, receives and reports; the agent computes."""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

import ray
import torch
from ray.actor import ActorHandle
from torch import Tensor

from ray_pcasgd.agents.learner import NonFiniteLossError
from ray_pcasgd.agents.mailbox import Delivery, Header, Mailbox, Message
from ray_pcasgd.agents.participant import LearnerSpec, Outcome, Published, Received
from ray_pcasgd.base.state import State
from ray_pcasgd.engines.base import RunError
from ray_pcasgd.engines.failures import evaluated
from ray_pcasgd.engines.live.injection import InjectedDelays
from ray_pcasgd.engines.messages import Contents, Parcel, RejectedError
from ray_pcasgd.engines.raw_tensors import extra_of, tensor_of
from ray_pcasgd.engines.ray import actor_log
from ray_pcasgd.engines.ray.agent_state import AgentState
from ray_pcasgd.engines.ray.cuts import Restored, messages_before, portable_state
from ray_pcasgd.engines.ray.driver import Driver
from ray_pcasgd.engines.ray.mail import Driving, MailActor
from ray_pcasgd.engines.ray.transport import portable
from ray_pcasgd.engines.validation import Expected, weights_form
from ray_pcasgd.records import Event, Read, Row
from ray_pcasgd.schedule.scheduler import Cut
from ray_pcasgd.tasks.task import TaskData


class Found(NamedTuple):
    """A version that is going to be read, and where it lies."""

    read: Read
    header: Header
    contents: Contents
    direction: Parcel | None
    before: tuple[Message[Contents], ...] = ()
    """Where messages are differences: those that have to be taken in first, in their order."""


MakeDriver = Callable[["Actor", State | None], Driver]
"""Makes an actor's driver; where the agent goes on from a state, the driver restores it."""


class Actor(MailActor):
    """The actor of an agent of any family, which has the agent (``participant``) and a ``driver``.

    Args:
        spec: what the agent is built from.
        data: the task's data.
        driving: options of all actors of the run.
        scheduler: the actor of the run's scheduler.
        driver: makes the driver of this actor.
        restored: what the agent goes on from.
        first_call: the number of its next call to the scheduler.

    """

    def __init__(
        self,
        spec: LearnerSpec,
        data: TaskData,
        driving: Driving,
        scheduler: ActorHandle[Any],
        driver: MakeDriver,
        restored: Restored | None = None,
        first_call: int = 0,
    ) -> None:
        super().__init__(spec, Mailbox(spec.neighbors), driving, scheduler, first_call)
        neighbors = ", ".join(map(str, spec.neighbors)) or "none"
        name = ray.get_runtime_context().get_actor_name() if ray.is_initialized() else repr(self)
        actor_log.begin(f"{name}: process {os.getpid()}, on {spec.recipe.device}, neighbors {neighbors}")
        self.participant = spec.build(data)
        self.participant.require_determinism()
        self.is_isolated = False
        """Whether the agent has left the run, since something of it is not finite."""
        self.is_restored = restored is not None
        self.driver = driver(self, None if restored is None else restored.agent)
        if restored is not None:
            actor_log.write_line(f"goes on from version {self.version}, with {len(restored.messages)} messages")
            self.is_isolated = restored.is_isolated
            for message in restored.messages:
                self.mailbox.start(message)
            for neighbor, version in restored.left.items():
                self.mailbox.isolate(neighbor, version)
        self.open_door()

    @property
    def version(self) -> int:
        """The agent's version."""
        return self.participant.version

    @property
    def progress(self) -> int:
        """The steps that the agent has taken, of the run's ``num_steps``."""
        return self.participant.progress

    @property
    def device(self) -> torch.device:
        """Where the agent computes."""
        return self.participant.device

    @cached_property
    def expected(self) -> Expected:
        """What the agent's messages must be, as long as it lives."""
        incoming = self.participant.incoming()
        return Expected(
            self.spec.neighbors,
            incoming.last_version,
            incoming.weights,
            incoming.buffers,
            self.driver.note if incoming.forms is None else Delivery,
            incoming.forms,
            incoming.num_tensors,
            incoming.encoded,
            incoming.are_differences,
        )

    def begin(self) -> None:
        """Put the versions that are there from the start into the mailbox; called with the lock held."""
        self.driver.begin()
        if self.is_restored:
            return
        for start, neighbors in _by_version(self.participant.starts()):
            contents = self.contents(start)
            for k in neighbors:
                self.mailbox.start(Message(Header(k, 0, self.started_at, 0.0), contents))

    def connect(self, neighbors: dict[int, ActorHandle[Any]]) -> None:
        """Take in the neighbors' actors."""
        super().connect(neighbors)
        links = ", ".join(map(str, self.outbox.links())) or "nobody"
        actor_log.write_line(f"shares its memory with: {links}")
        with self.changed:
            self.driver.connected(neighbors)

    def take_steps(self) -> None:
        """Take all steps that are left, unless the agent has left the run."""
        try:
            if not self.is_isolated:
                self.driver.run()
            actor_log.write_line(f"ends at step {self.progress}, version {self.version}")
        finally:
            self.participant.close()

    def on_message(self, header: Header) -> None:
        """Hand a message to the driver; called with the lock held."""
        self.driver.on_message(header)

    def check_turn(self, header: Header) -> None:
        """Raise ``RejectedError`` where a message cannot be its sender's next; called with the lock held."""
        self.driver.check_turn(header)

    def should_wake(self) -> bool:
        """Return whether the training thread has something to do about a message; called with the lock held."""
        return self.driver.should_wake()

    def on_leave(self) -> None:
        """Tell the driver that the agent was stopped before its end."""
        self.driver.on_leave()

    def set_links(self, injection: InjectedDelays) -> None:
        """Take in what an injection says of links; called with the lock held."""
        self.driver.set_links(injection)

    # What live agents are told and asked.

    @ray.method(concurrency_group="mail")
    def leave(self) -> None:
        """Leave the run on purpose, before the next step."""
        with self.changed:
            self.driver.leave()
            self.stopped = True
            self.changed.notify_all()

    @ray.method(concurrency_group="mail")
    def neighbor_lost(self, neighbor: int) -> None:
        """Take in that another agent is gone, from the supervisor, which notices first."""
        with self.changed:
            self.driver.lost(neighbor)
            self.outbox.drop(neighbor)
            self.changed.notify_all()

    @ray.method(concurrency_group="mail")
    def neighbor_done(self, neighbor: int) -> None:
        """Take in that a receiver has taken all its steps, from the supervisor."""
        with self.changed:
            self.driver.finished(neighbor)

    @ray.method(concurrency_group="mail")
    def send_whole(self, reader: int) -> None:
        """Take in that a receiver asks for a whole copy; of others nothing is taken in."""
        with self.changed:
            if reader in self.spec.receivers:
                self.driver.send_whole(reader)

    @ray.method(concurrency_group="mail")
    def newest_of(self, neighbor: int) -> int:
        """Return the newest version of another agent that is known here."""
        with self.changed:
            return self.driver.known(neighbor)

    @ray.method(concurrency_group="mail")
    def welcome(self, neighbor: int, handle: ActorHandle[Any], version: int = 0) -> Any:
        """Take in another agent that comes back, and return what it has to know."""
        with self.changed:
            return self.driver.welcome(neighbor, handle, version)

    @ray.method(concurrency_group="mail")
    def exchange(self, header: Header, times: tuple[float, float], contents: Contents, *pieces: Any) -> list[Any]:
        """Average with the agent that asks; return the version before that, and its contents in pieces."""
        return self.driver.exchange(header, times, contents, pieces)

    @ray.method(concurrency_group="train")
    def come_back(self, neighbors: Mapping[int, ActorHandle[Any]], started_at: float, at_least: int) -> None:
        """Come back into a run and train on; the agent's next version is ``at_least`` this one."""
        self.started_at = started_at
        if self.driver.come_back(neighbors, at_least):
            self.train_on()

    def own_part(self, cut: Cut) -> AgentState:
        """Return the agent's part of the run's state; called with the lock held, or once training has ended."""
        began = time.monotonic()
        part = AgentState(
            self.spec.agent,
            self.progress,
            cut.number,
            portable_state(self.participant.state()),
            messages_before(cut, self.mailbox, self.spec.neighbors),
            {k: version for k in self.spec.neighbors if (version := self.mailbox.left_at(k)) is not None},
            self.is_isolated,
            self.spec.share,
        )
        return part._replace(seconds=time.monotonic() - began)

    # What the agent computes.

    def prepare(self) -> bool:
        """Let the agent compute what needs no reading; return whether it is still in the run."""
        try:
            if self.participant.has_to_prepare:
                self.participant.prepare()
        except NonFiniteLossError as error:
            self.isolate(error, None)
        return not self.is_isolated

    def take(self, row: Row, received: Sequence[Received]) -> Outcome | None:
        """Let the agent take a row; ``None`` where it leaves the run, because the result is not finite."""
        try:
            return self.participant.take(row, received)
        except NonFiniteLossError as error:
            # Its neighbors may still need the direction at its last version, which they know of in every engine.
            owes = self.participant.publishes_directions and self.spec.family.direction_lag > 0
            self.isolate(error, self.participant.message(row) if owes else None)
            return None

    def isolate(self, error: NonFiniteLossError, published: Published | None) -> None:
        """Leave the run after the present version; end it where that is not asked for."""
        if not self.spec.recipe.isolate_non_finite:
            raise error
        self.unsent.append(Event("agent_isolated", error.agent, error.step, str(error)))
        self.is_isolated = True
        self.driver.on_isolated(published)

    # What it sends.

    def header(self) -> Header:
        """Return the header of the agent's present version."""
        return Header(self.spec.agent, self.version, time.time(), 0.0)

    @property
    def direction(self) -> torch.Tensor | None:
        """The direction at the version before, as it travels, where readers may need it."""
        return self.participant.published_direction

    def contents(self, published: Published, direction: torch.Tensor | None = None) -> Contents:
        """Return a version as it travels, with the direction at the one before where readers may need it."""
        contents = self.packed(published.weights, published.buffers, direction)
        return contents._replace(extra=extra_of(published.local, published.with_gradient))

    def send(self, published: Published | None, headers: Mapping[int, Header]) -> None:
        """Send a message to each neighbor that has a header, with its share, and report those that are gone."""
        if published is None:
            self._send(headers, None)
            return
        for share, readers in _by_version({k: self.participant.share(published, k) for k in headers}):
            own = {k: headers[k]._replace(mass=share.mass, note=share.notes.get(k)) for k in readers}
            self._send(*self.as_difference(own, share))

    def as_difference(self, headers: Mapping[int, Header], published: Published) -> tuple[dict[int, Header], Contents]:
        """Return headers and contents of the present version for who has the one before: a difference, where it is one.

        The whole version else.
        """
        difference = self.participant.difference
        if difference is None:
            return dict(headers), self.contents(published, self.direction)
        contents = self.contents(replace(published, weights=difference))
        return {k: header._replace(is_difference=True) for k, header in headers.items()}, contents

    def _send(self, headers: Mapping[int, Header], contents: Contents | None) -> None:
        for k in self.outbox.send(headers, contents, may_skip=False).gone:
            self.unsent.append(Event("neighbor_lost", self.spec.agent, self.version, f"agent {k} does not answer"))

    # What it reads.

    def find(self, read: Read) -> Found | None:
        """Return where the version that is read lies; ``None`` where it was rejected, and a row does without.

        Called with the lock held, since a newer message may replace it any time.
        """
        message = self.mailbox.get(read.neighbor, read.version)
        assert message is not None, read
        if message.contents is None:
            self.do_without(read, "events.jsonl says why")
            return None
        direction = self.direction_at(read.neighbor, read.version)
        return Found(read, message.header, message.contents, direction, self.messages_before(message))

    def messages_before(self, message: Message[Contents]) -> tuple[Message[Contents], ...]:
        """Return what has to be taken in before a difference, as far as it is here; called with the lock held."""
        found: list[Message[Contents]] = []
        before: Message[Contents] | None = message
        held = -1 if self.participant.copies is None else self.participant.copies.version(message.header.sender)
        while before is not None and before.header.is_difference and before.header.version > held + 1:
            before = self.mailbox.get(before.header.sender, before.header.version - 1)
            if before is not None and before.contents is not None:
                found.append(before)
        return tuple(reversed(found))

    def direction_at(self, neighbor: int, version: int) -> Parcel | None:
        """Return where the direction at a version lies, if it has come; called with the lock held."""
        contents = self.mailbox.following(neighbor, version, self.spec.family.direction_lag)
        return contents.direction if contents else None

    def open_all(self, found: Sequence[Found]) -> list[Received]:
        """Return the versions found, fetched, except rejected ones; without the lock, as fetching may take long."""
        received = []
        for item in found:
            try:
                received.append(self.open(item))
            except RejectedError as error:
                with self.changed:
                    self.reject(item.read.neighbor, item.read.version, error)
                self.do_without(item.read, str(error))
        return received

    def do_without(self, read: Read, reason: str) -> None:
        """Raise ``RunError`` where a row cannot be taken without what it reads, which was rejected."""
        if not self.spec.family.does_without:
            raise RunError(f"version {read.version} of agent {read.neighbor} had to be rejected: {reason}")

    def open(self, found: Found) -> Received:
        """Return what was found, fetched.

        Raises:
            RejectedError: it is not what it must be.

        """
        read, header, contents, direction = found[:4]
        expected, device = self.expected, self.device
        direction = direction if self.participant.needs_direction(read) else None
        extra, note = contents.extra, header.note
        mask = None if extra is None else extra.with_gradient
        published = Published(
            self.open_weights(found),
            self.transport.open("buffers", contents.buffers, *expected.form("buffers"), device),
            None
            if direction is None
            else self.transport.open("direction", direction, *expected.form("direction"), device),
            header.mass,
            {self.spec.agent: note} if isinstance(note, Delivery) else {},
            {} if extra is None else {name: tensor_of(given).to(device) for name, given in extra.local.items()},
            None if mask is None else torch.from_numpy(mask).to(device),
        )
        try:
            return self.participant.opened(read, published)
        except ValueError as error:
            raise RejectedError(str(error)) from None

    def open_weights(self, found: Found) -> Tensor:
        """Return the weights of what was found; of differences, what they come to together with those before.

        Raises:
            RejectedError: they are not what they must be; what is known of the sender stays as it was.

        """
        copies, sender = self.participant.copies, found.read.neighbor
        if copies is None:
            return self._weights(found.header, found.contents)
        if found.header.version < (held := copies.version(sender)):
            raise RejectedError(f"version {held} of it is known; allowed are that one and later ones")
        for header, contents in (*found.before, Message(found.header, found.contents)):
            if header.is_difference and header.version == copies.version(sender):
                continue  # read once more
            assert contents is not None
            weights = self._weights(header, contents)
            try:
                if header.is_difference:
                    copies.add(sender, header.version, weights)
                else:
                    copies.put(sender, header.version, weights)
            except ValueError as error:
                raise RejectedError(str(error)) from None
        return copies.weights(sender)

    def _weights(self, header: Header, contents: Contents) -> Tensor:
        form = weights_form(header)
        return self.transport.open(form, contents.weights, *self.expected.form(form), self.device)

    # What it reports.

    def submit(
        self,
        row: Row,
        outcome: Outcome,
        receivers: int | None = None,
        flush: bool = False,
        waited_seconds: float | None = None,
        whole: int = 0,
        given: int = 0,
    ) -> None:
        """Report the row that was taken last, with an evaluation where there is one.

        Args:
            row: The row, with what it really read.
            outcome: What it came to.
            receivers: How many agents were sent the version; ``None``: those that the agent itself names.
            flush: Whether it is handed in at once.
            waited_seconds: How long it was waited before the row, where the rows' times do not say it.
            whole: How many whole copies were sent since the last report, where differences were counted.
            given: How many the agent itself was sent which their sender has not counted.

        """
        agent = self.participant
        report, failed = evaluated(agent, agent.report(row, outcome, self.now(), receivers))
        if whole or given:
            more = (whole + given) * agent.bytes_saved + given * agent.bytes_sent(row, 1)
            report = report._replace(bytes_sent=report.bytes_sent + more)
        if report.snapshot is not None:
            reference: Any = ray.put(portable(report.snapshot))
            report = report._replace(snapshot=reference)
        flush = flush or report.snapshot is not None
        with self.changed:
            report = report._replace(messages_held=self.mailbox.num_held, waited_seconds=waited_seconds)
            if flush or self.is_report_due:  # to look for answers at every step would cost as much as sending
                report = report._replace(bytes_in_flight=self.outbox.bytes_in_flight())
            self.unsent += [report, *([failed] if failed else [])]
            self.report(flush=flush)


def _by_version(versions: Mapping[int, Published]) -> Iterator[tuple[Published, list[int]]]:
    """Yield each version once, with the agents that it belongs to."""
    agents: dict[int, list[int]] = {}
    for k, version in versions.items():
        agents.setdefault(id(version), []).append(k)
    return ((versions[own[0]], own) for own in agents.values())
