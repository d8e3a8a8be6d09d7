"""Plans runs between peers whose agents leave and come back: the planner of ``plan_peers``, with membership."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from ray_pcasgd.records import Read, Row
from ray_pcasgd.schedule.attendance import Attendance
from ray_pcasgd.schedule.barrier import Proceed, WaitFor
from ray_pcasgd.schedule.membership import Away, Departure
from ray_pcasgd.schedule.plan_links import START, Link, Message, PlannedAgent
from ray_pcasgd.schedule.plan_peers import Planner, Simulation
from ray_pcasgd.schedule.simulation import row_times

_FAREWELL = -1
"""In place of a version: its sender has left."""
_NOTHING: Message = (-1, _FAREWELL, -1, 0)
"""What was read last of a neighbor of which nothing was read yet."""
_NEVER = 2**62
"""When the gradient of an agent is ready that is not there, in nanoseconds."""


@dataclass(frozen=True, kw_only=True)
class ChurningPlanner(Planner):
    """The timing of a run whose agents leave and come back.

    An agent that leaves gives up the step that it computes, stays at its version and takes no row until it returns.
    Messages that are in flight to it are lost. On its return it has a row of the kind ``rejoined``, an instant: it asks
    each neighbor that is there, also those that have taken all their steps, for its newest version, and reads that
    whatever the delay of their link. Its own next version is their mean version, counted in mini-batches and rounded
    down, but newer than its own. Where no neighbor is there, it reads none and is one version on, as it was.

    An agent is not read any more, and waited for by no barrier, from when a neighbor knows that it has left, until its
    first message after its return arrives. What it sent before its return is then not read either.

    **Choice**: a step that ends at the very instant of leaving counts, since all rounds of an instant come first; then
    agents leave, then others come back, who do not read each other; then the next rounds of that instant. That it
    leaves, neighbors know by a last message, which takes as long as any other. What would be sent to one that is not
    there takes no bandwidth. Who has taken all its steps leaves no more: its last version stays with the others. One
    that comes back after everybody else has ended still does so, as long as it has steps to take.
    """

    away: tuple[Away, ...] = ()
    """Who is not there when, by agent and time; times of one agent do not touch."""

    def __iter__(self) -> "PeerRows":
        return PeerRows(self)

    @cached_property
    def departures(self) -> tuple[Departure, ...]:
        """All departures that the plan's agents come to, by their moments; it is planned as far as the last change."""
        course = _Churn(self)
        return course.attendance.all_departures(course.rows())


class PeerRows(Iterator[Row]):
    """The rows of a plan with churn, and who is away at the place that they have been drawn to."""

    def __init__(self, plan: ChurningPlanner) -> None:
        self._course = _Churn(plan)
        self._rows = self._course.rows()
        self._drawn = [0] * len(plan.neighbors)
        """The version of each agent by the rows that were drawn."""

    def __next__(self) -> Row:
        row = next(self._rows)
        self._drawn[row.agent] = row.step + 1
        return row

    @property
    def away(self) -> Mapping[int, int]:
        """The agents that are away, and their versions."""
        return self._course.away

    def is_over(self, agent: int) -> bool:
        """Return whether the agent has no more rows: it has taken all its steps, or has left for good."""
        own = self._course.agents[agent]
        is_gone = self._course.attendance.has_left_for_good(agent)
        return self._drawn[agent] == own.step and (is_gone or own.step == own.last)


class _Line(Link):
    """What one reader knows of one neighbor, from when both of them are there until one of them leaves."""

    def __init__(self, link: Link) -> None:
        super().__init__(link.channel, link.rounds, link.reads_every, link.sender, link.receiver)
        self.has_left = False
        """Whether the reader knows that the neighbor has left."""

    def begin_anew(self) -> "_Line":
        """Know nothing of the neighbor until its first message arrives."""
        self.newest, self._last = _FAREWELL, _NOTHING
        return self

    def begin_at(self, now: int) -> None:
        """Know the neighbor's present version, as the reader has come back with it."""
        version = self.newest = self.sender.step
        self._held.append((now, version, version, self.receiver.step))

    @property
    def is_away(self) -> bool:
        """Whether the neighbor is neither read nor waited for."""
        return self.has_left or self.newest == _FAREWELL

    def known_at(self, version: int, taken: int, now: int) -> int:
        """Return the version that must be known; word that the sender has left is not held back."""
        return version if version == _FAREWELL else super().known_at(version, taken, now)

    def advance(self, now: int) -> None:
        """Let everything arrive that is due; a farewell is the last of it."""
        arrives_at, version, _, _ = self.in_flight[-1] if self.in_flight else START
        if version == _FAREWELL and arrives_at <= now:
            self.in_flight.clear()
            self.has_left = True
        super().advance(now)

    @property
    def reached(self) -> int:
        """The newest version that is known; of a sender that is away, none is waited for."""
        return self.receiver.step if self.is_away else super().reached

    def read_newest(self, step: int, capped: bool, once: bool) -> Read | None:
        """Return what the receiver reads; nothing of a sender that is away, or whose versions are held back."""
        if self.is_away:
            return None
        read = super().read_newest(step, capped, once)
        return None if read is None or read.version == _FAREWELL else read


class _Churn(Simulation):
    """The course of a plan with churn."""

    def __init__(self, plan: ChurningPlanner) -> None:
        super().__init__(plan)
        self.attendance = Attendance(plan.away)
        self.away = self.attendance.away
        """The agents that are away, and their versions."""
        self.readers = [[link.receiver for link in agent.outgoing] for agent in self.agents]
        """Of each agent, in the order in which they are sent its versions."""
        self.tested: dict[int, dict[int, int]] = {}
        """What each agent's barrier was last asked about."""
        for agent in self.agents:
            for k in agent.incoming:
                line = self.connect(self.agents[k], agent)
                if agent.number in self.away or k in self.away:
                    line.begin_anew()
            if agent.number in self.away:
                agent.ready = _NEVER
        self.let_reach(self.agents)

    def connect(self, sender: PlannedAgent, receiver: PlannedAgent) -> _Line:
        """Return a line in place of what a receiver knew of a sender."""
        line = receiver.incoming[sender.number] = _Line(receiver.incoming[sender.number])
        return line

    def let_reach(self, senders: Sequence[PlannedAgent]) -> None:
        """Let each of the agents send to those readers that are there."""
        for agent in senders:
            there = (reader for reader in self.readers[agent.number] if reader.number not in self.away)
            agent.reach([reader.incoming[agent.number] for reader in there])

    def rows(self) -> Iterator[Row]:
        """Yield all rows."""
        if self.plan.num_steps < 1:
            return
        for agent in self.agents:
            if agent.number not in self.away:
                self.enter(self.first_test(agent, 0), agent)
        while (now := self.next_moment) is not None:
            yield from self.rounds(self.due(now), now)
            if self.attendance.next_change == now:
                rows, testing = self.change(now)
                yield from rows
                yield from self.rounds(testing, now)

    @property
    def next_moment(self) -> int | None:
        """When something happens next; ``None``: nothing does."""
        moments = [super().next_moment, self.attendance.next_change]
        return min((moment for moment in moments if moment is not None), default=None)

    def change(self, now: int) -> tuple[list[Row], set[int]]:
        """Let agents leave and come back; return the latter's rows, and who tests in the next round of this instant."""
        leaving, returning = list[PlannedAgent](), list[PlannedAgent]()
        for _, number, is_back in self.attendance.due(now):
            agent = self.agents[number]
            if is_back and (number in self.away or agent in leaving):
                returning.append(agent)
            elif not is_back and agent.step < agent.last:
                leaving.append(agent)
        for agent in leaving:
            self.attendance.leave(agent.number, agent.step)
            agent.ready, agent.reads, agent.waits = _NEVER, None, False
        self.let_reach([*leaving, *self.senders_to(leaving)])
        for agent in leaving:
            self.say_farewell(agent, now)
        rows = [self.rejoined(agent, now) for agent in returning]
        for agent, row in zip(returning, rows, strict=True):
            self.come_back(agent, row, now)
        for agent, row in zip(returning, rows, strict=True):
            for read in row.reads:
                line = agent.incoming[read.neighbor]
                assert isinstance(line, _Line)
                line.begin_at(now)
        self.let_reach([*returning, *self.senders_to(returning)])
        return rows, self.announce(returning, now)

    def senders_to(self, agents: Sequence[PlannedAgent]) -> list[PlannedAgent]:
        """Return whom these agents read."""
        return [self.agents[k] for agent in agents for k in agent.incoming]

    def say_farewell(self, agent: PlannedAgent, now: int) -> None:
        """Let an agent's readers know that it leaves."""
        taken = self.plan.rounds.progress(agent.number, agent.step)
        self.send(agent.outgoing, _FAREWELL, taken, now)

    def rejoined(self, agent: PlannedAgent, now: int) -> Row:
        """Return the row by which an agent comes back."""
        rounds = self.plan.rounds
        there = {k: self.agents[k].step for k in sorted(agent.incoming) if k not in self.away}
        version = max(agent.step + 1, int(rounds.mean_version(agent.number, there)))
        reads = tuple(Read(k, newest, 0, 0) for k, newest in there.items())
        return Row(agent.number, min(version, agent.last) - 1, *row_times(now, now, now), reads, "rejoined")

    def come_back(self, agent: PlannedAgent, row: Row, now: int) -> None:
        """Let an agent be there again, at the version of its row; nothing is known any more of what was before."""
        self.attendance.come_back(agent.number, row.step + 1)
        agent.step, agent.ready, agent.waits = row.step + 1, now, False
        for k in agent.incoming:
            self.connect(self.agents[k], agent).begin_anew()
        for reader in self.readers[agent.number]:
            self.connect(agent, reader).begin_anew()
            if reader.waits:
                self.enter(now, reader)

    def notice(self, link: Link, version: int, arrives_at: int) -> None:
        """Let a reader that waits test its barrier at an arrival, at which it may wait for that neighbor no longer."""
        if link is not link.receiver.incoming[link.sender.number]:
            return  # of before one of them was away
        if version == _FAREWELL:
            self.enter(arrives_at, link.receiver)
        else:
            super().notice(link, version, arrives_at)

    def decide(self, agent: PlannedAgent, newest: dict[int, int]) -> Proceed | WaitFor:
        """Return what the agent's barrier says; one that draws is not asked again where nothing new has come."""
        if self.tests_often:
            if agent.waits and self.tested[agent.number] == newest:
                return WaitFor({})
            self.tested[agent.number] = newest
        return super().decide(agent, newest)
