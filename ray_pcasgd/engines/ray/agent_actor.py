"""The actor around an agent: it waits, reads the clock, sends and receives; what is computed it leaves to the agent."""

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import ray
import torch
from ray.actor import ActorHandle
from torch import Tensor
from torch.utils._pytree import tree_map

from ray_pcasgd.agent import Agent, AgentSpec, Received
from ray_pcasgd.engines.base import RunError
from ray_pcasgd.engines.ray.transport import Contents, Outbox, Parcel, pack, unpack
from ray_pcasgd.learner import NonFiniteLossError
from ray_pcasgd.mailbox import Header, Mailbox, Message
from ray_pcasgd.records import Event, Read, Row, Snapshot, StepReport
from ray_pcasgd.tasks.task import TaskData

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


class Found(NamedTuple):
    """What is going to be read, where it lies."""

    read: Read
    state: Contents
    direction: Parcel | None


class AgentActor:
    """One agent with its mailbox. Training runs in a thread of its own, so no message ever waits for a gradient."""

    def __init__(self, spec: AgentSpec, data: TaskData, driving: Driving, scheduler: ActorHandle[Any]) -> None:
        torch.set_num_threads(driving.threads)
        torch.backends.cudnn.deterministic = True
        self.agent = Agent(spec, data)
        self.spec = spec
        self.driving = driving
        self.scheduler = scheduler
        self.mailbox: Mailbox[Contents] = Mailbox(spec.neighbors)
        self.changed = threading.Condition()
        self.stopped = False
        self.outbox = Outbox({})
        self.gone: set[int] = set()
        self.unsent: list[StepReport | Event] = []
        self.sent_at = time.perf_counter()
        self.started_at = 0.0
        self.step_seconds = 0.0

    def __repr__(self) -> str:
        return f"Agent({self.spec.agent})"

    def ready(self) -> str:
        """Return where the agent lives, once it is built."""
        return f"process {os.getpid()} on {ray.util.get_node_ip_address()}, {self.agent.replica.device}"

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
        start = Contents(pack(self.agent.weights), pack(self.agent.buffers), None)
        with self.changed:
            for k in self.spec.neighbors:
                self.mailbox.start(Message(Header(k, 0, started_at, 0.0), start))
        try:
            with contextlib.suppress(StoppedError):
                self.take_steps()
        finally:
            self.report(flush=True)
        self.outbox.flush()

    def is_worth_waking(self) -> bool:
        """Return whether the training thread has something to do about a message; called with the lock held."""
        return True

    def took_in(self, neighbor: int) -> None:
        """Note that a message of this neighbor has come; called with the lock held."""

    def take_steps(self) -> None:
        """Take all steps, in the manner of the mode."""
        raise AssertionError("AgentActor is abstract")

    def compute(self) -> float | None:
        """Compute the direction; nothing where the agent leaves the run, because its loss is not finite."""
        try:
            return self.agent.check_finite(self.agent.compute())
        except NonFiniteLossError as error:
            if not self.spec.recipe.isolate_non_finite:
                raise
            self.unsent.append(Event("agent_isolated", error.agent, error.step, str(error)))
            self.send(None, isolated=True)
            return None

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
                    f"agent {self.spec.agent} waited {self.driving.wait_seconds:g} s at step {self.agent.version} "
                    f"for {missing()}"
                )
            due = self.mailbox.next_due()
            self.changed.wait(min(deadline, due if due is not None else deadline) - now)

    def find(self, read: Read) -> Found:
        """Return where what is read lies; called with the lock held, since a newer message may replace it any time."""
        message = self.mailbox.get(read.neighbor, read.version)
        assert message is not None, read
        assert message.contents is not None, read
        return Found(read, message.contents, self.direction_of(read.neighbor, read.version))

    def open(self, found: Found) -> Received:
        """Return what was found, fetched; called without the lock, since a fetch may take its time."""
        device = self.agent.replica.device
        direction: Tensor | None = None
        if self.spec.recipe.needs_direction(self.spec.agent, found.read):
            # Only an agent that has left the run owes a direction: it has moved nowhere since.
            direction = torch.zeros_like(self.agent.weights)
            if found.direction is not None:
                direction = unpack(found.direction, device)
        weights, buffers = (unpack(parcel, device) for parcel in (found.state.weights, found.state.buffers))
        return Received(found.read, weights, buffers, direction)

    def publish(self) -> None:
        """Send the agent's new version to its neighbors."""
        agent = self.agent
        needed = self.spec.recipe.rule.needs_directions
        direction = pack(agent.direction) if needed and self.spec.neighbors else None
        self.send(Contents(pack(agent.weights), pack(agent.buffers), direction) if self.spec.neighbors else None)

    def send(self, contents: Contents | None, isolated: bool = False) -> None:
        """Send one message to every neighbor, and report those that are gone."""
        version = self.agent.version
        final = version == self.spec.recipe.num_steps
        common = Header(self.spec.agent, version, time.time(), self.step_seconds, final=final, isolated=isolated)
        headers = {k: self.address(common, k) for k in self.spec.neighbors}
        for k in self.outbox.send(headers, contents, may_skip=self.may_skip):
            self.gone.add(k)
            self.unsent.append(Event("neighbor_lost", self.spec.agent, version, f"agent {k} does not answer"))

    may_skip = False

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
        snapshot: Any = ray.put(_portable(agent.snapshot())) if evaluates else None
        self.unsent.append(
            StepReport(
                row=row,
                progress=agent.progress,
                loss=loss,
                measures=measures,
                bytes_sent=agent.message_bytes * len(self.spec.neighbors),
                wall_seconds=time.time() - self.started_at,
                snapshot=snapshot,
                evaluation=agent.evaluate() if evaluates else None,
            )
        )
        self.report(flush=evaluates)

    def report(self, flush: bool = False) -> None:
        """Hand what has gathered to the scheduler, now or when it is due."""
        now = time.perf_counter()
        if self.unsent and (flush or now - self.sent_at > REPORT_SECONDS):
            self.scheduler.record.remote(self.unsent)
            self.unsent = []
            self.sent_at = now


def _portable(snapshot: Snapshot) -> Any:
    return tree_map(lambda tensor: tensor.detach().cpu().numpy(), tuple(snapshot))


class PlannedAgentActor(AgentActor):
    """Waits for exactly the versions that its rows name: the result does not depend on the machine's timing."""

    awaited: Row | None = None
    """The row whose reads are waited for."""

    def take_steps(self) -> None:
        """Execute the agent's rows in order."""
        rows: deque[Row] = deque()
        asked: Any = self.scheduler.deal.remote(self.spec.agent, DEAL_ROWS)
        while self.agent.version < self.spec.recipe.num_steps:
            if not rows:
                rows.extend(ray.get(asked))
                asked = self.scheduler.deal.remote(self.spec.agent, DEAL_ROWS)
            if not rows:
                return
            loss = self.compute()
            if loss is None:
                return
            row = rows.popleft()
            found = self.await_reads(row)
            measures = self.agent.apply([self.open(item) for item in found])
            self.publish()
            self.finish_step(row._replace(reads=tuple(item.read for item in found)), loss, measures)

    def await_reads(self, row: Row) -> list[Found]:
        """Wait for every version that the row names; leave out those of agents that left the run before them."""

        def names() -> str:
            missing = (read for read in row.reads if self.is_missing(read))
            return " and ".join(f"version {read.version} of agent {read.neighbor}" for read in missing)

        with self.changed:
            self.awaited = row
            self.wait_until(self.is_worth_waking, names)
            gone = self.mailbox.isolated
            found = [self.find(read) for read in row.reads if not gone(read.neighbor, read.version)]
            for read in row.reads:
                self.mailbox.forget(read.neighbor, read.version)
            return found

    def is_worth_waking(self) -> bool:
        """Return whether all that the awaited row names is here: to wake up at each message would cost more than it."""
        return self.awaited is None or not any(map(self.is_missing, self.awaited.reads))

    def is_missing(self, read: Read) -> bool:
        """Return whether something is still to come that this read needs."""
        if self.mailbox.isolated(read.neighbor, read.version):
            return False
        if self.mailbox.get(read.neighbor, read.version) is None:
            return True
        return (
            self.spec.recipe.needs_direction(self.spec.agent, read)
            and self.direction_of(read.neighbor, read.version) is None
            and not self.mailbox.left(read.neighbor)
        )
