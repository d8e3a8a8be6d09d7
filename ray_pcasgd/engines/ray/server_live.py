"""The actors around workers and servers in live mode: what arrives decides, and what was read is recorded."""

import time
from typing import Any

import ray
from ray.actor import ActorHandle

from ray_pcasgd.engines.base import RunError
from ray_pcasgd.engines.ray.injection import Injection
from ray_pcasgd.engines.ray.server_actors import ServerActor, WorkerActor
from ray_pcasgd.engines.ray.shell import Driving, StoppedError
from ray_pcasgd.engines.ray.transport import Contents, pack
from ray_pcasgd.mailbox import Answer, Delivery, Header
from ray_pcasgd.records import Event, Read, Row, RowKind
from ray_pcasgd.schedule.gathering import Arrival, Gatherer
from ray_pcasgd.server import ServerSpec, WorkerSpec
from ray_pcasgd.tasks.task import TaskData

_START = Header(0, 0, 0.0, 0.0, note=Answer(0, 0))


class LiveWorkerActor(WorkerActor):
    """Starts when all servers have answered, and gives up what they have cancelled."""

    def __init__(
        self, spec: WorkerSpec, data: TaskData, driving: Driving, scheduler: ActorHandle[Any], injection: Injection
    ) -> None:
        super().__init__(spec, data, driving, scheduler)
        self.known = {server: _START._replace(sender=server) for server in spec.neighbors}
        """The newest header of each server."""
        self.reading = dict(self.known)
        """Those that the present work was begun with."""
        self.extra_seconds = injection.compute.extra_sampler(injection.seed, spec.agent)
        self.set_links(injection)

    def set_links(self, injection: Injection) -> None:
        """Take in what an injection says of links."""
        self.links = injection.links_from(self.spec.agent, self.spec.neighbors)

    def take_steps(self) -> None:
        """Take steps until every server has taken all of its own."""
        while self.await_answers():
            self.take_step()

    def await_answers(self) -> bool:
        """Wait until the worker may start; return whether the run goes on."""
        with self.changed:
            self.wait_until(self.may_start, self.unanswered)
            return not self.is_over()

    def take_step(self) -> None:
        """Compute and deliver, or give up on the way."""
        started = self.now()
        with self.changed:
            self.reading = dict(self.known)
            reads = [self.read_of(header) for header in self.reading.values()]
            found = [self.find(read) for read in reads]
            for read in reads:
                self.mailbox.drop(read.neighbor, read.version - 1)
        states = [self.open(read, contents) for read, _, contents in found]
        if self.wait_longer():
            loss = self.worker.step(states, self.is_cancelled)
        else:
            self.worker.skip()
            loss = None
        if self.stopped:
            raise StoppedError
        if loss is not None:
            self.deliver({read.neighbor: self.header(read, loss) for read in reads})
        ended = self.now()
        kind: RowKind = "cancelled" if loss is None else "step"
        row = Row(self.spec.agent, self.worker.version - 1, started, ended, ended, tuple(reads), kind)
        self.submit(row, loss)

    def take_news(self) -> None:
        """Take in the headers that have come; called with the lock held."""
        self.mailbox.advance(time.monotonic())
        for header in self.mailbox.news():
            self.known[header.sender] = header

    def may_start(self) -> bool:
        """Return whether every server has answered, or all are done."""
        self.take_news()
        return self.is_over() or all(map(self.has_answered, self.known))

    def unanswered(self) -> str:
        """Return who has not answered, in words."""
        late = [server for server in self.known if not self.has_answered(server)]
        return f"an answer of {' and '.join(f'server {server}' for server in late)}"

    def has_answered(self, server: int) -> bool:
        """Return whether a server has answered the last gradient, or cancelled it."""
        note = self.known[server].note
        assert isinstance(note, Answer)
        return note.answers >= self.worker.version or (self.cancels and self.has_moved_on(server))

    def has_moved_on(self, server: int) -> bool:
        """Return whether a server is known to have a newer version than when the present work was begun."""
        newest, known = self.reading[server].note, self.known[server].note
        assert isinstance(newest, Answer)
        assert isinstance(known, Answer)
        return known.newest > newest.newest

    @property
    def cancels(self) -> bool:
        """Whether a server's new version cancels what was begun before it."""
        return self.spec.recipe.rule.gathering.cancels

    def is_over(self) -> bool:
        """Return whether all servers have taken their last step."""
        return all(header.final for header in self.known.values())

    def is_cancelled(self) -> bool:
        """Return whether the present work is of no use any more."""
        with self.changed:
            self.take_news()
            return self.is_void()

    def is_void(self) -> bool:
        """Return whether the present work is of no use, by what is known; called with the lock held."""
        return self.stopped or self.is_over() or (self.cancels and all(map(self.has_moved_on, self.known)))

    def wait_longer(self) -> bool:
        """Wait for the seconds that a straggler's step takes longer; return whether its work is still wanted."""
        deadline = time.monotonic() + self.extra_seconds(self.now())
        with self.changed:
            while (left := deadline - time.monotonic()) > 0:
                self.take_news()
                if self.is_void():
                    return False
                due = self.mailbox.next_due()
                self.changed.wait(left if due is None else min(left, max(0.0, due - time.monotonic())))
        return True

    def read_of(self, header: Header) -> Read:
        """Return what is read of a server."""
        assert isinstance(header.note, Answer)
        return Read(header.sender, header.version, header.note.newest - header.version, 0)

    def header(self, read: Read, loss: float) -> Header:
        """Return the header of the message to one server."""
        now = self.now()
        latency = self.links[read.neighbor].latency_seconds(self.worker.version, now)
        note = Delivery(read.version, read.version + read.staleness, loss)
        return Header(self.spec.agent, self.worker.version, now, 0.0, latency_seconds=latency, note=note)


class LiveServerActor(ServerActor):
    """Updates when its gathering says so, over what has come."""

    def __init__(
        self, spec: ServerSpec, data: TaskData, driving: Driving, scheduler: ActorHandle[Any], injection: Injection
    ) -> None:
        super().__init__(spec, data, driving, scheduler)
        self.gatherer = Gatherer(spec.recipe.rule.gathering, spec.recipe.num_workers)
        self.losses: dict[tuple[int, int], float] = {}
        self.given = dict.fromkeys(spec.neighbors, 0)
        """The version that each worker was told to read last."""
        self.contents = {0: self.packed()}
        """By version, what workers may still be told to read."""
        self.lost: list[int] = []
        """Workers whose loss has not been taken in."""
        self.set_links(injection)
        self.holds = any(entry.unit == "steps" for entry in injection.links)

    def set_links(self, injection: Injection) -> None:
        """Take in what an injection says of links."""
        self.links = injection.links_from(self.spec.agent, self.spec.neighbors)

    def packed(self) -> Contents:
        """Return the present version as it travels."""
        return Contents(pack(self.server.weights), pack(self.server.buffers), None)

    @ray.method(concurrency_group="mail")
    def neighbor_lost(self, agent: int) -> None:
        """Take in that a worker is gone; called from the mail thread."""
        with self.changed:
            self.lost.append(agent)
            self.changed.notify_all()

    def take_steps(self) -> None:
        """Update until all steps are taken, and tell the workers so."""
        while not self.server.is_done:
            with self.changed:
                self.wait_until(lambda: self.mailbox.has_news or bool(self.lost), lambda: "a gradient of any worker")
                news, lost, self.lost = self.mailbox.news(), self.lost, []
            for agent in lost:
                self.lose(agent)
            for header in news:
                if not self.server.is_done:
                    self.arrive(header)
        final = {k: self.answer(k, 0)._replace(final=True) for k in self.given}
        self.send(final)

    def lose(self, agent: int) -> None:
        """Go on without a worker."""
        self.gatherer.lose()
        self.given.pop(agent)
        if not self.given:
            raise RunError("every worker was lost")
        self.unsent.append(Event("neighbor_lost", self.spec.agent, self.version, f"worker {agent} is gone"))
        self.after_arrival(agent, 0, counts=True)

    def arrive(self, header: Header) -> None:
        """Take in a gradient."""
        note = header.note
        assert isinstance(note, Delivery)
        self.losses[header.sender, header.version] = note.loss
        self.gatherer.tell(header.sender, header.version, note.loss)
        self.gatherer.adapt(self.now())
        counts = self.gatherer.arrive(Arrival(header.sender, header.version, note.computed_at, note.round))
        if not counts:
            self.discard(header.sender, header.version)
        self.after_arrival(header.sender, header.version, counts)

    def after_arrival(self, worker: int, version: int, counts: bool) -> None:
        """Update if it is time, and answer those who wait for it."""
        gathering = self.spec.recipe.rule.gathering
        taken = () if self.server.is_done else self.gatherer.take()
        if taken:
            self.update(taken)
        if gathering.cancels and taken:
            answered = {k: version if k == worker else 0 for k in self.given}
        elif gathering.waits and counts:
            answered = {one.worker: one.version for one in taken}
        else:
            answered = {worker: version}
        receivers = {k: self.answer(k, v) for k, v in answered.items() if k in self.given}
        self.send(receivers)

    def update(self, taken: tuple[Arrival, ...]) -> None:
        """Take one update over the gradients that were gathered."""
        server = self.server
        reads = sorted(
            Read(one.worker, one.version, server.version - one.computed_at, server.version - one.computed_at)
            for one in taken
        )
        with self.changed:
            found = [self.find(read) for read in reads]
            for read in reads:
                self.mailbox.drop(read.neighbor, read.version)
        moment, before = self.now(), server.progress
        measures = server.step([self.open(read, contents) for read, _, contents in found])
        losses = [self.losses.pop((read.neighbor, read.version)) for read in reads]
        for one in [one for one in self.losses if not any(one == a[:2] for a in self.gatherer.waiting)]:
            del self.losses[one]
        self.contents[server.version] = self.packed()
        row = Row(self.spec.agent, server.version - 1, moment, moment, moment, tuple(reads))
        self.submit(row, losses, measures, before, len(self.given))

    def discard(self, worker: int, version: int) -> None:
        """Drop a gradient that came too late."""
        self.losses.pop((worker, version), None)
        with self.changed:
            self.mailbox.drop(worker, version)

    def answer(self, worker: int, version: int) -> Header:
        """Return what a worker is told: which version to read."""
        link, position, newest = self.links[worker], self.server.position, self.server.version
        now = self.now()
        held = position.version_before(link.hold_steps(position.steps, now))
        before = self.spec.recipe.rule.reads_before
        reads = max(self.given[worker], min(held, newest - before), 0)
        self.given[worker] = reads
        return Header(
            self.spec.agent,
            reads,
            now,
            0.0,
            latency_seconds=link.latency_seconds(newest, now),
            note=Answer(newest, version),
        )

    def send(self, headers: dict[int, Header]) -> None:
        """Send each worker its answer with the weights that it names, and forget those that nobody will be sent."""
        by_version: dict[int, dict[int, Header]] = {}
        for worker, header in headers.items():
            by_version.setdefault(header.version, {})[worker] = header
        for version, group in by_version.items():
            self.outbox.send(group, self.contents[version], may_skip=False)
        newest = self.server.version - self.spec.recipe.rule.reads_before
        oldest = min(self.given.values()) if self.holds else newest
        for version in [v for v in self.contents if v < oldest]:
            del self.contents[version]
        needed = {*self.given.values(), *(one.computed_at for one in self.gatherer.waiting)}
        self.server.keep(needed.__contains__)
