"""Plans who reads which version when: an event-driven simulation of timing alone, without weights.

Most plans are made many rows at once (``plan_windows``), and the rows are the same.
"""

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, islice

from ray_pcasgd.base.rounds import Rounds
from ray_pcasgd.records import Read, Row
from ray_pcasgd.rules.exchange import AllNeighbors, Exchange
from ray_pcasgd.schedule.barrier import (
    AllBarrier,
    Barrier,
    BoundedBarrier,
    NoBarrier,
    Proceed,
    SampledBarrier,
    WaitFor,
)
from ray_pcasgd.schedule.plan_links import Link, PlannedAgent
from ray_pcasgd.schedule.plan_windows import Windows
from ray_pcasgd.schedule.segments import OutOfRangeError
from ray_pcasgd.schedule.simulation import Channel, Timing, row_times
from ray_pcasgd.schedule.transfers import Downlink, HostPipes

_FEWEST_ROWS = 60
"""Rows of a plan, about, from which on it takes less time to plan many at once."""
_FEWEST_AGENTS = 6
"""Agents with a barrier from which on it does."""


@dataclass(frozen=True, kw_only=True)
class Planner(Timing):
    """A run's timing; iterating over it yields the same rows every time, lazily, in an order that can be executed.

    An agent computes its gradient, then tests its barrier, at once and whenever messages arrive, until it may
    proceed; at that instant it reads, publishes its next version and starts its next step. One that combines first
    tests its barrier, reads as it may proceed, computes, and publishes. Time is whole nanoseconds, so that equal times
    are equal.

    **Choice**: of what happens at one instant. Arrivals come first. Then all agents that may proceed end their steps
    together, none of them reading what another publishes in that same round. Then messages without latency arrive,
    and agents that waited for them proceed in a next round at the same instant. So equal speeds without delay are plain
    synchronous SGD, with or without a barrier, and a barrier never costs a step. For a read's age, what the reader
    publishes in the same round as its neighbor comes before that, what it publishes in a later round comes after it.

    Rows come in the order of ``end``, of the round within that instant, and of the agent.
    """

    neighbors: tuple[tuple[int, ...], ...]
    """The agents that each agent reads, rising."""
    barrier: Barrier
    exchange: Exchange = field(default_factory=AllNeighbors)
    """Says who reads whom, and who sends to whom."""
    local_steps: tuple[int, ...] = ()
    """Mini-batches of each agent from one version to the next; empty: 1 for all."""
    combines_first: bool = False
    """Whether an agent tests its barrier and reads before it computes, at the start of its row, instead of after it."""
    message_bytes: int = 0
    """Bytes of one version's message to one reader; only bandwidths ask for it."""

    @cached_property
    def rounds(self) -> Rounds:
        """Which mini-batches lie between the agents' versions."""
        return Rounds(self.num_steps, self.local_steps)

    def __iter__(self) -> Iterator[Row]:
        num_agents = len(self.neighbors)
        is_worth_it = self.num_steps * num_agents >= _FEWEST_ROWS and (
            isinstance(self.barrier, NoBarrier) or num_agents >= _FEWEST_AGENTS
        )
        in_windows = is_worth_it and self.has_windows
        return chain.from_iterable(self._in_windows()) if in_windows else Simulation(self).rows()

    @property
    def has_windows(self) -> bool:
        """Whether many rows can be planned at once: all is read of all, and no queue's order hangs on a barrier."""
        exchange, barrier = self.exchange, self.barrier
        reads_all = isinstance(exchange, AllNeighbors) and exchange.reading == "newest"
        goes_on = isinstance(barrier, NoBarrier)
        waits_for_all = isinstance(barrier, AllBarrier | BoundedBarrier) and not (self.hosts or self.combines_first)
        return reads_all and (goes_on or waits_for_all)

    @property
    def windows(self) -> Windows:
        """The rows of many steps at once."""
        barrier = self.barrier
        assert not isinstance(barrier, SampledBarrier)
        return Windows(
            self,
            self.rounds,
            self.neighbors,
            self.message_bytes,
            self.combines_first,
            None if isinstance(barrier, NoBarrier) else barrier,
        )

    def _in_windows(self) -> Iterator[Iterable[Row]]:
        """Yield all rows, those of many steps at once as far as numbers have 64 bits."""
        planned = 0
        try:
            for number, rows in self.windows:
                planned += number
                yield rows
        except OutOfRangeError:
            yield islice(Simulation(self).rows(), planned, None)


_LANDS, _TESTS = range(2)
"""What a moment of the calendar is about: the downlink of a host, or an agent's barrier."""

_UNCAPPED: frozenset[int] = frozenset()


class Simulation:
    """The course of one plan."""

    def __init__(self, plan: Planner) -> None:
        self.plan = plan
        self.exchange = plan.exchange
        self.reading = plan.exchange.reading
        self.has_barrier = not isinstance(plan.barrier, NoBarrier)
        self.tests_often = isinstance(plan.barrier, SampledBarrier)
        """Whether an agent that waits is to test at each arrival, since its barrier draws anew at each test."""
        pipes = HostPipes(plan.hosts)
        self.downlinks = pipes.downlinks
        """By host."""
        self.agents = [PlannedAgent(plan, plan.rounds, k, pipes.downlink_of(k)) for k in range(len(plan.neighbors))]
        outgoing: list[list[Link]] = [[] for _ in self.agents]
        for receiver in self.agents:
            for k in plan.neighbors[receiver.number]:
                channel = Channel(plan, k, receiver.number, plan.message_bytes, pipes)
                link = Link(channel, plan.rounds, self.reading == "every", self.agents[k], receiver)
                receiver.incoming[k] = link
                outgoing[k].append(link)
        for agent in self.agents:
            agent.reach(outgoing[agent.number])
        self.calendar: list[tuple[int, int, int]] = []
        """A heap of moments, each with what is due, and the number of the agent or host. Arrivals matter only to agents
        that wait, and so does what comes to downlinks: others take in what has come when they read."""

    def rows(self) -> Iterator[Row]:
        """Yield all rows."""
        if self.plan.num_steps < 1:
            return
        for agent in self.agents:
            self.enter(self.first_test(agent, 0), agent)
        while (now := self.next_moment) is not None:
            yield from self.rounds(self.due(now), now)

    def rounds(self, testing: set[int], now: int) -> Iterator[Row]:
        """Yield the rows that end now, in one round after another, of which these agents test in the first."""
        while testing:
            tested = [self.test(self.agents[number], now) for number in sorted(testing)]
            rows = [row for row in tested if row is not None]
            testing = self.publish([self.agents[row.agent] for row in rows], now)
            yield from rows

    @property
    def next_moment(self) -> int | None:
        """When something happens next; ``None``: nothing does."""
        return self.calendar[0][0] if self.calendar else None

    def enter(self, moment: int, agent: PlannedAgent) -> None:
        """Let an agent test its barrier at a moment."""
        heapq.heappush(self.calendar, (moment, _TESTS, agent.number))

    def due(self, now: int) -> set[int]:
        """Return who tests now, and take that out of the calendar."""
        testing: set[int] = set()
        calendar = self.calendar
        while calendar and calendar[0][0] == now:
            _, what, number = heapq.heappop(calendar)
            if what == _TESTS:
                testing.add(number)
            else:
                self.land(self.downlinks[number], now)
        return testing

    def land(self, downlink: Downlink, now: int) -> None:
        """Let what has come to a downlink through it; others of the host may wait for it."""
        for arrives_at, (link, version, known_at, reader_step) in downlink.take(now):
            link.in_flight.append((arrives_at, version, known_at, reader_step))
            if link.receiver.waits:
                self.notice(link, version, arrives_at)

    def first_test(self, agent: PlannedAgent, now: int) -> int:
        """Return when an agent that has just published first tests the barrier of its next step."""
        return now if self.plan.combines_first else self.begin(agent, now)

    def begin(self, agent: PlannedAgent, now: int) -> int:
        """Start the agent's next step, and return when its gradient is ready."""
        agent.start = now
        agent.ready = agent.gradients.ready_at(now, self.plan.rounds.steps_in(agent.number, agent.step))
        return agent.ready

    def test(self, agent: PlannedAgent, now: int) -> Row | None:
        """Return the row that ends now if the barrier lets it; else the agent tests again at a later arrival."""
        if agent.step == agent.last or now < agent.ready:
            return None  # an arrival that was entered for a wait which an earlier one has ended
        reads = agent.reads
        if reads is None:
            reads = self.reads_at(agent, now)
            if reads is None:
                return None
            if self.plan.combines_first:
                agent.reads, agent.waits = reads, False
                self.enter(self.begin(agent, now), agent)
                return None
        agent.reads = None
        return Row(agent.number, agent.step, *row_times(agent.start, agent.ready, now), reads, "step", agent.held)

    def reads_at(self, agent: PlannedAgent, now: int) -> tuple[Read, ...] | None:
        """Return what the agent reads now, or ``None`` where its barrier lets it wait."""
        if agent.downlink is not None:
            self.land(agent.downlink, now)
        for link in agent.incoming.values():
            if link.in_flight:
                link.advance(now)
        if not self.has_barrier:
            return self.reads(agent, _UNCAPPED)
        exchange, asked = self.exchange, self.plan.neighbors[agent.number]
        if exchange.waits_for_partners:
            asked = exchange.partners(self.plan.seed, agent.number, agent.step, asked)
        decision = self.decide(agent, {k: agent.incoming[k].reached for k in asked})
        if isinstance(decision, WaitFor):
            self.wait(agent, decision)
            return None
        return self.reads(agent, decision.capped)

    def decide(self, agent: PlannedAgent, newest: dict[int, int]) -> Proceed | WaitFor:
        """Return what the agent's barrier says of its neighbors' newest known versions."""
        return self.plan.barrier.decide(agent.step, newest, agent.barrier_draws)

    def reads(self, agent: PlannedAgent, capped: frozenset[int]) -> tuple[Read, ...]:
        """Return what the agent reads at its step."""
        incoming, step = agent.incoming, agent.step
        partners = self.exchange.partners(self.plan.seed, agent.number, step, self.plan.neighbors[agent.number])
        if self.reading == "every":
            return tuple(read for k in partners for read in incoming[k].read_every(step, k in capped))
        once = self.reading == "news"
        found = [incoming[k].read_newest(step, k in capped, once) for k in partners]
        return tuple([read for read in found if read is not None])

    def wait(self, agent: PlannedAgent, decision: WaitFor) -> None:
        """Let an agent test its barrier again when all has arrived that it waits for, as far as that has been sent.

        A barrier that draws anew is tested at each arrival of a message that is in flight.
        """
        if agent.waits and self.tests_often:
            return
        if not agent.waits:
            self.await_landings(agent)
        agent.waits, agent.awaited, agent.wakes_at = True, dict(decision.versions), 0
        for link in agent.incoming.values():
            for arrives_at, version, _, _ in link.in_flight:
                self.notice(link, version, arrives_at)

    def await_landings(self, agent: PlannedAgent) -> None:
        """Let what is coming to the agent's downlink through as it comes."""
        if agent.downlink is None:
            return
        for first, (link, *_) in agent.downlink.coming:
            if link.receiver is agent:
                self.await_landing(agent.downlink, first)

    def await_landing(self, downlink: Downlink, first: int) -> None:
        """Let a message through a downlink when it has come there."""
        heapq.heappush(self.calendar, (first, _LANDS, downlink.place))

    def notice(self, link: Link, version: int, arrives_at: int) -> None:
        """Take in when a message comes to a reader that waits: it tests its barrier when the last one has come."""
        reader, k = link.receiver, link.sender.number
        if not self.tests_often:
            if k not in reader.awaited or (version < reader.awaited[k] and version != link.sender.last):
                return
            del reader.awaited[k]
            reader.wakes_at = arrives_at = max(reader.wakes_at, arrives_at)
            if reader.awaited:
                return
        self.enter(arrives_at, reader)

    def publish(self, agents: Sequence[PlannedAgent], now: int) -> set[int]:
        """Publish the next version of each of the agents; return who tests in the next round of this instant."""
        for agent in agents:
            agent.step += 1
            agent.waits = False
        return self.announce(agents, now)

    def announce(self, agents: Sequence[PlannedAgent], now: int) -> set[int]:
        """Send the version of each of the agents; return who tests in the next round of this instant."""
        for agent in agents:
            if agent.step < agent.last:
                self.enter(self.first_test(agent, now), agent)
            agent.held = self.done(agent)
            taken = self.plan.rounds.progress(agent.number, agent.step)
            self.send(self.told(agent), agent.step, taken, now)
        return self.due(now)

    def told(self, agent: PlannedAgent) -> Sequence[Link]:
        """Return the links over which an agent sends its version."""
        readers = receivers = agent.readers
        # All must know of the last version, lest one wait for a partner that has none to send any more.
        if agent.step < agent.last or not self.exchange.waits_for_partners:
            receivers = self.exchange.receivers(self.plan.seed, agent.number, agent.step, readers)
        if receivers is readers and not agent.held:
            return agent.outgoing
        return [
            link
            for link, number in zip(agent.outgoing, readers, strict=True)
            if number in receivers and number not in agent.held
        ]

    def send(self, links: Sequence[Link], version: int, taken: int, now: int) -> None:
        """Send a version, the end of so many mini-batches, over each of the links."""
        for link in links:
            channel, reader = link.channel, link.receiver
            first, last = channel.send(taken, now)
            known_at = link.known_at(version, taken, now) if channel.has_steps else version
            downlink = channel.downlink
            if downlink is None:
                link.in_flight.append((last, version, known_at, reader.step))
                if reader.waits:
                    self.notice(link, version, last)
            else:
                downlink.enter(first, last, channel.downlink_nanoseconds, (link, version, known_at, reader.step))
                if reader.waits:
                    self.await_landing(downlink, first)

    def done(self, agent: PlannedAgent) -> tuple[int, ...]:
        """Return those readers of an agent that take no more steps: a share that is pushed to them is lost."""
        if self.reading != "every":
            return ()
        return tuple(number for number in sorted(agent.readers) if self.agents[number].step == self.agents[number].last)
