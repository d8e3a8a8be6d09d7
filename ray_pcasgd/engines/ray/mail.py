"""What every actor of a run has: a mailbox with a thread of its own, and waiting that can be stopped."""

import contextlib
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import ray
import torch
from ray.actor import ActorHandle
from ray.exceptions import RayError
from torch import Tensor

from ray_pcasgd.agents.learner import LearnerError
from ray_pcasgd.agents.mailbox import Header, Mailbox, Message
from ray_pcasgd.agents.participant import LearnerSpec
from ray_pcasgd.base.determinism import deterministic
from ray_pcasgd.engines.base import InterruptionError, RunError
from ray_pcasgd.engines.failures import as_step_error
from ray_pcasgd.engines.live.injection import InjectedDelays
from ray_pcasgd.engines.messages import Contents, LostError, RejectedError
from ray_pcasgd.engines.ray.agent_state import AgentState
from ray_pcasgd.engines.ray.lost import GONE
from ray_pcasgd.engines.ray.reports import Reporter
from ray_pcasgd.engines.ray.settings import TransportName
from ray_pcasgd.engines.ray.transport import RayTransport
from ray_pcasgd.engines.shared.door import Door
from ray_pcasgd.engines.validation import Expected, check_header, check_mark, checked_contents
from ray_pcasgd.records import Event, Row
from ray_pcasgd.schedule.scheduler import Cut

LEAST_ANSWER_SECONDS = 10.0
"""Seconds that a busy machine has at least to answer the driver, however short the wait for messages is."""

DEAL_ROWS = 64
"""Most rows that an agent asks for at a time; the next ones are under way while these are executed."""

DEAL_SECONDS = 0.5
"""An agent asks for fewer rows where they take longer than this: a cut comes after all rows that are dealt."""


class StoppedError(Exception):
    """The run is being stopped; not an error of the agent."""


FOREVER = 2**62
"""The mark of an agent that has sent its last message: it stands for that of any cut to come."""


class Driving(NamedTuple):
    """How an agent actor is driven; the same for all agents of a run."""

    wait_seconds: float
    """Longest wait for one message."""
    threads: int
    state_seconds: float | None
    """How often states are kept, if at all."""
    silent_steps: float | None
    """After how many steps without a new message a live neighbor is not read any more."""
    max_lag: float | None
    """By which share of its own steps a live agent may be ahead of a neighbor that it reads."""
    inline_bytes: int
    """Up to which size arrays travel inside the message."""
    falls_back: bool = True
    """Whether later reads may fall back as far as ``Family.slack`` says; those of a planner never do."""

    steps_a_version: int = 1
    """The most mini-batches between two versions of an agent, each of which may take its time."""

    transport: TransportName = "object-store"
    """How agents on one host read each other's versions; see ``RaySettings``."""

    @property
    def version_seconds(self) -> float:
        """Longest wait for one version of a neighbor."""
        return self.wait_seconds * self.steps_a_version

    @property
    def answer_seconds(self) -> float:
        """Longest wait of the driver for an answer of an agent or the scheduler: a process that hangs never answers."""
        return max(self.wait_seconds, LEAST_ANSWER_SECONDS)


class MailActor(Reporter):
    """One agent's actor. Training runs in a thread of its own, so no message ever waits for a gradient."""

    def __init__(
        self,
        spec: LearnerSpec,
        mailbox: Mailbox[Contents],
        driving: Driving,
        scheduler: ActorHandle[Any],
        first_call: int = 0,
    ) -> None:
        torch.set_num_threads(driving.threads)
        deterministic(spec.recipe.device).__enter__()  # as long as the process lives
        self.spec = spec
        self.mailbox = mailbox
        self.driving = driving
        super().__init__(spec.agent, scheduler, first_call)
        self.stopped = False
        self.transport = RayTransport(driving.inline_bytes)
        self.outbox = self.transport.outbox({})
        self.started_at = 0.0
        self.received: Counter[int] = Counter()
        """Messages of each neighbor that have come."""
        self.rejected: Counter[int] = Counter()
        """Messages of each neighbor that were not what they must be; -1 where that is no neighbor."""
        self.marks: dict[int, dict[int, int]] = {k: {} for k in spec.neighbors}
        """Of each neighbor, how many messages it had sent before each cut."""

    def __repr__(self) -> str:
        # Of the spec alone, if there is one: Ray also asks an actor that could not be built.
        spec = getattr(self, "spec", None)
        return type(self).__name__ if spec is None else f"{spec.family.title}({spec.agent})"

    def ready(self) -> str:
        """Return where the agent lives, once it is built."""
        return f"process {os.getpid()} on {ray.util.get_node_ip_address()}, {self.device}"

    def open_door(self) -> None:
        """Open the door that agents on this host find by the actor's handle, where memory is to be shared.

        Called once all is there that takes messages in.

        Raises:
            RunError: it cannot be opened, though that is asked for.

        """
        if self.driving.transport == "object-store":
            return
        try:
            name = ray.get_runtime_context().get_actor_id() or ""
            self.transport.door = Door(name, self, locks_pages=self.device.type == "cuda")
        except OSError as error:
            if self.driving.transport == "shared":
                raise RunError(
                    f"engine.transport = 'shared': allowed on {ray.util.get_node_ip_address()} are 'auto' and "
                    f"'object-store', as agents cannot share memory there: {error}"
                ) from error

    def connect(self, neighbors: dict[int, ActorHandle[Any]]) -> None:
        """Take in the neighbors' actors."""
        self.outbox = self.transport.outbox(neighbors)

    # Without task events: Ray's record of every single message would cost more than the messages.
    @ray.method(concurrency_group="mail", enable_task_events=False)
    def receive(self, header: Header, contents: Contents | None, *pieces: Any) -> None:
        """Take in the message of a neighbor on another host."""
        self.take_in(header, contents, *pieces)

    def take_in(self, header: Header, contents: Contents | None, *pieces: Any) -> None:
        """Take in a neighbor's message; also called in the thread of the agent's door."""
        with self.changed:
            try:
                check_header(self.expected, header)
            except RejectedError as error:
                self.reject(-1, -1, error)
                return
            self.received[header.sender] += 1
            try:
                self.check_turn(header)
            except RejectedError as error:
                self.reject(header.sender, header.version, error)
                return
            try:
                contents = checked_contents(self.transport, self.expected, header, contents, pieces)
            except RejectedError as error:
                self.reject(header.sender, header.version, error)
                contents = None
            self.mailbox.put(Message(header, contents), time.monotonic())
            self.on_message(header)
            if self.should_wake():
                self.changed.notify_all()

    def check_turn(self, header: Header) -> None:
        """Raise ``RejectedError`` where a message cannot be its sender's next; called with the lock held."""

    def reject(self, sender: int, version: int, error: Exception) -> None:
        """Count a message that is not what it must be, and say so of the first, the tenth, the hundredth..."""
        self.rejected[sender] += 1
        if math.log10(self.rejected[sender]).is_integer():
            who = f"version {version} of agent {sender}" if sender >= 0 else "a message"
            detail = f"agent {self.spec.agent} rejects {who}: {error}; rejected so far: {self.rejected[sender]}"
            self.unsent.append(Event("message_rejected", self.spec.agent, self.version, detail))

    @property
    def expected(self) -> Expected:
        """What the agent's messages must be."""
        raise AssertionError("MailActor is abstract")

    def packed(self, weights: Tensor, buffers: Tensor, direction: Tensor | None = None) -> Contents:
        """Return a message's contents as they travel."""
        return self.transport.publish(weights, buffers, direction)

    @ray.method(concurrency_group="mail", enable_task_events=False)
    def take_mark(self, neighbor: int, cut: int, sent: int) -> None:
        """Take in how many messages a neighbor on another host had sent before a cut."""
        self.note_mark(neighbor, cut, sent)

    def note_mark(self, neighbor: int, cut: int, sent: int) -> None:
        """Take in how many messages a neighbor had sent before a cut; also called in the thread of the door."""
        with self.changed:
            try:
                check_mark(self.expected, neighbor, cut, sent)
            except RejectedError as error:
                self.reject(-1, -1, error)
                return
            self.marks[neighbor][cut] = sent
            self.changed.notify_all()

    @ray.method(concurrency_group="mail")
    def change_links(self, injection: InjectedDelays) -> None:
        """Take in that links are otherwise from now on; in live mode."""
        with self.changed:
            self.set_links(injection)

    def set_links(self, injection: InjectedDelays) -> None:
        """Take in what an injection says of links; called with the lock held."""

    @ray.method(concurrency_group="mail")
    def stop(self) -> None:
        """Stop training before the next step."""
        with self.changed:
            self.stopped = True
            self.changed.notify_all()

    @ray.method(concurrency_group="train")
    def train(self, started_at: float) -> None:
        """Take all steps; ``started_at`` is when training began, in wall-clock seconds."""
        self.started_at = started_at
        with self.changed:
            self.begin()
        self.train_on()

    def train_on(self) -> None:
        """Take the steps that are left, and let everything arrive that they brought."""
        try:
            try:
                self.take_steps()
            except StoppedError:
                self.on_leave()
            except (RunError, LearnerError, RayError, LostError):
                raise
            except Exception as error:
                # Made of texts: the error itself may be of a kind that the driver cannot import.
                raise as_step_error(error, self.spec.agent, self.progress) from None
        finally:
            with self.changed:
                self.report(flush=True)
            # The driver looks for reports once this call has ended, and its own call could overtake these.
            with contextlib.suppress(*GONE):
                ray.get([call.answer for call in self.handed_in])
        if self.driving.state_seconds is not None:
            self.outbox.mark(self.spec.agent, FOREVER)
        self.outbox.flush()

    @property
    def version(self) -> int:
        """The agent's version."""
        raise AssertionError("MailActor is abstract")

    @property
    def progress(self) -> int:
        """The steps that the agent has taken, of the run's ``num_steps``."""
        return self.version

    @property
    def device(self) -> torch.device:
        """Where the agent computes."""
        raise AssertionError("MailActor is abstract")

    def begin(self) -> None:
        """Put into the mailbox the versions that are there from the start; called with the lock held."""

    def should_wake(self) -> bool:
        """Return whether the training thread has something to do about a message; called with the lock held."""
        return True

    def on_message(self, header: Header) -> None:
        """Note that a message has come; called with the lock held."""

    def take_steps(self) -> None:
        """Take all steps, in the manner of the mode."""
        raise AssertionError("MailActor is abstract")

    def now(self) -> float:
        """Return the wall-clock seconds since training began."""
        return time.time() - self.started_at

    def rows(self) -> Iterator[Row]:
        """Yield the agent's planned rows in order; the next ones are under way while these are executed."""
        count = 4
        asked: Any = self.scheduler.deal.remote(self.spec.agent, count)
        while dealt := ray.get(asked):
            asked = self.scheduler.deal.remote(self.spec.agent, count)
            began = time.monotonic()
            for item in dealt:
                if isinstance(item, Cut):
                    self.pass_cut(item)
                else:
                    yield item
            count = min(2 * count, DEAL_ROWS) if time.monotonic() - began < DEAL_SECONDS / 2 else max(count // 2, 1)
            # What comes next may depend on the losses of these.
            self.report(flush=True)

    def pass_cut(self, cut: Cut) -> None:
        """Give the driver the agent's part of the run's state at a cut, once all messages before it are here."""
        self.outbox.mark(self.spec.agent, cut.number)
        with self.changed:
            self.wait_until(
                lambda: all(self.has_all(k, cut.number) for k in self.marks),
                lambda: f"cut {cut.number} of {[k for k in self.marks if not self.has_all(k, cut.number)]}",
            )
            for marks in self.marks.values():
                for number in [n for n in marks if n <= cut.number]:
                    del marks[number]
            self.unsent.append(self.own_part(cut))
            self.report(flush=True)

    def on_leave(self) -> None:
        """Tell others, where that is due, that the agent was stopped before its end."""

    def has_all(self, neighbor: int, cut: int) -> bool:
        """Return whether everything has come that a neighbor sent before a cut."""
        return any(number >= cut and self.received[neighbor] >= sent for number, sent in self.marks[neighbor].items())

    def own_part(self, cut: Cut) -> AgentState:
        """Return the agent's part of the run's state; called with the lock held, or once training has ended."""
        raise AssertionError("MailActor is abstract")

    def wait_until(
        self, condition: Callable[[], bool], missing: Callable[[], str], while_others_send: bool = False
    ) -> None:
        """Wait until a condition on the mailbox holds; called with the lock held.

        ``while_others_send`` it is waited longer, as they may take many steps until then.

        Raises:
            InterruptionError: it did not hold within ``version_seconds``; the message names what ``missing`` returns.
            StoppedError: the run is being stopped.

        """
        deadline, heard = time.monotonic() + self.driving.version_seconds, self.received.total()
        while True:
            if self.stopped:
                raise StoppedError
            now = time.monotonic()
            self.mailbox.advance(now)
            if condition():
                return
            if now >= deadline and while_others_send and self.received.total() > heard:
                deadline, heard = now + self.driving.version_seconds, self.received.total()
            if now >= deadline:
                raise InterruptionError(
                    f"agent {self.spec.agent} waited {self.driving.version_seconds:g} s at step {self.version} "
                    f"for {missing()}"
                )
            due = self.mailbox.next_due()
            self.changed.wait(min(deadline, due if due is not None else deadline) - now)
