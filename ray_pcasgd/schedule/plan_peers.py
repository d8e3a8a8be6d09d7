"""Plans who reads which version when: an event-driven simulation of timing alone, without weights."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from ray_pcasgd.base.randomness import generator
from ray_pcasgd.base.rounds import Rounds
from ray_pcasgd.records import Read, Row
from ray_pcasgd.rules.exchange import AllNeighbors, Exchange
from ray_pcasgd.schedule.barrier import Barrier, NoBarrier, Proceed, WaitFor
from ray_pcasgd.schedule.simulation import Calendar, Channel, Computing, Downlinks, Timing, row_times
from ray_pcasgd.schedule.transfers import HostPipes


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
        return Simulation(self).rows()


class Message(NamedTuple):
    """What is sent over a link."""

    version: int
    arrives_at: int
    known_at: int
    """The version of its sender that must be known before this one's weights may be read."""
    reader_step: int
    """The step that the reader was at when this was sent."""


START = Message(version=0, arrives_at=-1, known_at=0, reader_step=0)
"""Version 0, which all have before the first step."""


class PlannedAgent:
    """One agent of a plan."""

    def __init__(self, plan: Planner, number: int) -> None:
        self.number = number
        self.gradients = Computing(plan, number)
        self.barrier_draws = generator(plan.seed, "barrier", number)
        self.incoming: dict[int, Link] = {}
        """By sender."""
        self.outgoing: list[Link] = []
        self.last = plan.rounds.last(number)
        """The version at which it has taken all its steps."""
        self.step = 0
        """The round that it is at, which is its newest version."""
        self.start = 0
        self.ready = 0
        self.waits = False
        """Whether the barrier has been tested in vain at this step."""
        self.reads: tuple[Read, ...] | None = None
        """What it has read for the round that it computes, where agents combine first."""
        self.held: tuple[int, ...] = ()
        """Who was not sent the present version, where every version is read once."""


class Link:
    """What one reader knows of one neighbor."""

    def __init__(self, channel: Channel, plan: Planner, sender: PlannedAgent, receiver: PlannedAgent) -> None:
        self.channel = channel
        self.sender = sender
        self.receiver = receiver
        self.reads_every = plan.exchange.reading == "every"
        self.newest = 0
        """Newest version whose message has arrived."""
        self.in_flight: deque[Message] = deque()
        self._rounds = plan.rounds
        self._last = START
        """What was read last."""
        self._held: deque[Message] = deque([START] if self.reads_every else [])
        """What has arrived and may yet be read, by rising version and, unless every one is read, ``known_at``."""

    def send(self, taken: int, now: int, downlinks: "LinkDownlinks") -> int | None:
        """Send the sender's newest version, the end of so many mini-batches, and return when it arrives.

        ``None`` is returned where its downlink is to say that.
        """
        version, channel = self.sender.step, self.channel
        came = channel.send(taken, now)
        hold = channel.hold_steps(taken, now)
        known_at = version + self._rounds.versions_in(self.sender.number, hold) if hold else version
        if channel.has_downlink:
            downlinks.enter(channel, came, (self, version, known_at, self.receiver.step))
            return None
        self.in_flight.append(Message(version, came[1], known_at, self.receiver.step))
        return came[1]

    def advance(self, now: int) -> None:
        """Let everything arrive that is due."""
        while self.in_flight and self.in_flight[0].arrives_at <= now:
            message = self.in_flight.popleft()
            self.newest = message.version
            # Versions that become readable no earlier than a newer one are never the newest readable.
            while not self.reads_every and self._held and self._held[-1].known_at >= message.known_at:
                self._held.pop()
            self._held.append(message)

    @property
    def reached(self) -> int:
        """The newest version that is known; of a sender that has taken all its steps, none is waited for any more."""
        return max(self.newest, self.receiver.step) if self.newest == self.sender.last else self.newest

    def read(self, step: int, capped: bool, once: bool) -> Iterator[Read]:
        """Yield what the receiver reads at its step: one version, unless every one is read; never an older one.

        With ``once``, no version is read where no new one has come, and what a delay in steps holds back is let go by
        the sender's steps: its next message may be long in coming.
        """
        # Where not every version is sent, messages do not tell how far the sender has come.
        known = self.sender.step if once else min(self.newest, step) if capped else self.newest
        published = min(self.sender.step, step) if capped else self.sender.step
        if self.reads_every:
            taken = [message for message in self._held if message.known_at <= known]
            self._held = deque(message for message in self._held if message.known_at > known)
        else:
            last = self._last
            while self._held and self._held[0].known_at <= known:
                self._last = self._held.popleft()
            taken = [] if once and self._last is last else [self._last]
        for message in taken:
            # What an earlier, uncapped read has seen may be newer than the cap.
            staleness = max(0, published - message.version)
            yield Read(self.sender.number, message.version, staleness, step - message.reader_step)


LinkDownlinks = Downlinks[tuple[Link, int, int, int]]
"""Of messages that come to them: the link, and all but the time of a ``Message``."""


class Simulation:
    """The course of one plan."""

    def __init__(self, plan: Planner) -> None:
        self.plan = plan
        pipes = HostPipes(plan.hosts)
        self.agents = [PlannedAgent(plan, number) for number in range(len(plan.neighbors))]
        for receiver in self.agents:
            for k in plan.neighbors[receiver.number]:
                channel = Channel(plan, k, receiver.number, plan.message_bytes, pipes)
                link = Link(channel, plan, self.agents[k], receiver)
                receiver.incoming[k] = link
                self.agents[k].outgoing.append(link)
        self.calendar = Calendar[int]()
        """When agents test their barriers, by their numbers. Arrivals matter only to agents that wait."""
        self.downlinks = LinkDownlinks()

    def rows(self) -> Iterator[Row]:
        """Yield all rows."""
        if self.plan.num_steps < 1:
            return
        for agent in self.agents:
            self.calendar.enter(self.first_test(agent, 0), agent.number)
        while (now := self.next_moment()) is not None:
            yield from self.rounds(self.due(now), now)

    def rounds(self, testing: set[int], now: int) -> Iterator[Row]:
        """Yield the rows that end now, in one round after another, of which these agents test in the first."""
        while testing:
            tested = (self.test(self.agents[number], now) for number in sorted(testing))
            rows = [row for row in tested if row is not None]
            testing = self.publish([self.agents[row.agent] for row in rows], now)
            yield from rows

    @property
    def upcoming(self) -> int | None:
        """When something happens next that does not come to a downlink before; ``None``: nothing does."""
        return self.calendar.next_moment

    def next_moment(self) -> int | None:
        """Return when agents test next; what comes to downlinks until then may let some of them test earlier."""
        moment = self.upcoming
        while self.land(moment):
            moment = self.upcoming
        return moment

    def land(self, until: int | None) -> bool:
        """Let the next message through its downlink that comes until a moment; return whether there was one."""
        taken = self.downlinks.take(until)
        if taken is None:
            return False
        arrives_at, (link, version, known_at, reader_step) = taken
        link.in_flight.append(Message(version, arrives_at, known_at, reader_step))
        if link.receiver.waits:
            self.calendar.enter(arrives_at, link.receiver.number)
        return True

    def due(self, now: int) -> set[int]:
        """Return who tests now, and take that out of the calendar."""
        testing: set[int] = set()
        while self.calendar.next_moment == now:
            testing.add(self.calendar.pop()[1])
        return testing

    def first_test(self, agent: PlannedAgent, now: int) -> int:
        """Return when an agent that has just published first tests the barrier of its next step."""
        return now if self.plan.combines_first else self.begin(agent, now)

    def begin(self, agent: PlannedAgent, now: int) -> int:
        """Start the agent's next step, and return when its gradient is ready."""
        agent.start = now
        agent.ready = agent.gradients.ready_at(now, self.plan.rounds.steps_in(agent.number, agent.step))
        return agent.ready

    def test(self, agent: PlannedAgent, now: int) -> Row | None:
        """Return the row that ends now if the barrier lets it; else the agent tests again at the next arrival."""
        if agent.step == agent.last or now < agent.ready:
            return None  # an arrival that was entered for a wait which an earlier one has ended
        if agent.reads is None and (reads := self.reads_at(agent, now)) is not None:
            if not self.plan.combines_first:
                return self.row(agent, now, reads)
            agent.reads, agent.waits = reads, False
            self.calendar.enter(self.begin(agent, now), agent.number)
        elif agent.reads is not None:
            reads, agent.reads = agent.reads, None
            return self.row(agent, now, reads)
        return None

    def row(self, agent: PlannedAgent, now: int, reads: tuple[Read, ...]) -> Row:
        """Return the agent's row that ends now."""
        return Row(agent.number, agent.step, *row_times(agent.start, agent.ready, now), reads, held=agent.held)

    def reads_at(self, agent: PlannedAgent, now: int) -> tuple[Read, ...] | None:
        """Return what the agent reads now, or ``None`` where its barrier lets it wait."""
        for link in agent.incoming.values():
            link.advance(now)
        exchange, neighbors = self.plan.exchange, self.plan.neighbors[agent.number]
        asked: tuple[int, ...] = ()
        if exchange.waits_for_partners:
            asked = exchange.partners(self.plan.seed, agent.number, agent.step, neighbors)
        elif not isinstance(self.plan.barrier, NoBarrier):
            asked = neighbors
        newest = {k: agent.incoming[k].reached for k in asked}
        decision = self.decide(agent, newest)
        if isinstance(decision, WaitFor):
            self.wait(agent)
            return None
        return tuple(self.reads(agent, decision.capped))

    def decide(self, agent: PlannedAgent, newest: dict[int, int]) -> Proceed | WaitFor:
        """Return what the agent's barrier says of its neighbors' newest known versions."""
        return self.plan.barrier.decide(agent.step, newest, agent.barrier_draws)

    def reads(self, agent: PlannedAgent, capped: frozenset[int]) -> Iterator[Read]:
        """Yield what the agent reads at its step."""
        exchange, neighbors = self.plan.exchange, self.plan.neighbors[agent.number]
        for k in exchange.partners(self.plan.seed, agent.number, agent.step, neighbors):
            for read in agent.incoming[k].read(agent.step, k in capped, exchange.reading == "news"):
                # The last version is not passed on: its agent splits its mass no more.
                if exchange.reading != "every" or read.version < self.agents[k].last:
                    yield read

    def wait(self, agent: PlannedAgent) -> None:
        """Let an agent test its barrier again at each arrival of a message that is in flight to it."""
        if agent.waits:
            return
        agent.waits = True
        for link in agent.incoming.values():
            for message in link.in_flight:
                self.calendar.enter(message.arrives_at, agent.number)

    def done(self, agent: PlannedAgent) -> tuple[int, ...]:
        """Return those readers of an agent that take no more steps: a share that is pushed to them is lost."""
        if self.plan.exchange.reading != "every":
            return ()
        readers = sorted(link.receiver.number for link in agent.outgoing)
        return tuple(number for number in readers if self.agents[number].step == self.agents[number].last)

    def publish(self, agents: list[PlannedAgent], now: int) -> set[int]:
        """Publish the next version of each of the agents; return who tests in the next round of this instant."""
        for agent in agents:
            agent.step += 1
            agent.waits = False
        return self.announce(agents, now)

    def announce(self, agents: list[PlannedAgent], now: int) -> set[int]:
        """Send the version of each of the agents; return who tests in the next round of this instant."""
        entries = [(self.first_test(agent, now), agent.number) for agent in agents if agent.step < agent.last]
        for agent in agents:
            readers = tuple(link.receiver.number for link in agent.outgoing)
            # All must know of the last version, lest one wait for a partner that has none to send any more.
            receivers = readers
            if agent.step < agent.last or not self.plan.exchange.waits_for_partners:
                receivers = self.plan.exchange.receivers(self.plan.seed, agent.number, agent.step, readers)
            agent.held = self.done(agent)
            taken = self.plan.rounds.progress(agent.number, agent.step)
            for link in agent.outgoing:
                if link.receiver.number not in receivers or link.receiver.number in agent.held:
                    continue
                arrives_at = link.send(taken, now, self.downlinks)
                if arrives_at is not None and link.receiver.waits:
                    entries.append((arrives_at, link.receiver.number))
        for moment, number in entries:
            self.calendar.enter(moment, number)
        while self.land(now):
            pass
        return self.due(now)
