"""The actor around an agent: it waits, reads the clock, sends, receives and reports; the agent computes."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import ray
import torch
from ray.actor import ActorHandle

from ray_pcasgd.agents.learner import NonFiniteLossError
from ray_pcasgd.agents.mailbox import Answer, Delivery, Header, Mailbox, Message
from ray_pcasgd.agents.participant import LearnerSpec, Outcome, Published, Received
from ray_pcasgd.base.state import State
from ray_pcasgd.engines.base import RunError
from ray_pcasgd.engines.failures import evaluated
from ray_pcasgd.engines.live.injection import InjectedDelays
from ray_pcasgd.engines.ray.cuts import AgentState, Restored, messages_before, portable_state
from ray_pcasgd.engines.ray.raw_tensors import extra_of, tensor_of
from ray_pcasgd.engines.ray.shell import Driving, Shell
from ray_pcasgd.engines.ray.transport import Contents, Parcel, portable
from ray_pcasgd.engines.ray.validation import Expected, RejectedError, fetch_checked
from ray_pcasgd.records import Event, Read, Row
from ray_pcasgd.schedule.scheduler import Cut
from ray_pcasgd.tasks.task import TaskData


class Found(NamedTuple):
    """A version that is going to be read, and where it lies."""

    read: Read
    header: Header
    contents: Contents
    direction: Parcel | None


class Driver(Protocol):
    """Decides what an actor does next: by planned rows, or by a live policy.

    ``run`` and ``restore`` are called without the actor's lock, the others with it held, mostly from its mail thread.
    """

    note: type[Answer] | None
    """What its servers' messages say to a worker besides their versions; ``None`` in planned runs."""

    def run(self) -> None:
        """Take all steps that are left; in the training thread.

        Raises:
            StoppedError: the run is being stopped.

        """

    def restore(self, state: State) -> None:
        """Be where the agent was when its own part of a state was kept, before anything else."""

    def on_message(self, header: Header) -> None:
        """Take in that a message has come, which lies in the mailbox."""

    def should_wake(self) -> bool:
        """Return whether the training thread has something to do about the messages that have come."""

    def on_leave(self) -> None:
        """Take in that the agent was stopped before its end; in the training thread, without the lock."""

    def set_links(self, injection: InjectedDelays) -> None:
        """Take in what an injection says of links."""


class Actor(Shell):
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
        driver: Callable[["Actor"], Driver],
        restored: Restored | None = None,
        first_call: int = 0,
    ) -> None:
        super().__init__(spec, Mailbox(spec.neighbors), driving, scheduler, first_call)
        self.participant = spec.build(data)
        self.is_isolated = False
        """Whether the agent has left the run, since something of it is not finite."""
        self.is_restored = restored is not None
        self.driver = driver(self)
        if restored is not None:
            self.driver.restore(restored.agent)
            self.is_isolated = restored.is_isolated
            for message in restored.messages:
                self.mailbox.start(message)
            for neighbor, version in restored.left.items():
                self.mailbox.isolate(neighbor, version)

    def __repr__(self) -> str:
        return f"{type(self.participant).__name__}({self.spec.agent})"

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

    @property
    def expected(self) -> Expected:
        """What the agent's messages must be."""
        incoming = self.participant.incoming()
        return Expected(
            self.spec.neighbors,
            incoming.last_version,
            incoming.weights,
            incoming.buffers,
            self.driver.note if incoming.forms is None else Delivery,
            incoming.forms,
            incoming.num_tensors,
        )

    def begin(self) -> None:
        """Put the versions that are there from the start into the mailbox; called with the lock held."""
        if self.is_restored:
            return
        for start, neighbors in _by_version(self.participant.starts()):
            contents = self.contents(start)
            for k in neighbors:
                self.mailbox.start(Message(Header(k, 0, self.started_at, 0.0), contents))

    def take_steps(self) -> None:
        """Take all steps that are left, unless the agent has left the run."""
        if not self.is_isolated:
            self.driver.run()

    def on_message(self, header: Header) -> None:
        """Hand a message to the driver; called with the lock held."""
        self.driver.on_message(header)

    def should_wake(self) -> bool:
        """Return whether the training thread has something to do about a message; called with the lock held."""
        return self.driver.should_wake()

    def on_leave(self) -> None:
        """Tell the driver that the agent was stopped before its end."""
        self.driver.on_leave()

    def set_links(self, injection: InjectedDelays) -> None:
        """Take in what an injection says of links; called with the lock held."""
        self.driver.set_links(injection)

    def own_part(self, cut: Cut) -> AgentState:
        """Return the agent's part of the run's state; called with the lock held, or once training has ended."""
        return AgentState(
            self.spec.agent,
            self.progress,
            cut.number,
            portable_state(self.participant.state()),
            messages_before(cut, self.mailbox, self.spec.neighbors),
            {k: version for k in self.spec.neighbors if (version := self.mailbox.left_at(k)) is not None},
            self.is_isolated,
            self.spec.share,
        )

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
            owes = self.participant.publishes_directions
            self.isolate(error, self.participant.message(row) if owes else None)
            return None

    def isolate(self, error: NonFiniteLossError, published: Published | None) -> None:
        """Leave the run after the present version; end it where that is not asked for."""
        if not self.spec.recipe.isolate_non_finite:
            raise error
        self.unsent.append(Event("agent_isolated", error.agent, error.step, str(error)))
        self.is_isolated = True
        # That an agent has left the run concerns all, not only those whom this version would be sent to.
        self.send(published, dict.fromkeys(self.spec.receivers, self.header()._replace(isolated=True)))

    # What it sends.

    def header(self) -> Header:
        """Return the header of the agent's present version."""
        return Header(self.spec.agent, self.version, time.time(), 0.0)

    def contents(self, published: Published, direction: torch.Tensor | None = None) -> Contents:
        """Return a version as it travels, with the direction at the one before where readers may need it."""
        contents = self.packed(published.weights, published.buffers, direction)
        return contents._replace(extra=extra_of(published.local, published.with_gradient))

    def send(self, published: Published | None, headers: Mapping[int, Header]) -> None:
        """Send a message to each neighbor that has a header, with its share, and report those that are gone."""
        if published is None:
            self._send(headers, None)
            return
        direction = self.participant.direction if self.participant.publishes_directions else None
        for share, readers in _by_version({k: self.participant.share(published, k) for k in headers}):
            own = {k: headers[k]._replace(mass=share.mass, note=share.notes.get(k)) for k in readers}
            self._send(own, self.contents(share, direction))

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
        following = self.mailbox.following(read.neighbor, read.version)
        return Found(read, message.header, message.contents, following.direction if following else None)

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
        read, header, contents, direction = found
        expected, device = self.expected, self.device
        direction = direction if self.participant.needs_direction(read) else None
        extra, note = contents.extra, header.note
        mask = None if extra is None else extra.with_gradient
        published = Published(
            fetch_checked("weights", contents.weights, expected.weights, device),
            fetch_checked("buffers", contents.buffers, expected.buffers, device),
            None if direction is None else fetch_checked("direction", direction, expected.weights, device),
            header.mass,
            {self.spec.agent: note} if isinstance(note, Delivery) else {},
            {} if extra is None else {name: tensor_of(given).to(device) for name, given in extra.local.items()},
            None if mask is None else torch.from_numpy(mask).to(device),
        )
        return self.participant.opened(read, published)

    # What it reports.

    def submit(self, row: Row, outcome: Outcome, receivers: int) -> None:
        """Report the row that was taken last, with an evaluation where there is one.

        Args:
            row: The row, with what it really read.
            outcome: What it came to.
            receivers: How many agents were sent the version.

        """
        report, failed = evaluated(self.participant, self.participant.report(row, outcome, self.now(), receivers))
        if report.snapshot is not None:
            reference: Any = ray.put(portable(report.snapshot))
            report = report._replace(snapshot=reference)
        with self.changed:
            self.unsent += [report, *([failed] if failed else [])]
            self.report(flush=report.snapshot is not None)


def _by_version(versions: Mapping[int, Published]) -> Iterator[tuple[Published, list[int]]]:
    """Yield each version once, with the agents that it belongs to."""
    agents: dict[int, list[int]] = {}
    for k, version in versions.items():
        agents.setdefault(id(version), []).append(k)
    return ((versions[own[0]], own) for own in agents.values())
