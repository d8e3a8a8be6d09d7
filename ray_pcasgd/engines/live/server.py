"""What a live server decides: which gradients an update takes, whom it answers, and with which of its versions."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ray_pcasgd.agents.mailbox import Answer, Delivery, Header, OnceMailbox
from ray_pcasgd.agents.server import ServerSpec
from ray_pcasgd.base.state import State
from ray_pcasgd.engines.base import InterruptionError
from ray_pcasgd.engines.live.decisions import Moment, Over, Policy, Take, Wait, overdue
from ray_pcasgd.engines.live.injection import InjectedDelays
from ray_pcasgd.records import Event, Read
from ray_pcasgd.rules.gatherer import Arrival, Gatherer, Position, has_expired


class Open(NamedTuple):
    """Fetch a gradient, unless there is a ``problem`` with it, and tell the policy by ``opened`` whether it is here."""

    header: Header


class Connect(NamedTuple):
    """Send to an agent's new actor from now on: the agent is back."""

    agent: int


class Tell(NamedTuple):
    """Send each of these workers its answer, with the weights that it names; then forget what may be forgotten."""

    headers: Mapping[int, Header]
    whole: frozenset[int] = frozenset()
    """Who of them is sent all of these weights, where messages hold fragments: who is back, and at the end everybody;
    others only that of their message which is answered."""


Decision = Open | Connect | Take | Tell | Over
"""What a server's actor is to do next."""


class _Came(NamedTuple):
    """What has happened last, after which the server updates or answers."""

    worker: int
    version: int
    """Of the worker's gradient; 0 where the worker is gone."""
    counts: bool
    """Whether the gradient counts for an update; true where the worker is gone."""


IsHere = Callable[[Header], bool]
"""Returns whether a gradient can be opened without waiting for the network, or is lost."""


class ServerPolicy(Policy[Decision]):
    """Decides for one live server: it updates when its gathering says so, over what has come.

    A gradient is: ``Open``, ``opened``; where an update is due ``Take``, ``stepped``; then ``Tell``. Losses of workers
    and workers that are back wait for their turn, so ``lost`` and ``back`` may be called at any moment.

    Args:
        spec: The server.
        mailbox: The messages of its workers, which the actor puts there.
        wait_seconds: Longest wait for a gradient of any worker.
        injection: What is added to the real network.
        is_here: What can be opened without waiting for the network.
        state: The server's state that was kept, together with the policy's own (``state``); ``None`` at the start.

    """

    def __init__(
        self,
        spec: ServerSpec,
        mailbox: OnceMailbox[Any],
        wait_seconds: float,
        injection: InjectedDelays,
        is_here: IsHere,
        state: State | None = None,
    ) -> None:
        recipe = spec.recipe
        self.is_here = is_here
        self.spec = spec
        self.mailbox = mailbox
        self.wait_seconds = wait_seconds
        self.started_at = 0.0
        """When training began, in wall-clock seconds; the actor sets it."""
        self.gathering = recipe.rule.gathering
        self.position = Position(recipe.local_steps)
        if state:
            self.position.restore(state["position"])
        self.first = self.version
        """The version that the server began with; earlier ones are not here."""
        self.gatherer = Gatherer(self.gathering, recipe.num_workers, self.first)
        if state:
            self.gatherer.restore(state["gatherer"])
        self.newest: dict[int, int] = state["arrived"] if state else dict.fromkeys(spec.neighbors, 0)
        """Each worker's newest gradient that was taken in."""
        self.given = dict.fromkeys(spec.neighbors, self.first)
        """The version that each worker was told to read last; of those alone that are there."""
        self.told = dict.fromkeys(spec.neighbors, self.first)
        """The newest version when each worker was told so."""
        self.strangers: set[int] = set()
        """Workers that are back, and know nothing of the weights before they are answered."""
        self.losses: dict[tuple[int, int], float] = {}
        """By worker and version, the mini-batch losses of the gradients that wait for an update."""
        self.oldest = self.first
        """The oldest version that a worker may still be told to read."""
        self.kept = {self.first, *(state["history"] if state else ())}
        """The versions whose weights a correction, or the optimizer, may still need."""
        self.is_over = False
        """Whether all workers are told that all steps are taken; then nobody comes back."""
        self.links(injection)
        self._admitted = {worker: (version, self.first) for worker, version in self.newest.items()}
        """Of each worker, its newest gradient that was admitted, and the server's version that it knew as it began."""
        self._changes: deque[tuple[int, int | None]] = deque()
        """Workers that are back with their versions, and those that are gone, with ``None``, until their turn comes."""
        self._news: deque[Header] = deque()
        """Gradients that have come, until their turn comes."""
        self._came: _Came | None = None
        self._owed: dict[int, int] | None = None
        """By worker, which of its gradients is to be answered now."""
        self._is_renewed = True
        """Whether it is answered with the newest weights; else with those that the worker has."""
        self._taking: list[int] = []
        """The workers of the gradients of the update that is due."""
        self._grace_ends: float | None = None
        """The steady second up to which an update waits for more gradients than it needs; ``None`` before that."""
        self._deadline: float | None = None
        """The steady second up to which a gradient is waited for; ``None`` where none is waited for."""
        self._events: list[Event] = []

    @property
    def num_owed(self) -> int:
        """How many workers are to be answered now."""
        return len([worker for worker in self._owed or () if worker in self.given])

    @property
    def version(self) -> int:
        """The server's version."""
        return self.position.version_before(0)

    @property
    def is_done(self) -> bool:
        """Whether all steps of the run are taken."""
        return self.position.steps >= self.spec.recipe.num_steps

    @property
    def newest_given(self) -> int:
        """The newest version that workers are told to read, where links hold no message back."""
        return max(self.version - self.spec.recipe.rule.reads_before, self.first)

    def state(self) -> State:
        """Return what the policy adds to the server's state; gradients that wait for an update are not part of it."""
        return {"arrived": dict(self.newest), "gatherer": self.gatherer.state()}

    def admit(self, header: Header) -> str | None:
        """Admit a gradient to the mailbox that may be its worker's next one; of another one return what is wrong.

        A worker's versions rise one by one, but for work that was cancelled: one at each of the server's versions.
        """
        worker, version = header.sender, header.version
        newest, begun = self._admitted[worker]
        last = newest + 1 + (self.version - begun if self.gathering.cancels else 0)
        if not newest < version <= last:
            return f"its version is {version}; allowed are {newest + 1} to {last}"
        # Not the present version: the message that cancels the worker's next work may not have reached it yet.
        self._admitted[worker] = (version, min(max(begun, _delivery(header).round), self.version))
        return None

    def arrived(self, header: Header, now: Moment) -> None:
        """Take in that a gradient has come; its turn is that of its arrival, which a link may delay."""

    def lost(self, agent: int) -> None:
        """Take in that a worker is gone: it is waited for no more."""
        self._changes.append((agent, None))

    def back(self, agent: int, version: int) -> None:
        """Take in that a worker comes back at a version."""
        self._changes.append((agent, version))

    def known(self, agent: int) -> int:
        """Return the newest version of a worker that is known, be it held back by a link."""
        return self._admitted[agent][0]

    def links(self, injection: InjectedDelays) -> None:
        """Take in what is injected on links from now on."""
        self._links = injection.links_from(self.spec.agent, self.spec.neighbors)
        in_steps = any(entry.unit != "seconds" for entry in (*injection.links, *injection.changes.entries))
        self._holds = in_steps or self.gathering.averages == "rounds"
        """Whether a worker may be answered with other weights than the newest."""

    def events(self) -> list[Event]:
        """Return the events to be told since the last call, in their order."""
        events, self._events = self._events, []
        return events

    def decide(self, now: Moment) -> Decision | Wait:
        """Return what to do next.

        Raises:
            InterruptionError: no gradient of any worker has come in time.

        """
        if self._came is not None:
            reads = self._update(self._came)
            if reads:
                return Take(reads)
        if self._owed is not None:
            return self._tell(self._owed, now)
        if self.is_over:
            return Over()
        while self._changes:
            self._deadline = None
            agent, version = self._changes.popleft()
            if version is not None:
                self._take_back(agent, version)
                return Connect(agent)
            if agent in self.given:
                self._lose(agent)
                return self.decide(now)
        if self.is_done:
            self.is_over = self._is_renewed = True
            told = self._tell(dict.fromkeys(self.given, 0), now)
            final = {worker: header._replace(final=True) for worker, header in told.headers.items()}
            return Tell(final, frozenset(final))
        self.mailbox.advance(now.steady)
        if news := self.mailbox.news():
            self._deadline = None
            self._news += news
        if (header := self._next_here()) is not None:
            self._deadline = None
            self.newest[header.sender] = header.version
            return Open(header)
        if self.gatherer.is_in_grace:
            return self._wait_in_grace(now)
        return self._wait(now)

    def _next_here(self) -> Header | None:
        """Return the first gradient that can be opened at once, and take it out.

        One that is known, but still under way on a slow link, holds up none of those that have come after it.
        """
        self._news = deque(header for header in self._news if header.sender in self.given)
        for place, header in enumerate(self._news):
            if self.is_here(header):
                del self._news[place]
                return header
        return None

    def problem(self, header: Header) -> str | None:
        """Return why a gradient cannot be one of this run, in words; ``None`` where it can."""
        note, given = _delivery(header), self.given[header.sender]
        if note.computed_at > given or note.round > self.version:
            return (
                f"it was computed at version {note.computed_at} and begun at {note.round}; allowed are those up to "
                f"{given} and {self.version}"
            )
        if self.spec.recipe.keeps_versions and note.computed_at not in self.kept:
            return f"it was computed at version {note.computed_at}, which no worker reads any more"
        return None

    def opened(self, header: Header, is_here: bool, now: Moment) -> None:
        """Take in whether the gradient that was to be opened is here; if not, it is answered, and never applied."""
        worker, version, note = header.sender, header.version, _delivery(header)
        counts = False
        if is_here:
            self.gatherer.tell(worker, version, note.loss)
            self.gatherer.adapt(now.wall - self.started_at)
            counts = self.gatherer.arrive(Arrival(worker, version, note.computed_at, note.round))
        if counts:
            self.losses[worker, version] = note.loss
        self._came = _Came(worker, version, counts)

    def stepped(self, version: int, now: Moment) -> None:
        """Take in that the server has come to its next version, over what it was told to read."""
        self.position.advance(self._taking)
        assert version == self.version
        self.kept.add(self.version)
        waiting = {one[:2] for one in self.gatherer.waiting}
        self.losses = {key: loss for key, loss in self.losses.items() if key in waiting}

    def _update(self, came: _Came) -> tuple[Read, ...]:
        """Return what the update reads that is due now, if one is; note whom to answer afterwards."""
        self._came = None
        taken = () if self.is_done else self.gatherer.take()
        if taken:
            self._grace_ends = None
        answered: Sequence[Arrival | _Came] = taken if self.gathering.waits and came.counts else (came,)
        owed = {one.worker: one.version for one in answered}
        if self.gathering.cancels and taken:
            voided = {k for k in self.given if has_expired(self.gathering, self.told[k], self.gatherer.version)}
            owed = {k: owed.get(k, 0) for k in sorted(voided.union(owed))}
        self._owed, self._is_renewed = owed, self.gatherer.renews(taken)
        self._taking = [one.worker for one in taken]
        late = ((one, self.version - one.computed_at) for one in taken)
        return tuple(sorted(Read(one.worker, one.version, steps, steps) for one, steps in late))

    def _tell(self, owed: Mapping[int, int], now: Moment) -> Tell:
        """Return the answers to workers that are there; forget what is not needed after them."""
        self._owed = None
        headers = {k: self._answer(k, version, now) for k, version in owed.items() if k in self.given}
        told = Tell(headers, frozenset(self.strangers.intersection(headers)))
        self.strangers -= told.whole
        oldest = min(self.given.values(), default=self.newest_given) if self._holds else self.newest_given
        self.oldest = max(self.oldest, oldest)
        needed = {*self.given.values(), *(one.computed_at for one in self.gatherer.waiting), self.version}
        self.kept = {version for version in self.kept if version >= self.oldest or version in needed}
        return told

    def _answer(self, worker: int, version: int, now: Moment) -> Header:
        """Return what a worker is told: which version to read."""
        link, newest, sent_at = self._links[worker], self.version, now.wall - self.started_at
        held = self.position.version_before(link.hold_steps(self.position.steps, sent_at))
        reads = max(self.given[worker], self.oldest, min(held, self.newest_given) if self._is_renewed else 0)
        reads = max(reads, self.gathering.oldest_read(newest))
        self.given[worker], self.told[worker] = reads, newest
        latency = link.latency_seconds(newest, sent_at)
        return Header(self.spec.agent, reads, sent_at, 0.0, latency_seconds=latency, note=Answer(newest, version))

    def _take_back(self, worker: int, version: int) -> None:
        """Go on with a worker that is back."""
        self._admitted[worker] = (version, self.version)
        self.gatherer.gain(worker)
        self.given[worker] = self.newest_given
        self.strangers.add(worker)
        self._owed = {worker: version}

    def _lose(self, worker: int) -> None:
        """Go on without a worker."""
        self.gatherer.lose(worker)
        del self.given[worker]
        self.strangers.discard(worker)
        self._events.append(Event("neighbor_lost", self.spec.agent, self.version, f"worker {worker} is gone"))
        self._came = _Came(worker, 0, counts=True)

    def _wait_in_grace(self, now: Moment) -> Decision | Wait:
        """Wait for more gradients than the update needs, or let it be due."""
        if self._grace_ends is None:
            self._grace_ends = now.steady + self.gathering.grace
        if now.steady >= self._grace_ends:
            self.gatherer.end_grace()
            self._came = _Came(self.gatherer.waiting[-1].worker, 0, counts=True)
            return self.decide(now)
        due = self.mailbox.next_due()
        until = self._grace_ends if due is None else min(self._grace_ends, due)
        return Wait(until, "gradients of other workers, for a while")

    def _wait(self, now: Moment) -> Wait:
        missing = "a gradient of any worker"
        if self._deadline is None or (now.steady >= self._deadline and not self.given):
            # While there is no worker, the driver knows whether one comes back.
            self._deadline = now.steady + self.wait_seconds
        if now.steady >= self._deadline:
            raise InterruptionError(overdue(self.spec.agent, self.version, self.wait_seconds, missing))
        due = self.mailbox.next_due()
        return Wait(self._deadline if due is None else min(self._deadline, due), missing)


def _delivery(header: Header) -> Delivery:
    assert isinstance(header.note, Delivery)
    return header.note
