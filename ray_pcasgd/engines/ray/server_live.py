"""The actor around a server in live mode: what arrives decides, and what was read is recorded."""

import time
from typing import Any, NamedTuple

import ray
from ray.actor import ActorHandle

from ray_pcasgd.agents.mailbox import Answer, Delivery, Header
from ray_pcasgd.agents.server import Received, ServerSpec
from ray_pcasgd.engines.base import InterruptionError
from ray_pcasgd.engines.live.injection import InjectedDelays
from ray_pcasgd.engines.ray.cuts import AgentState, Restored, portable_state
from ray_pcasgd.engines.ray.lost import LOST
from ray_pcasgd.engines.ray.server_actors import ServerActor
from ray_pcasgd.engines.ray.shell import Driving
from ray_pcasgd.engines.ray.transport import Contents
from ray_pcasgd.engines.ray.validation import RejectedError
from ray_pcasgd.records import Event, Read, Row
from ray_pcasgd.rules.gatherer import Arrival, Gatherer
from ray_pcasgd.tasks.task import TaskData


class _Coming(NamedTuple):
    """A worker that comes back."""

    worker: int
    handle: ActorHandle[Any]
    version: int


class LiveServerActor(ServerActor):
    """Updates when its gathering says so, over what has come."""

    def __init__(
        self,
        spec: ServerSpec,
        data: TaskData,
        driving: Driving,
        scheduler: ActorHandle[Any],
        injection: InjectedDelays,
        restored: Restored | None = None,
    ) -> None:
        super().__init__(spec, data, driving, scheduler, restored)
        self.arrived = restored.agent["arrived"] if restored else dict.fromkeys(spec.neighbors, 0)
        """Each worker's newest gradient that has come."""
        self.first = self.server.version
        """The version that the server began with; earlier ones are not here."""
        self.gatherer = Gatherer(spec.recipe.rule.gathering, spec.recipe.num_workers, self.first)
        if restored:
            self.gatherer.restore(restored.agent["gatherer"])
        self.admitted = {worker: (version, self.first) for worker, version in self.arrived.items()}
        """Of each worker, its newest gradient that has come, and the server's version then; for the mail thread."""
        self.losses: dict[tuple[int, int], float] = {}
        self.given = dict.fromkeys(spec.neighbors, self.first)
        """The version that each worker was told to read last."""
        self.contents = {self.first: self.present()}
        """By version, what workers may still be told to read."""
        self.opened: dict[tuple[int, int], Received] = {}
        """By worker and version, the gradients that wait for an update."""
        self.comings: list[_Coming | int] = []
        """Workers that are back, and numbers of those that are gone, as far as it has not been taken in."""
        self.is_over = False
        self.kept_at = time.monotonic()
        self.set_links(injection)
        self.holds = any(entry.unit != "seconds" for entry in injection.links)

    def set_links(self, injection: InjectedDelays) -> None:
        """Take in what an injection says of links."""
        self.links = injection.links_from(self.spec.agent, self.spec.neighbors)

    def present(self) -> Contents:
        """Return the present version as it travels."""
        return self.packed(self.server.weights, self.server.buffers)

    @ray.method(concurrency_group="mail")
    def neighbor_lost(self, agent: int) -> None:
        """Take in that a worker is gone; called from the mail thread."""
        with self.changed:
            self.comings.append(agent)
            self.changed.notify_all()

    @ray.method(concurrency_group="mail")
    def newest_of(self, worker: int) -> int:
        """Return the newest version of a worker that has come."""
        with self.changed:
            newest = self.mailbox.newest(worker)
            return newest.version if newest else 0

    @ray.method(concurrency_group="mail")
    def welcome(self, worker: int, handle: ActorHandle[Any], version: int) -> bool:
        """Take a worker in that comes back at a version, unless all steps are taken; return whether it is."""
        with self.changed:
            if not self.is_over:
                self.comings.append(_Coming(worker, handle, version))
                self.changed.notify_all()
            return not self.is_over

    def take_steps(self) -> None:
        """Update until all steps are taken, and tell the workers so."""
        while not self.server.is_done:
            with self.changed:
                self.await_news()
                news = self.mailbox.news()
            self.take_in_comings()
            for header in news:
                if not self.server.is_done:
                    self.arrive(header)
            self.keep_part()
        with self.changed:
            self.is_over = True
        self.take_in_comings()
        final = {k: self.answer(k, 0)._replace(final=True) for k in self.given}
        self.send(final)

    def await_news(self) -> None:
        """Wait until a gradient comes, or a worker comes back or goes; called with the lock held."""
        try:
            self.wait_until(lambda: self.mailbox.has_news or bool(self.comings), lambda: "a gradient of any worker")
        except InterruptionError:
            # While there is no worker, the driver knows whether one comes back.
            if self.given:
                raise

    def keep_part(self) -> None:
        """Give the driver the server's part of the run's state, if it is time; workers go on from its weights."""
        every, now = self.driving.state_seconds, time.monotonic()
        if every is None or now - self.kept_at < every:
            return
        more = {"arrived": dict(self.arrived), "gatherer": self.gatherer.state()}
        state = portable_state(self.server.state() | more)
        self.unsent.append(AgentState(self.spec.agent, self.version, 0, state))
        self.report()
        self.kept_at = now

    def take_in_comings(self) -> None:
        """Take in which workers are gone, and which are back."""
        with self.changed:
            comings, self.comings = self.comings, []
        for coming in comings:
            if isinstance(coming, _Coming):
                self.take_back(coming)
            elif coming in self.given:
                self.lose(coming)

    def take_back(self, coming: "_Coming") -> None:
        """Go on with a worker that is back."""
        self.outbox.welcome(coming.worker, coming.handle)
        with self.changed:
            self.admitted[coming.worker] = (coming.version, self.version)
        self.gatherer.gain()
        self.given[coming.worker] = self.newest_given
        self.send({coming.worker: self.answer(coming.worker, coming.version)})

    @property
    def newest_given(self) -> int:
        """The newest version that workers are told to read, where links hold no message back."""
        return max(self.server.version - self.spec.recipe.rule.reads_before, self.first)

    def lose(self, agent: int) -> None:
        """Go on without a worker."""
        self.gatherer.lose()
        self.given.pop(agent)
        self.outbox.drop(agent)
        self.unsent.append(Event("neighbor_lost", self.spec.agent, self.version, f"worker {agent} is gone"))
        self.after_arrival(agent, 0, counts=True)

    def check_turn(self, header: Header) -> None:
        """Raise ``RejectedError`` unless a gradient may be its worker's next one; called with the lock held.

        A worker's versions rise one by one, but for work that was cancelled: one at each of the server's versions.
        """
        worker, version = header.sender, header.version
        newest, moment = self.admitted[worker]
        last = newest + 1 + (self.version - moment if self.spec.recipe.rule.gathering.cancels else 0)
        if not newest < version <= last:
            raise RejectedError(f"its version is {version}; allowed are {newest + 1} to {last}")
        self.admitted[worker] = (version, self.version)

    def arrive(self, header: Header) -> None:
        """Take in a gradient; one that is not what it must be is answered, and never applied."""
        note, worker, version = header.note, header.sender, header.version
        assert isinstance(note, Delivery)
        if worker not in self.given:
            return  # it is gone
        self.arrived[worker] = version
        try:
            counts = self.take_in(header, note)
        except RejectedError as error:
            with self.changed:
                self.reject(worker, version, error)
            counts = False
        if not counts:
            self.discard(worker, version)
        self.after_arrival(worker, version, counts)

    def take_in(self, header: Header, note: Delivery) -> bool:
        """Hand a gradient to the gatherer; return whether it counts for an update.

        Raises:
            RejectedError: it is not what it must be.

        """
        worker, version = header.sender, header.version
        if note.computed_at > self.given[worker] or note.round > self.version:
            raise RejectedError(
                f"it was computed at version {note.computed_at} and begun at {note.round}; allowed are those up to "
                f"{self.given[worker]} and {self.version}"
            )
        if self.spec.recipe.rule.needs_gap and note.computed_at not in self.server.history:
            raise RejectedError(f"it was computed at version {note.computed_at}, which no worker reads any more")
        if not self.keep_opened(header):
            return False
        self.losses[worker, version] = note.loss
        self.gatherer.tell(worker, version, note.loss)
        self.gatherer.adapt(self.now())
        return self.gatherer.arrive(Arrival(worker, version, note.computed_at, note.round))

    def keep_opened(self, header: Header) -> bool:
        """Fetch a gradient; return whether it is there, and was not rejected before or lost together with its worker.

        Raises:
            RejectedError: it is not what it must be.

        """
        key = (header.sender, header.version)
        with self.changed:
            message = self.mailbox.get(*key)
            self.mailbox.drop(*key)
        if message is None or message.contents is None:
            return False
        try:
            self.opened[key] = self.fetch(Read(*key, 0, 0), message.contents)
        except LOST as error:
            detail = f"version {header.version} of agent {header.sender} was lost ({type(error).__name__})"
            self.unsent.append(Event("message_lost", self.spec.agent, self.version, detail))
            return False
        return True

    def after_arrival(self, worker: int, version: int, counts: bool) -> None:
        """Update if it is time, and answer the workers that wait for it."""
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
        moment, before = self.now(), server.progress
        measures = server.step([self.opened.pop(read[:2])._replace(read=read) for read in reads])
        losses = [self.losses.pop((read.neighbor, read.version)) for read in reads]
        for one in [one for one in self.losses if not any(one == a[:2] for a in self.gatherer.waiting)]:
            del self.losses[one], self.opened[one]
        self.contents[server.version] = self.present()
        row = Row(self.spec.agent, server.version - 1, moment, moment, moment, tuple(reads))
        self.submit(row, losses, measures, before, len(self.given))

    def discard(self, worker: int, version: int) -> None:
        """Drop a gradient that came too late."""
        self.losses.pop((worker, version), None)
        self.opened.pop((worker, version), None)

    def answer(self, worker: int, version: int) -> Header:
        """Return what a worker is told: which version to read."""
        link, position, newest = self.links[worker], self.server.position, self.server.version
        now = self.now()
        held = position.version_before(link.hold_steps(position.steps, now))
        reads = max(self.given[worker], min(held, self.newest_given))
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
        """Send each worker its answer with the weights that it names, and forget those that are not needed any more."""
        by_version: dict[int, dict[int, Header]] = {}
        for worker, header in headers.items():
            by_version.setdefault(header.version, {})[worker] = header
        for version, group in by_version.items():
            self.outbox.send(group, self.contents[version], may_skip=False)
        oldest = min(self.given.values(), default=self.newest_given) if self.holds else self.newest_given
        for version in [v for v in self.contents if v < oldest]:
            del self.contents[version]
        read = {*self.given.values(), *(one.computed_at for one in self.gatherer.waiting)}
        self.server.keep(lambda version: version >= oldest or version in read)
