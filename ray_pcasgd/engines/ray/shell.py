"""What every actor of a run has: a mailbox with a thread of its own, waiting that can be stopped, and reports."""

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import ray
import torch
from ray.actor import ActorHandle
from ray.exceptions import RayActorError

from ray_pcasgd.engines.base import RunError
from ray_pcasgd.engines.ray.transport import Contents, Outbox
from ray_pcasgd.learner import LearnerSpec
from ray_pcasgd.mailbox import Header, Mailbox, Message
from ray_pcasgd.records import Event, Row, StepReport

REPORT_SECONDS = 0.25
"""Agents hand their reports to the scheduler about this often."""

DEAL_ROWS = 64
"""Rows that an agent asks for at a time; the next ones are under way while these are executed."""


class StoppedError(Exception):
    """The run is being stopped; not an error of the agent."""


class Driving(NamedTuple):
    """How an agent actor is driven; the same for all agents of a run."""

    wait_seconds: float
    """Longest wait for one message before the run is given up."""
    threads: int


class Shell:
    """One agent's actor. Training runs in a thread of its own, so no message ever waits for a gradient."""

    def __init__(
        self, spec: LearnerSpec, mailbox: Mailbox[Contents], driving: Driving, scheduler: ActorHandle[Any]
    ) -> None:
        torch.set_num_threads(driving.threads)
        torch.backends.cudnn.deterministic = True
        self.spec = spec
        self.mailbox = mailbox
        self.driving = driving
        self.scheduler = scheduler
        self.changed = threading.Condition()
        self.stopped = False
        self.outbox = Outbox({})
        self.unsent: list[StepReport | Event] = []
        self.reports_sent = 0
        self.handed_in: deque[Any] = deque(maxlen=64)
        """The last calls with reports; earlier ones are long done."""
        self.sent_at = time.perf_counter()
        self.started_at = 0.0

    def __repr__(self) -> str:
        return f"Agent({self.spec.agent})"

    def ready(self) -> str:
        """Return where the agent lives, once it is built."""
        return f"process {os.getpid()} on {ray.util.get_node_ip_address()}, {self.device}"

    def connect(self, neighbors: dict[int, ActorHandle[Any]]) -> None:
        """Take in the neighbors' actors."""
        self.outbox = Outbox(neighbors)

    # Without task events: Ray's record of every single message would cost more than the messages.
    @ray.method(concurrency_group="mail", enable_task_events=False)
    def receive(self, header: Header, contents: Contents | None) -> None:
        """Take in a neighbor's message."""
        with self.changed:
            self.mailbox.put(Message(header, contents), time.monotonic())
            self.took_in(header.sender)
            if self.is_worth_waking():
                self.changed.notify_all()

    @ray.method(concurrency_group="mail")
    def stop(self) -> None:
        """Stop training before the next step."""
        with self.changed:
            self.stopped = True
            self.changed.notify_all()

    @ray.method(concurrency_group="train")
    def train(self, started_at: float) -> None:
        """Take all steps; ``started_at`` is the run's start in wall-clock seconds."""
        self.started_at = started_at
        with self.changed:
            self.begin()
        try:
            with contextlib.suppress(StoppedError):
                self.take_steps()
        finally:
            with self.changed:
                self.report(flush=True)
            # The driver looks for reports once this call has ended, and its own call could overtake these.
            with contextlib.suppress(RayActorError):
                ray.get(list(self.handed_in))
        self.outbox.flush()

    @property
    def version(self) -> int:
        """The agent's version."""
        raise AssertionError("Shell is abstract")

    @property
    def device(self) -> torch.device:
        """Where the agent computes."""
        raise AssertionError("Shell is abstract")

    def begin(self) -> None:
        """Put into the mailbox what is there from the start; called with the lock held."""

    def is_worth_waking(self) -> bool:
        """Return whether the training thread has something to do about a message; called with the lock held."""
        return True

    def took_in(self, neighbor: int) -> None:
        """Note that a message of this neighbor has come; called with the lock held."""

    def take_steps(self) -> None:
        """Take all steps, in the manner of the mode."""
        raise AssertionError("Shell is abstract")

    def now(self) -> float:
        """Return the wall-clock seconds since the run's start."""
        return time.time() - self.started_at

    def rows(self) -> Iterator[Row]:
        """Yield the agent's planned rows in order; the next ones are under way while these are executed."""
        asked: Any = self.scheduler.deal.remote(self.spec.agent, DEAL_ROWS)
        while dealt := ray.get(asked):
            asked = self.scheduler.deal.remote(self.spec.agent, DEAL_ROWS)
            yield from dealt
            # What comes next may depend on the losses of these.
            self.report(flush=True)

    def wait_until(self, condition: Callable[[], bool], missing: Callable[[], str]) -> None:
        """Wait until a condition on the mailbox holds; called with the lock held.

        Raises:
            RunError: it did not hold within ``wait_seconds``; the message names what ``missing`` returns.
            StoppedError: the run is being stopped.

        """
        deadline = time.monotonic() + self.driving.wait_seconds
        while True:
            if self.stopped:
                raise StoppedError
            now = time.monotonic()
            self.mailbox.advance(now)
            if condition():
                return
            if now >= deadline:
                raise RunError(
                    f"agent {self.spec.agent} waited {self.driving.wait_seconds:g} s at step {self.version} "
                    f"for {missing()}"
                )
            due = self.mailbox.next_due()
            self.changed.wait(min(deadline, due if due is not None else deadline) - now)

    def report(self, flush: bool = False) -> None:
        """Hand what has gathered to the scheduler, now or when it is due."""
        now = time.perf_counter()
        if self.unsent and (flush or now - self.sent_at > REPORT_SECONDS):
            self.handed_in.append(self.scheduler.record.remote(self.spec.agent, self.reports_sent, self.unsent))
            self.reports_sent += 1
            self.unsent = []
            self.sent_at = now
