"""Plans who delivers which gradient when, around a server: an event-driven simulation of timing alone."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from ray_pcasgd.records import Read, Row
from ray_pcasgd.rules.gatherer import Arrival, Gatherer, Position, has_expired
from ray_pcasgd.rules.gathering_base import Gathering
from ray_pcasgd.schedule.simulation import (
    Calendar,
    Channel,
    Computing,
    Timing,
    in_nanoseconds,
    in_seconds,
    row_times,
)
from ray_pcasgd.schedule.transfers import HostPipes


@dataclass(frozen=True, kw_only=True)
class ServerPlanner(Timing):
    """The timing of a run with P workers, agents 0 to P - 1, and servers, the agents from P on.

    A worker reads its servers' versions, computes, and sends its gradient, a part to each server. A server takes
    gradients as its gathering says, and answers a worker at once, or, where workers wait, at the update that takes
    the gradient, and where that comes too late; where a policy cancels, a new version also goes to all workers whose
    work it makes too late. A worker starts again when all servers have answered; its work is cancelled once it comes
    too late for all of them.

    Time is whole nanoseconds. **Choice**: of what happens at one instant, messages come before gradients that become
    ready, and both by the worker's number; so workers that are equally fast are served one after another. An update
    whose grace ends then comes last. Where work of an older version is ignored (``rennala``, ``malenia``), workers are
    answered once all gradients of the instant have come, so that none begins again at what an update replaces at once.

    A delay in steps holds back a server's weights, towards a worker, until the server has made that many more steps of
    progress (``Position``); gradients are late by seconds alone. Rows come in an order in which they can be
    executed; iterating yields ``None`` where what comes next depends on losses that have not been told.
    """

    num_workers: int
    num_servers: int
    gathering: Gathering
    num_steps: int
    """The run ends when each server has taken this many mini-batches for each worker."""
    local_steps: tuple[int, ...]
    """Mini-batches of each worker's message."""
    reads_before: int
    """How many versions before a server's newest one a worker reads."""
    gradients: tuple[int, ...] = ()
    """Mini-batch gradients that each worker's message takes; empty: one of each of its mini-batches."""
    shard_batches: tuple[int, ...] = ()
    """Mini-batches of each worker's shard, all of which it computes where an epoch begins; empty: there are none."""
    gradient_bytes: tuple[int, ...] = ()
    """Bytes of a worker's message to each server; only bandwidths ask for it; empty: 0."""
    weights_bytes: tuple[int, ...] = ()
    """Bytes of each server's message to a worker, likewise."""

    def __iter__(self) -> "ServerRows":
        return ServerRows(self)


class ServerRows(Iterator[Row | None]):
    """The rows of one pass over a plan; it has to be told the losses of those that have been executed."""

    def __init__(self, plan: ServerPlanner, course: "Simulation | None" = None) -> None:
        self._simulation = course or Simulation(plan)
        self._rows = self._simulation.rows()
        self._num_workers = plan.num_workers

    def __next__(self) -> Row | None:
        return next(self._rows)

    def tell(self, row: Row, loss: float) -> None:
        """Take in the loss of a row that was executed."""
        if row.agent < self._num_workers:
            for server in self._simulation.servers:
                server.gatherer.tell(row.agent, row.step + 1, loss)


class Notice(NamedTuple):
    """What a server tells a worker."""

    newest: int
    reads: int
    """The version that the worker is going to read."""
    answers: int
    """The worker's newest gradient that this answers."""


class Worker:
    """A worker of a plan, and what it knows."""

    def __init__(self, plan: ServerPlanner, number: int, pipes: HostPipes) -> None:
        self.number = number
        self.gradients = Computing(plan, number)
        self.known = [Notice(0, 0, 0)] * plan.num_servers
        """The newest notice of each server."""
        self.reading = self.known
        """The notices that the present work was begun with."""
        self.version = 0
        self.start = 0
        self.computing = False
        sizes = plan.gradient_bytes or (0,) * plan.num_servers
        self.to_server = [Channel(plan, number, plan.num_workers + s, size, pipes) for s, size in enumerate(sizes)]


class Server:
    """A server of a plan, and what it has."""

    def __init__(self, plan: ServerPlanner, number: int, pipes: HostPipes) -> None:
        self.number = number
        self.gatherer = Gatherer(plan.gathering, plan.num_workers)
        self.position = Position(plan.local_steps)
        size = plan.weights_bytes[number] if plan.weights_bytes else 0
        self.to_worker = [Channel(plan, plan.num_workers + number, k, size, pipes) for k in range(plan.num_workers)]
        self.given = [0] * plan.num_workers
        """The version that each worker was told to read last."""
        self.told = [0] * plan.num_workers
        """The newest version when each worker was told so."""
        self.graced = -1
        """The version before the update whose grace has begun last."""


class GraceEnd(NamedTuple):
    """When a server waits no longer for more gradients than it has."""

    version: int
    """The server's, before the update."""


class Reply(NamedTuple):
    """That a worker is to be answered, once all that comes at the same instant has come."""

    version: int
    """The worker's newest gradient that this answers."""


NOTICE, GRADIENT, READY, REPLY, GRACE = range(5)
"""The order at one instant."""


class Simulation:
    """The course of one plan."""

    def __init__(self, plan: ServerPlanner) -> None:
        self.plan = plan
        pipes = HostPipes(plan.hosts)
        self.workers = [Worker(plan, number, pipes) for number in range(plan.num_workers)]
        self.servers = [Server(plan, number, pipes) for number in range(plan.num_servers)]
        self.calendar = Calendar[tuple[int, int, object]]()
        """A worker, a server, and what comes to one of them; of a gradient that is ready the worker's version."""

    def enter(self, moment: int, rank: int, worker: int, server: int, content: object) -> None:
        """Enter what happens at a moment."""
        self.calendar.enter(moment, (worker, server, content), rank, worker, server)

    def rows(self) -> Iterator[Row | None]:
        """Yield all rows; ``None`` where what comes next depends on losses that have not been told."""
        for worker in self.workers:
            self.begin(worker, 0)
        while not all(map(self.is_over, self.servers)):
            event = self.calendar.pop()
            assert event is not None
            now, (number, place, content) = event
            yield from self.happen(self.workers[number], self.servers[place], content, now)

    def happen(self, worker: Worker, server: Server, content: object, now: int) -> Iterator[Row | None]:
        """Let an event happen."""
        if isinstance(content, Notice):
            yield from self.notice(worker, server.number, content, now)
        elif isinstance(content, Arrival):
            while not server.gatherer.adapt(in_seconds(now)):
                yield None
            yield from self.arrive(server, content, now)
        elif isinstance(content, Reply):
            self.answer(server, worker.number, content.version, now)
        elif isinstance(content, GraceEnd):
            yield from self.end_grace(server, content, now)
        elif worker.computing and worker.version == content:
            yield self.ready(worker, now)

    def send(
        self, channel: Channel, version: int, now: int, rank: int, worker: int, server: int, content: object
    ) -> None:
        """Enter what happens when a message arrives that is sent now."""
        self.calendar.send(channel, version, now, (worker, server, content), rank, worker, server)

    def is_over(self, server: Server) -> bool:
        """Return whether a server has taken all steps of the run."""
        return server.position.steps >= self.plan.num_steps

    def begin(self, worker: Worker, now: int) -> None:
        """Let a worker read and start to compute."""
        worker.reading = list(worker.known)
        worker.start = now
        worker.computing = True
        ready = worker.gradients.ready_at(now, self.num_gradients(worker))
        self.enter(ready, READY, worker.number, 0, worker.version)

    def num_gradients(self, worker: Worker) -> int:
        """Return how many mini-batch gradients the work takes that a worker begins."""
        plan = self.plan
        if plan.gathering.begins_epoch(worker.reading[0].reads):
            return plan.shard_batches[worker.number]
        return (plan.gradients or plan.local_steps)[worker.number]

    def end(self, worker: Worker, now: int, kind: Literal["step", "cancelled"]) -> Row:
        """Let a worker's work end, by a gradient or without one."""
        worker.computing = False
        worker.version += 1
        reads = tuple(
            Read(self.plan.num_workers + s.number, notice.reads, notice.newest - notice.reads, 0)
            for s, notice in zip(self.servers, worker.reading, strict=True)
        )
        return Row(worker.number, worker.version - 1, *row_times(worker.start, now, now), reads, kind)

    def ready(self, worker: Worker, now: int) -> Row:
        """Send a gradient that is done to every server."""
        row = self.end(worker, now, "step")
        for channel, notice, server in zip(worker.to_server, worker.reading, self.servers, strict=True):
            arrival = Arrival(worker.number, worker.version, notice.reads, notice.newest)
            self.send(channel, worker.version, now, GRADIENT, worker.number, server.number, arrival)
        return row

    def notice(self, worker: Worker, place: int, notice: Notice, now: int) -> Iterator[Row]:
        """Let a worker hear from a server."""
        worker.known[place] = notice._replace(answers=max(notice.answers, worker.known[place].answers))
        if worker.computing and all(map(self.is_cancelled, worker.known, worker.reading)):
            yield self.end(worker, now, "cancelled")
        if not worker.computing and all(self.is_answer(worker, s) for s in range(self.plan.num_servers)):
            self.begin(worker, now)

    def is_cancelled(self, known: Notice, reading: Notice) -> bool:
        """Return whether a server is known to take no more what was begun with a notice."""
        gathering = self.plan.gathering
        return gathering.cancels and has_expired(gathering, reading.newest, known.newest)

    def is_answer(self, worker: Worker, place: int) -> bool:
        """Return whether a server has answered a worker's last gradient, or cancelled it."""
        known = worker.known[place]
        return known.answers >= worker.version or self.is_cancelled(known, worker.reading[place])

    def arrive(self, server: Server, arrival: Arrival, now: int) -> Iterator[Row]:
        """Let a gradient arrive, and update if it is time."""
        counts = not self.is_over(server) and server.gatherer.arrive(arrival)
        taken = server.gatherer.take() if counts else ()
        if taken:
            yield self.update(server, taken, now)
        is_waited_for = self.plan.gathering.waits and counts
        answered = {one.worker: one.version for one in (taken if is_waited_for else (arrival,))}
        for number, version in (self.with_cancelled(server, answered) if taken else answered).items():
            if self.plan.gathering.ignores_older:
                self.enter(now, REPLY, number, server.number, Reply(version))
            else:
                self.answer(server, number, version, now, server.gatherer.renews(taken))
        self.begin_grace(server, now)

    def with_cancelled(self, server: Server, answered: dict[int, int]) -> dict[int, int]:
        """Return whom an update answers, and which gradient of theirs: those too whose work it cancels."""
        gathering, version = self.plan.gathering, server.gatherer.version
        if not gathering.cancels:
            return answered
        late = {k for k, told in enumerate(server.told) if has_expired(gathering, told, version)}
        return {k: answered.get(k, 0) for k in sorted(late.union(answered))}

    def begin_grace(self, server: Server, now: int) -> None:
        """Let a grace begin, if it is time, at the end of which the server updates."""
        gatherer = server.gatherer
        if gatherer.is_in_grace and server.graced < gatherer.version:
            server.graced = gatherer.version
            moment = now + in_nanoseconds(self.plan.gathering.grace)
            self.enter(moment, GRACE, 0, server.number, GraceEnd(gatherer.version))

    def end_grace(self, server: Server, end: GraceEnd, now: int) -> Iterator[Row]:
        """Update with what is there, unless all gradients have come before."""
        if self.is_over(server) or server.gatherer.version != end.version:
            return
        server.gatherer.end_grace()
        taken = server.gatherer.take()
        if not taken:
            return  # fewer than K are left; the next K-th one is waited for alone
        yield self.update(server, taken, now)
        for one in taken:
            self.answer(server, one.worker, one.version, now)

    def update(self, server: Server, taken: tuple[Arrival, ...], now: int) -> Row:
        """Let a server update over what it has taken."""
        version = server.gatherer.version - 1
        staleness = [version - one.computed_at for one in taken]
        reads = sorted(Read(one.worker, one.version, tau, tau) for one, tau in zip(taken, staleness, strict=True))
        server.position.advance(one.worker for one in taken)
        return Row(self.plan.num_workers + server.number, version, *row_times(now, now, now), tuple(reads))

    def answer(self, server: Server, worker: int, version: int, now: int, is_renewed: bool = True) -> None:
        """Send the server's newest version, or the one that the link lets through, to a worker, or the one it has."""
        channel, newest = server.to_worker[worker], server.gatherer.version
        held = server.position.version_before(channel.hold_steps(server.position.steps, now))
        reads = max(server.given[worker], min(held, newest - self.plan.reads_before) if is_renewed else 0)
        reads = max(reads, self.plan.gathering.oldest_read(newest))
        server.given[worker], server.told[worker] = reads, newest
        self.send(channel, newest, now, NOTICE, worker, server.number, Notice(newest, reads, version))
