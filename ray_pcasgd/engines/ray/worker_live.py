"""The actor around a worker in live mode: it starts when its servers have answered, and may come back."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.actor import ActorHandle

from ray_pcasgd.agents.mailbox import Answer, Delivery, Header
from ray_pcasgd.agents.server import Received, WorkerSpec
from ray_pcasgd.engines.base import InterruptionError
from ray_pcasgd.engines.live.injection import InjectedDelays
from ray_pcasgd.engines.ray.server_actors import WorkerActor
from ray_pcasgd.engines.ray.shell import Driving, StoppedError
from ray_pcasgd.engines.transport import Contents, RejectedError
from ray_pcasgd.records import Event, Read, Row, RowKind
from ray_pcasgd.tasks.task import TaskData

_START = Header(0, 0, 0.0, 0.0, note=Answer(0, 0))


class LiveWorkerActor(WorkerActor):
    """Starts when all servers have answered, and gives up what they have cancelled."""

    is_live = True

    def __init__(
        self,
        spec: WorkerSpec,
        data: TaskData,
        driving: Driving,
        scheduler: ActorHandle[Any],
        injection: InjectedDelays,
        first_call: int = 0,
    ) -> None:
        super().__init__(spec, data, driving, scheduler, first_call=first_call)
        self.known = {server: _START._replace(sender=server) for server in spec.neighbors}
        """The newest header of each server."""
        self.reading = dict(self.known)
        """Those that the present work was begun with."""
        self.extra_seconds = injection.compute.extra_sampler(injection.seed, spec.agent)
        self.is_leaving = False
        self.is_returning = False
        self.set_links(injection)
        self.worker.warm_up()

    def set_links(self, injection: InjectedDelays) -> None:
        """Take in what an injection says of links."""
        self.links = injection.links_from(self.spec.agent, self.spec.neighbors)

    def take_steps(self) -> None:
        """Take steps until every server has taken all of its own."""
        if self.is_returning and self.await_answers():
            self.rejoin()
        while self.await_answers():
            self.take_step()

    @ray.method(concurrency_group="train")
    def come_back(self, servers: Mapping[int, ActorHandle[Any]], started_at: float, at_least: int) -> None:
        """Come back into a run and train on; the worker's next version is ``at_least`` this one."""
        self.started_at = started_at
        self.outbox = self.transport.outbox(servers)
        agent, myself = self.spec.agent, ray.get_runtime_context().current_actor
        handles: list[Any] = list(servers.values())
        # Of what a lost worker did last, its servers know more than the driver.
        known: list[int] = ray.get([server.newest_of.remote(agent) for server in handles])
        self.worker.version = max([at_least, *(version + 1 for version in known)])
        if all(ray.get([server.welcome.remote(agent, myself, self.worker.version) for server in handles])):
            self.is_returning = True
            self.train_on()

    @ray.method(concurrency_group="mail")
    def leave(self) -> None:
        """Leave the run on purpose, without a gradient that is unfinished."""
        self.is_leaving = True
        with self.changed:
            self.stopped = True
            self.changed.notify_all()

    def on_leave(self) -> None:
        """Say that the worker has left, if it was asked to."""
        if self.is_leaving:
            detail = f"worker {self.spec.agent} has left at step {self.version}, as it was asked to"
            self.unsent.append(Event("agent_left", self.spec.agent, self.version, detail))

    def rejoin(self) -> None:
        """Be in the run again, with the weights that the servers have answered."""
        version, now = self.worker.version, self.now()
        with self.changed:
            reads = [self.read_of(header) for header in self.known.values()]
            found = [self.find(read) for read in reads]
        self.worker.rejoin(self.open_all(found), version)
        detail = f"worker {self.spec.agent} is back at step {version}, with its servers' weights"
        self.unsent.append(Event("agent_returned", self.spec.agent, version, detail))
        self.submit(Row(self.spec.agent, version - 1, now, now, now, tuple(reads), "rejoined"), None)
        self.report(flush=True)

    def await_answers(self) -> bool:
        """Wait until the worker may start; return whether the run goes on."""
        with self.changed:
            self.wait_until(self.may_start, self.unanswered)
            return not self.is_over()

    def take_step(self) -> None:
        """Compute and deliver, or give up where the work is cancelled."""
        started = self.now()
        with self.changed:
            self.reading = dict(self.known)
            reads = [self.read_of(header) for header in self.reading.values()]
            found = [self.find(read) for read in reads]
            for read in reads:
                self.mailbox.drop(read.neighbor, read.version - 1)
        states = self.open_all(found)
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

    def open_all(self, found: Sequence[tuple[Read, Header, Contents]]) -> list[Received]:
        """Return the servers' weights, fetched.

        Raises:
            InterruptionError: they are not what they must be, and there are no others: the worker comes back.

        """
        try:
            return [self.fetch(read, contents) for read, _, contents in found]
        except RejectedError as error:
            who = self.spec.agent
            raise InterruptionError(f"worker {who} was sent weights that it had to reject: {error}", who) from error

    def take_news(self) -> None:
        """Take in the headers that have come; called with the lock held."""
        self.mailbox.advance(time.monotonic())
        for header in self.mailbox.news():
            message = self.mailbox.get(header.sender, header.version)
            if message is not None and message.contents is None:
                # What it says of its weights was rejected: it is an answer all the same, at the weights before it.
                header = header._replace(version=self.known[header.sender].version)
            self.known[header.sender] = header

    def may_start(self) -> bool:
        """Return whether every server has answered, or all are done."""
        self.take_news()
        return self.is_over() or all(map(self.has_answered, self.known))

    def unanswered(self) -> str:
        """Return which servers have not answered, in words."""
        late = [server for server in self.known if not self.has_answered(server)]
        return f"an answer of {' and '.join(f'server {server}' for server in late)}"

    def has_answered(self, server: int) -> bool:
        """Return whether a server has answered the last gradient, cancelled it, or answers no more."""
        header = self.known[server]
        assert isinstance(header.note, Answer)
        is_answered = header.final or header.note.answers >= self.worker.version
        return is_answered or (self.cancels and self.has_moved_on(server))

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
        """Return whether the present work is not needed any more."""
        with self.changed:
            self.take_news()
            return self.is_void()

    def is_void(self) -> bool:
        """Return whether the present work is not needed, as far as is known; called with the lock held."""
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
