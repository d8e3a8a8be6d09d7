"""What a live peer decides: what it reads, what it waits for, whom it reaches, and how it comes back."""

from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ray_pcasgd.agents.mailbox import Header, Mailbox
from ray_pcasgd.agents.peer import AgentSpec
from ray_pcasgd.base.randomness import generator
from ray_pcasgd.engines.live.decisions import Compute, Moment, Over, Publish, Rejoin, Take, Wait, overdue
from ray_pcasgd.engines.live.injection import InjectedDelays
from ray_pcasgd.engines.live.reading import OwnTimes, choose_all, choose_read
from ray_pcasgd.engines.live.watching import Limits, NeighborWatch
from ray_pcasgd.records import Event, EventKind, Read
from ray_pcasgd.schedule.barrier import AllBarrier, NoBarrier, Proceed, SampledBarrier, WaitFor

RECENT_STEPS = 16
"""Steps over which an agent's pace is a mean."""

LONGEST_RATIO = 4.0
"""A step that takes this many times the mean is not just slow: the process was stopped."""

HELD_UP_SECONDS = 0.1
"""Together with ``LONGEST_RATIO``: a step of at least these seconds shows that the agent's process was held up."""

AT_ONCE_SECONDS = 0.05
"""Steps that come so far apart are reported one by one; that of shorter ones would cost too much of their time."""

IsHere = Callable[[int, int, bool], bool]
"""Returns whether a neighbor's version can be read without waiting for the network: its weights, and its direction
where that is asked for too. Only the actor knows what has been transferred."""


class PeerPolicy:
    """Decides for one live peer. It waits for its barrier only, never for a single message or neighbor.

    A step is: ``Compute``, ``computed``, a wait where the agent is a straggler or its barrier asks for one, ``Take``,
    ``taken``, ``stepped``. Of one that combines first it is: a wait for its barrier, ``Take``, ``taken``, ``computed``,
    a wait where it is a straggler, ``Publish``, ``stepped``.

    Args:
        spec: The agent.
        mailbox: The messages of its neighbors, which the actor puts there.
        limits: How long it puts up with its neighbors.
        injection: What is added to the real network and the real machines.
        is_here: What can be read without waiting for the network.
        version: The agent's version at the start.
        is_restored: Whether the agent goes on from a state that was kept.

    """

    def __init__(
        self,
        spec: AgentSpec,
        mailbox: Mailbox[Any],
        limits: Limits,
        injection: InjectedDelays,
        is_here: IsHere,
        version: int = 0,
        is_restored: bool = False,
    ) -> None:
        self.spec = spec
        self.mailbox = mailbox
        self.limits = limits
        self.is_here = is_here
        self.version = version
        self.is_restored = is_restored
        self.back_at = -1
        """The version at which the agent has come back into the run."""
        self.started_at = 0.0
        """When training began, in wall-clock seconds; the actor sets it."""
        self.step_seconds = 0.0
        """The agent's recent mean seconds for a step."""
        self.ready_at = 0.0
        """The wall-clock second at which the present step began to wait for its barrier."""
        self.barrier = injection.barrier
        self.pushes = spec.recipe.rule.reading == "every"
        self.combines_first = spec.recipe.combines_first
        self.gone: set[int] = set()
        """Neighbors that are known to be gone."""
        self.done: set[int] = set()
        """Receivers that are known to have taken all their steps."""
        self.rounds = spec.recipe.rounds
        self.last = self.rounds.last(spec.agent)
        """The version at which the agent has taken all its steps."""
        self.watch = NeighborWatch(spec.agent, spec.neighbors, self.rounds, limits, self._tell)
        self.own_times = OwnTimes(1, array("d"))
        self.held_up = False
        """Whether the present step took so long that the agent's process must have been stopped meanwhile."""
        self.links(injection)
        self._extra_seconds = injection.compute.extra_sampler(injection.seed, spec.agent)
        self._draws = generator(injection.seed, "barrier", spec.agent)
        of_drawn = self.barrier.base if isinstance(self.barrier, SampledBarrier) else self.barrier
        self._is_capped = isinstance(of_drawn, AllBarrier)
        # A barrier that asks for old versions needs them; without one, a newer message replaces an unread older one.
        self.replaces = not isinstance(self.barrier, AllBarrier | SampledBarrier) and not self.pushes
        # A barrier has a time limit of its own, and a share that is pushed is not lost by coming late.
        self._notices_silence = isinstance(self.barrier, NoBarrier) and not self.pushes
        self._last_read = dict.fromkeys(spec.neighbors, 0)
        self._come = dict.fromkeys(spec.neighbors, 0)
        """The newest version of each neighbor whose weights are known to have come, where there is a barrier."""
        self._with_direction = dict.fromkeys(spec.neighbors, False)
        """Whether the last version of each neighbor that was to be read needed its direction."""
        self._due: float | None = None
        """The steady second at which the present gradient counts as computed; ``None`` before there is one."""
        self._deadline: float | None = None
        """The steady second up to which the barrier waits; ``None`` before it was asked."""
        self._tested: Mapping[int, int] | None = None
        self._waits_for = WaitFor({})
        self._events: list[Event] = []

    def arrived(self, header: Header, now: Moment) -> None:
        """Take in that a message has come, and drop what it replaces."""
        neighbor = header.sender
        if not self._notices_silence:
            self.watch.silent.discard(neighbor)
        self.watch.trackers[neighbor].take(header, now.wall)
        if self.replaces:
            self.take_newest(neighbor)

    def take_newest(self, neighbor: int) -> None:
        """Have a neighbor's newest readable version transferred, and drop what those that are here replace."""
        readable = self.mailbox.readable(neighbor, None)
        if readable is not None:
            self.mailbox.forget(neighbor, self._newest_here(neighbor, readable))

    def lost(self, agent: int) -> None:
        """Take in that a neighbor is gone: it is waited for no more, and what it is known to be is read no more."""
        self.gone.add(agent)

    def finished(self, agent: int) -> None:
        """Take in that a receiver has taken all its steps."""
        self.done.add(agent)

    def back(self, agent: int, version: int) -> None:
        """Take in that a neighbor comes back: what is known of it is read no more."""
        if agent in self.spec.neighbors:
            self.mailbox.readmit(agent)
        self.gone.discard(agent)
        self.done.discard(agent)

    def known(self, agent: int) -> int:
        """Return the newest known version of a neighbor, 0 where none is known."""
        newest = self.mailbox.newest(agent)
        return newest.version if newest else 0

    def links(self, injection: InjectedDelays) -> None:
        """Take in what is injected on links from now on."""
        self._changes = injection.changes
        self._links = injection.links_from(self.spec.agent, self.spec.receivers)

    def events(self) -> list[Event]:
        """Return the events to be told since the last call, in their order."""
        events, self._events = self._events, []
        return events

    def computed(self, start: float, now: Moment) -> None:
        """Take in that the gradient is there whose computing began at a wall-clock second; a straggler waits longer."""
        seconds = now.wall - start
        self.held_up = seconds > max(LONGEST_RATIO * self.step_seconds, HELD_UP_SECONDS) and self.step_seconds > 0
        steps, since = self.rounds.steps_in(self.spec.agent, self.version), start - self.started_at
        self._due = now.steady + sum(self._extra_seconds(since) for _ in range(steps))
        self._deadline = self._tested = None

    def decide(self, now: Moment) -> Compute | Take | Publish | Wait | Over:
        """Return what to do next: the step is taken once the barrier lets it end, or begin."""
        if self.version >= self.last:
            return Over()
        if self._due is None and not self.combines_first:
            return Compute()
        if self._due is not None and now.steady < self._due:
            return Wait(self._due, "its own gradient")
        if self._due is not None and self.combines_first:
            return Publish()
        if self._deadline is None:
            self.ready_at, self._deadline = now.wall, now.steady + self.limits.wait_seconds
        self.mailbox.advance(now.steady)
        while not isinstance(verdict := self._verdict(), Proceed):
            missing = " and ".join(f"version {v} of agent {k}" for k, v in verdict.versions.items())
            if now.steady < self._deadline:
                due = self.mailbox.next_due()
                return Wait(self._deadline if due is None else min(self._deadline, due), missing)
            self.watch.silent |= set(verdict.versions)
            late = overdue(self.spec.agent, self.version, self.limits.wait_seconds, missing)
            self._tell("neighbor_silent", f"{late}; it goes on without the message")
            self._deadline, self._tested = now.steady + self.limits.wait_seconds, None
        return Take(tuple(self._choose_reads(verdict.capped, now.wall)))

    def taken(self, reads: Sequence[Read]) -> None:
        """Drop from the mailbox what no later step reads, once the actor holds what this one does."""
        for read in reads:
            if self.pushes:
                self.mailbox.discard(read.neighbor, read.version)
            else:
                self.mailbox.forget(read.neighbor, read.version)

    def stepped(self, version: int, now: Moment) -> None:
        """Take in that the agent has come to its next version, which it is about to publish."""
        self.version, self._due = version, None
        self.own_times.sent_at.append(now.wall)
        self.step_seconds = self.own_times.pace(RECENT_STEPS)

    @property
    def has_barrier(self) -> bool:
        """Whether the agent may wait for messages."""
        return not isinstance(self.barrier, NoBarrier)

    @property
    def reports_at_once(self) -> bool:
        """Whether each row is reported before its version is sent, so that no version is read without a record."""
        return self.step_seconds >= AT_ONCE_SECONDS

    def _verdict(self) -> Proceed | WaitFor:
        """Return what the barrier says; one that draws is asked again once something has come, not at each wake-up."""
        newest = self.newest()
        if newest == self._tested:
            return self._waits_for
        self._tested = newest
        verdict = self.barrier.decide(self.version, newest, self._draws)
        if isinstance(verdict, WaitFor):
            self._waits_for = verdict
        return verdict

    def newest(self) -> dict[int, int]:
        """Return each neighbor's newest version that is here; those that have finished or left are not waited for.

        A version that is known is not here yet: large weights follow their header, and on a slow link much later.
        Whoever waited for headers alone would then read older weights than its barrier allows.
        """
        result = {}
        for k in self.partners() if self.spec.recipe.exchange.waits_for_partners else self.spec.neighbors:
            header = self.mailbox.newest(k)
            if header is None or self._is_away(k):
                result[k] = self.last
                continue
            newest = self._newest_come(k, header.version) if self.has_barrier else header.version
            result[k] = self.last if header.final and newest == header.version else newest
        return result

    def _newest_come(self, neighbor: int, known: int) -> int:
        """Return the newest version of a neighbor whose weights have come, the newest of which is ``known``.

        Where none is read that is newer than the agent's own, newer ones do not count: weights may overtake others.
        """
        before, most = self._come[neighbor], min(known, self.version) if self._is_capped else known
        versions = sorted((v for v in self.mailbox.versions(neighbor) if before < v <= most), reverse=True)
        come = next((v for v in versions if self.is_here(neighbor, v, False)), before)
        if come == max(versions, default=come):
            # None is under way: what the mailbox does not hold was read, or will not be, or was never sent.
            come = max(come, most)
        self._come[neighbor] = come
        return come

    def partners(self) -> tuple[int, ...]:
        """Return the neighbors that the agent reads at its present step."""
        spec = self.spec
        return spec.recipe.exchange.partners(spec.recipe.seed, spec.agent, self.version, spec.neighbors)

    def _is_away(self, neighbor: int) -> bool:
        """Return whether a neighbor has left the run, or is gone, or silent."""
        return self.mailbox.left(neighbor) or neighbor in self.gone or neighbor in self.watch.silent

    def _choose_reads(self, capped: frozenset[int], now: float) -> list[Read]:
        """Return the versions to read of each neighbor at a wall-clock second."""
        spec, reads = self.spec, list[Read]()
        for k in self.partners():
            cap = self.version if k in capped else None
            if self._notices_silence and k not in self.gone:
                self.watch.notice_silence(k, self.step_seconds, now)
            if self._is_away(k):
                continue
            tracker = self.watch.trackers[k]
            if self.pushes:
                reads += choose_all(self.mailbox, k, cap, now, tracker, self.own_times, self._may_read)
                continue
            missed = self.held_up and self.watch.is_behind(k, self.step_seconds, now)
            if cap is None and (missed or self.watch.lags(k, self.version, now)):
                continue
            news = spec.recipe.rule.reading == "news"
            read = choose_read(self.mailbox, k, cap, now, tracker, self.own_times, self._may_read, only_news=news)
            only_news = news or (cap is None and tracker.has_finished())
            if read is None or (only_news and read.version <= self._last_read[k]):
                continue
            self._last_read[k] = read.version
            reads.append(read)
        return reads

    def _may_read(self, read: Read) -> bool:
        """Return whether all parts of a version that the rule needs are here."""
        # The last version is not passed on: its agent splits its mass no more.
        if self.pushes and read.version == self.rounds.last(read.neighbor):
            return False
        self._with_direction[read.neighbor] = self.spec.recipe.needs_direction(self.spec.agent, read)
        return self.is_here(read.neighbor, read.version, self._with_direction[read.neighbor])

    def _newest_here(self, neighbor: int, readable: int) -> int:
        """Return the newest readable version whose transfer is done; older ones are not needed any more.

        That includes the direction where the last read of the neighbor needed one: versions may be missing between one
        that has its direction and the next one, which has none yet.
        """
        versions = sorted((v for v in self.mailbox.versions(neighbor) if v <= readable), reverse=True)
        return next((v for v in versions if self.is_here(neighbor, v, self._with_direction[neighbor])), 0)

    def can_reach(self, neighbor: int) -> bool:
        """Return whether messages get through to a neighbor, and a share that is pushed to it is not lost."""
        gone = self.gone | self.watch.silent | self.done
        if self.pushes and (neighbor in gone or self.watch.is_ending(neighbor, self.version)):
            return False
        return not self._changes.cuts(self.spec.agent, neighbor)

    def may_skip(self, header: Header) -> bool:
        """Return whether a message may be left out to a neighbor that does not take its messages.

        Not where a barrier waits for versions: who waits for one that was left out sends no more either. Nor the last
        message, nor the first of an agent that is back, nor the one that says that it has left.
        """
        is_needed = header.final or header.isolated or header.version == self.back_at
        return isinstance(self.barrier, NoBarrier) and not is_needed

    def addressed(self, header: Header, neighbor: int) -> Header:
        """Return the header for one neighbor, with the delays that are injected on the link to it."""
        link, sent_at = self._links[neighbor], header.sent_at - self.started_at
        taken = self.rounds.progress(self.spec.agent, header.version)
        latency = link.latency_seconds(taken, sent_at)
        hold = self.rounds.versions_in(self.spec.agent, link.hold_steps(taken, sent_at))
        return header._replace(latency_seconds=latency, hold_steps=hold)

    def connected(self, agents: Iterable[int]) -> None:
        """Take in which other agents are there when this one comes back."""
        self.gone = set(self.spec.neighbors) - set(agents)

    def rejoin(self, offered: Mapping[int, int], known: Iterable[int], at_least: int) -> Rejoin:
        """Return how the agent comes back: as the mean of its neighbors, unless the state that was kept is newer.

        Args:
            offered: The present version of each agent that has answered.
            known: The versions of the agent itself that these know of.
            at_least: The driver's bound of the next version.

        """
        at_least = max([at_least, *(version + 1 for version in known)])
        here = {k: version for k, version in sorted(offered.items()) if k in self.spec.neighbors}
        mean = self.rounds.mean_version(self.spec.agent, here)
        reads: tuple[Read, ...] = ()
        if here and (not self.is_restored or self.version < mean):
            reads = tuple(Read(k, version, 0, 0) for k, version in here.items())
        version = max(at_least, int(mean) if reads else self.version + 1)
        return Rejoin(min(version, self.last), reads)

    def rejoined(self, version: int, reads: Sequence[Read]) -> None:
        """Take in that the agent is back at a version, which it is about to publish."""
        self.version, self._due, self.back_at = version, None, version
        whence = " and ".join(f"agent {read.neighbor}" for read in reads)
        how = f"as the mean of {whence}" if reads else "as it was when its state was kept"
        self._tell("agent_returned", f"agent {self.spec.agent} is back at step {self.progress}, {how}")

    def left(self) -> None:
        """Take in that the agent leaves the run, as it was asked to."""
        self._tell("agent_left", f"agent {self.spec.agent} has left at step {self.progress}, as it was asked to")

    def _tell(self, kind: EventKind, detail: str) -> None:
        self._events.append(Event(kind, self.spec.agent, self.progress, detail))

    @property
    def progress(self) -> int:
        """The mini-batches that the agent has taken."""
        return self.rounds.progress(self.spec.agent, self.version)
