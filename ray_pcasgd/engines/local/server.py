"""The local engine's execution of a schedule with servers, in the order of its data flow."""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ray_pcasgd.agents.server import Received, Server, ServerSpec, Worker, WorkerSpec
from ray_pcasgd.base.state import State, difference
from ray_pcasgd.engines.base import Leaving, Pause, RunError, StateError
from ray_pcasgd.engines.failures import naming, require_own, restoring, who_of
from ray_pcasgd.engines.local.batching import compute_together
from ray_pcasgd.records import Row, StepReport
from ray_pcasgd.schedule.scheduler import tell_loss
from ray_pcasgd.tasks.task import TaskData


def server_reports(
    rows: Iterator[Row | None],
    specs: Sequence[WorkerSpec | ServerSpec],
    data: TaskData,
    stacks: bool,
    pauses: bool,
    state: State | None,
    leaving: Leaving,
) -> Iterator[StepReport | Pause]:
    """Execute rows of workers and servers; a row runs once everything exists that it reads.

    Workers' rows that are ready together run as one batch where ``stacks`` says so. Where it ``pauses``, it does so at
    evaluations, and when ``leaving`` asks for it; from a ``state`` it goes on.
    """
    execution = _Execution(rows, specs, data, stacks)
    execution.leaving = leaving
    execution.go_on(state)
    return execution.reports(pauses)


class _Execution:
    leaving = Leaving()
    """Whether the next pause is to come as soon as it can."""

    def __init__(
        self, rows: Iterator[Row | None], specs: Sequence[WorkerSpec | ServerSpec], data: TaskData, stacks: bool
    ) -> None:
        self.rows = rows
        self.specs = specs
        self.workers: dict[int, Worker] = {}
        self.servers: dict[int, Server] = {}
        for spec in specs:
            with naming(spec.agent, 0):
                if isinstance(spec, WorkerSpec):
                    self.workers[spec.agent] = Worker(spec, data)
                else:
                    self.servers[spec.agent] = Server(spec, data)
        rule = specs[0].recipe.rule
        self.cancels = rule.gathering.cancels
        self.stacks = stacks and rule.pieces == 1 and not rule.workers_step
        self.window: deque[Row] = deque()
        self.versions = {s: {0: (server.weights, server.buffers)} for s, server in self.servers.items()}
        """Of each server, what its workers may still read."""
        self.messages: dict[int, dict[int, _Message]] = {k: {} for k in self.workers}
        """Of each worker by version, what some server has not read."""
        self.last_read = {(i, k): 0 for i in self.workers for k in self.servers} | {
            (k, i): 0 for i in self.workers for k in self.servers
        }
        """The version that an agent has read last of another."""
        self.drawn = 0
        """Rows that the schedule was asked for."""
        self.evaluations = 0
        """Evaluations that all servers have come to."""
        self.started = time.perf_counter()

    def reports(self, pauses: bool) -> Iterator[StepReport | Pause]:
        while ready := self.take_ready():
            computing = [row for row in ready if row.agent in self.workers and row.kind == "step"]
            if self.stacks and len(computing) > 1:
                yield from self.compute_together(computing)
                ready = [row for row in ready if row not in computing]
            for row in ready:
                yield self.execute(row)
            if pauses:
                yield from self.pause()

    def pause(self) -> Iterator[Pause]:
        """Yield a pause where all servers have come to a further evaluation, or one is asked for; between rows."""
        steps = [server.progress for server in self.servers.values()]
        recipe = self.specs[0].recipe
        is_due = min(steps) // recipe.evaluate_every > self.evaluations
        if min(steps) < recipe.num_steps and (is_due or self.leaving.is_asked):
            self.evaluations = min(steps) // recipe.evaluate_every
            yield Pause(min(steps), max(steps), self.state)

    def state(self) -> State:
        """Return all that the rows to come depend on; its tensors are those in use."""
        return {
            "agents": [one.state() for one in self.all()],
            "window": list(self.window),
            "versions": {k: {v: list(parts) for v, parts in own.items()} for k, own in self.versions.items()},
            "messages": {k: {v: vars(message) for v, message in own.items()} for k, own in self.messages.items()},
            "last_read": self.last_read,
            "drawn": self.drawn,
            "evaluations": self.evaluations,
            "seconds": time.perf_counter() - self.started,
        }

    def go_on(self, state: State | None) -> None:
        """Go on from a state, where one is given.

        Raises:
            StateError: it is not one of this run.

        """
        if state is None:
            return
        with restoring():
            require_own(state, self.state(), len(self.specs))
            self.restore(state)
            worker = self.workers[0]
            for message in (one for own in self.messages.values() for one in own.values()):
                for name, value in (("vector", worker.message), ("buffers", worker.buffers)):
                    if (found := difference(value, getattr(message, name), f"messages.{name}")) is not None:
                        raise StateError(found)

    def restore(self, state: State) -> None:
        """Go on from a state, with the same schedule from its beginning."""
        device = self.workers[0].weights.device
        for one, own in zip(self.all(), state["agents"], strict=True):
            one.restore(own)
        self.window = deque(state["window"])
        self.versions = {
            k: {v: (weights.to(device), buffers.to(device)) for v, (weights, buffers) in own.items()}
            for k, own in state["versions"].items()
        }
        for k, own in state["messages"].items():
            self.messages[k] = {v: _Message(**_on(device, message)) for v, message in own.items()}
        self.last_read, self.drawn, self.evaluations = state["last_read"], state["drawn"], state["evaluations"]
        self.started = time.perf_counter() - state["seconds"]
        for _ in range(self.drawn):
            next(self.rows)

    def all(self) -> list[Worker | Server]:
        """Return workers and servers in the order of their numbers."""
        return [*self.workers.values(), *self.servers.values()]

    def take_ready(self) -> list[Row]:
        """Take the rows that can run now, in the schedule's order; an empty list once all rows have run."""
        limit = 2 * len(self.specs) if self.stacks else 1
        while True:
            ended = False
            while len(self.window) < limit:
                try:
                    row = next(self.rows)
                except StopIteration:
                    ended = True
                    break
                if row is None:
                    break  # what comes next depends on rows that are in the window
                self.drawn += 1
                self.window.append(row)
            ready = [row for row in self.window if self.is_ready(row)]
            if ready or (ended and not self.window):
                self.window = deque(row for row in self.window if row not in ready)
                return ready
            if len(self.window) < limit:
                raise RunError(self.why_stuck(self.window[0]))
            limit *= 2

    def is_ready(self, row: Row) -> bool:
        if row.agent in self.servers:
            server = self.servers[row.agent]
            return server.version == row.step and all(r.version in self.messages[r.neighbor] for r in row.reads)
        if row.kind == "rejoined":
            at_its_step = row is next(own for own in self.window if own.agent == row.agent)
        else:
            at_its_step = self.workers[row.agent].version == row.step
        return at_its_step and (
            row.kind == "cancelled" or all(r.version in self.versions[r.neighbor] for r in row.reads)
        )

    def why_stuck(self, row: Row) -> str:
        return (
            f"schedule: agent {row.agent} at step {row.step} reads {', '.join(map(str, row.reads))}, and no row before "
            "it publishes all of that"
        )

    def execute(self, row: Row) -> StepReport:
        if row.agent in self.servers:
            return self.update(row)
        worker = self.workers[row.agent]
        if row.kind == "cancelled":
            worker.skip()
            self.pass_over(row)
            return self.computed(row, None)
        if row.kind == "rejoined":
            worker.rejoin(self.read_by_worker(row), row.step + 1)
            return self.computed(row, None)
        states = self.read_by_worker(row)
        with naming(row.agent, worker.progress):
            loss = worker.step(states)
        assert loss is not None
        return self.computed(row, loss)

    def compute_together(self, rows: list[Row]) -> Iterator[StepReport]:
        workers = [self.workers[row.agent] for row in rows]
        for row, worker in zip(rows, workers, strict=True):
            worker.begin(self.read_by_worker(row))
        with naming(-1, min(worker.progress for worker in workers), who_of(workers)):
            losses = compute_together(workers).tolist()
        for row, worker, loss in zip(rows, workers, losses, strict=True):
            worker.check_finite(loss)
            worker.finish()
            yield self.computed(row, loss)

    def read_by_worker(self, row: Row) -> list[Received]:
        states = [Received(read, *self.versions[read.neighbor][read.version]) for read in row.reads]
        self.pass_over(row)
        return states

    def pass_over(self, row: Row) -> None:
        """Note what a worker has read, or would have read for work that was cancelled."""
        for read in row.reads:
            self.last_read[row.agent, read.neighbor] = read.version
            self.forget_versions(read.neighbor)

    def computed(self, row: Row, loss: float | None) -> StepReport:
        """Keep a worker's message, and report the row."""
        worker = self.workers[row.agent]
        if loss is not None:
            self.messages[row.agent][worker.version] = _Message(
                worker.message,
                worker.buffers,
                worker.changed_local,
                worker.with_gradient,
                computed_at={read.neighbor: read.version for read in row.reads},
                begun_at={read.neighbor: read.version + read.staleness for read in row.reads},
                loss=loss,
            )
            tell_loss(self.rows, row, loss)
        return StepReport(
            row=row,
            progress=worker.progress,
            loss=float("nan") if loss is None else loss,
            measures={},
            bytes_sent=0 if loss is None else worker.message_bytes,
            wall_seconds=time.perf_counter() - self.started,
        )

    def update(self, row: Row) -> StepReport:
        server = self.servers[row.agent]
        part = server.spec.recipe.part(server.spec.place, self.workers[0].weights.numel())
        messages = [self.messages[read.neighbor][read.version] for read in row.reads]
        received = [
            Received(
                read,
                message.vector[part],
                message.buffers if server.spec.place == 0 else message.buffers[:0],
                message.local,
                message.with_gradient,
            )
            for read, message in zip(row.reads, messages, strict=True)
        ]
        before = server.progress
        with naming(row.agent, server.progress):
            measures = server.step(received)
        self.versions[row.agent][server.version] = (server.weights, server.buffers)
        for read in row.reads:
            self.last_read[row.agent, read.neighbor] = read.version
        for worker in self.workers:
            self.forget_messages(worker)
        self.forget_versions(row.agent)
        point = server.evaluation_point(before)
        return StepReport(
            row=row,
            progress=server.progress if point is None else point,
            loss=sum(message.loss for message in messages) / len(messages),
            measures=measures,
            bytes_sent=server.message_bytes * len(messages),
            wall_seconds=time.perf_counter() - self.started,
            snapshot=None if point is None else server.snapshot(),
        )

    def forget_messages(self, worker: int) -> None:
        """Drop the messages that every server has read, passed over, or will not take."""
        oldest = min(self.last_read[server, worker] for server in self.servers)
        messages = self.messages[worker]
        for version in [v for v, message in messages.items() if v <= oldest or self.is_too_late(message)]:
            del messages[version]

    def is_too_late(self, message: "_Message") -> bool:
        """Return whether an update of every server has cancelled the message."""
        return self.cancels and all(self.servers[s].version > begun for s, begun in message.begun_at.items())

    def forget_versions(self, server: int) -> None:
        """Drop the versions that no worker can read any more, and that no message was computed at."""
        oldest = min(self.last_read[worker, server] for worker in self.workers)
        published = self.versions[server]
        for version in [v for v in published if v < oldest]:
            del published[version]
        needed = {m.computed_at[server] for messages in self.messages.values() for m in messages.values()}
        self.servers[server].keep(lambda version: version >= oldest or version in needed)


@dataclass(eq=False)
class _Message:
    """What a worker has sent."""

    vector: Tensor
    buffers: Tensor
    local: dict[str, Tensor]
    with_gradient: Tensor | None
    computed_at: dict[int, int]
    begun_at: dict[int, int]
    """The newest version of each server when the work was begun."""
    loss: float


def _on(device: torch.device, fields: dict[str, Any]) -> dict[str, Any]:
    moved = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in fields.items()}
    return moved | {"local": {name: value.to(device) for name, value in fields["local"].items()}}
