"""Plans who reads which version when: an event-driven simulation of timing alone, without weights."""

import heapq
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ray_pcasgd.randomness import generator
from ray_pcasgd.records import Read, Row
from ray_pcasgd.schedule.barrier import Barrier, Proceed
from ray_pcasgd.timing import ComputeTimes, LinkDelay, LinkTimes

_NANOSECONDS = 1_000_000_000


@dataclass(frozen=True, kw_only=True)
class Planner:
    """A run's timing; iterating over it yields the same rows every time, lazily, in an order that can be executed.

    An agent computes its gradient, then tests its barrier, at once and whenever a message arrives, until it may
    proceed; at that instant it reads, publishes its next version and starts its next step. Time is whole nanoseconds,
    so that equal times are equal.

    **Choice**: of what happens at one instant. Arrivals come first. Then all agents that may proceed end their steps
    together, none of them reading what another publishes in that same round. Then messages without latency arrive,
    and whoever waited for them proceeds in a next round at the same instant. So equal speeds without delay are plain
    synchronous SGD, with or without a barrier, and a barrier never costs a step.
    """

    neighbors: tuple[tuple[int, ...], ...]
    num_steps: int
    compute: ComputeTimes
    links: tuple[LinkDelay, ...]
    clusters: tuple[int, ...]
    barrier: Barrier
    seed: int

    def __iter__(self) -> Iterator[Row]:
        return _Simulation(self).rows()


class _Link:
    """What one reader knows of one neighbor."""

    def __init__(self, plan: Planner, sender: int, receiver: int) -> None:
        self.times = LinkTimes(plan.links, plan.clusters, plan.seed, sender, receiver)
        self.newest = 0
        """Newest version whose message has arrived."""
        self.readable = 0
        """Newest version that has been readable so far; reads never go backwards."""
        self.held: list[tuple[int, int]] = []
        """(version that must be known, version) of what is not readable yet, a heap."""
        self.last_arrival = 0

    def arrive(self, version: int, known_at: int) -> None:
        self.newest = version
        heapq.heappush(self.held, (known_at, version))

    def read(self, cap: int | None) -> int:
        """Return the version that is read, no newer than ``cap`` unless a newer one was read before."""
        known = self.newest if cap is None else min(self.newest, cap)
        while self.held and self.held[0][0] <= known:
            self.readable = max(self.readable, heapq.heappop(self.held)[1])
        return self.readable


class _Agent:
    def __init__(self, plan: Planner, agent: int) -> None:
        self.number = agent
        self.compute = plan.compute.sampler(plan.seed, agent)
        self.barrier_draws = generator(plan.seed, "barrier", agent)
        self.inbox = {k: _Link(plan, k, agent) for k in plan.neighbors[agent]}
        self.ends: list[int] = []
        """Nanosecond at which each version was published, from version 1 on."""
        self.start = 0
        self.ready = 0
        self.waits = False
        self.has_news = False

    @property
    def step(self) -> int:
        return len(self.ends)

    def version_at(self, nanosecond: int) -> int:
        return bisect_right(self.ends, nanosecond)


class _Simulation:
    def __init__(self, plan: Planner) -> None:
        self.plan = plan
        self.agents = [_Agent(plan, i) for i in range(len(plan.neighbors))]
        self.readers = [[a.number for a in self.agents if k in a.inbox] for k in range(len(self.agents))]
        self.events: list[tuple[int, int, tuple[int, ...]]] = []
        self.num_events = 0

    def rows(self) -> Iterator[Row]:
        for agent in self.agents:
            self.start_step(agent, 0)
        while self.events:
            now = self.events[0][0]
            while True:
                self.take_events(now)
                released = self.released()
                if not released:
                    break
                versions = [agent.step for agent in self.agents]
                rows = [self.row(agent, capped, now, versions) for agent, capped in released]
                for agent, _ in released:
                    self.publish(agent, now)
                yield from rows

    def push(self, nanosecond: int, *what: int) -> None:
        self.num_events += 1
        heapq.heappush(self.events, (nanosecond, self.num_events, what))

    def take_events(self, now: int) -> None:
        """Take in everything that is due at this instant: ``(agent)`` is ready, or ``(k, i, version, known_at)`` came."""
        while self.events and self.events[0][0] == now:
            what = heapq.heappop(self.events)[2]
            if len(what) == 1:
                agent = self.agents[what[0]]
                agent.waits = agent.has_news = True
            else:
                sender, receiver, version, known_at = what
                agent = self.agents[receiver]
                agent.inbox[sender].arrive(version, known_at)
                agent.has_news = True

    def released(self) -> list[tuple[_Agent, frozenset[int]]]:
        """Return the agents whose steps end now, with the neighbors of which they read nothing newer than the step."""
        result = []
        for agent in self.agents:
            if agent.waits and agent.has_news:
                agent.has_news = False
                decision = self.plan.barrier.decide(agent.step, self.known(agent), agent.barrier_draws)
                if isinstance(decision, Proceed):
                    result.append((agent, decision.capped))
        return result

    def known(self, agent: _Agent) -> dict[int, int]:
        """Return each neighbor's newest known version; one that has taken its last step holds nobody up."""
        last = self.plan.num_steps
        return {k: link.newest if link.newest < last else max(last, agent.step) for k, link in agent.inbox.items()}

    def row(self, agent: _Agent, capped: frozenset[int], now: int, versions: Sequence[int]) -> Row:
        reads = []
        step = agent.step
        for k, link in agent.inbox.items():
            cap = step if k in capped else None
            version = link.read(cap)
            newest = versions[k] if cap is None else min(versions[k], cap)
            sent_at = self.agents[k].ends[version - 1] if version else 0
            own = agent.version_at(sent_at) if version else 0
            reads.append(Read(k, version, max(0, newest - version), step - own))
        times = (agent.start / _NANOSECONDS, agent.ready / _NANOSECONDS, now / _NANOSECONDS)
        return Row(agent.number, step, *times, tuple(reads))

    def publish(self, agent: _Agent, now: int) -> None:
        agent.ends.append(now)
        agent.waits = False
        version = agent.step
        for receiver in self.readers[agent.number]:
            link = self.agents[receiver].inbox[agent.number]
            latency = round(link.times.latency_seconds(version, now / _NANOSECONDS) * _NANOSECONDS)
            hold = link.times.hold_steps(version, now / _NANOSECONDS)
            link.last_arrival = max(link.last_arrival, now + latency)
            self.push(link.last_arrival, agent.number, receiver, version, version + hold)
        if version < self.plan.num_steps:
            self.start_step(agent, now)

    def start_step(self, agent: _Agent, now: int) -> None:
        agent.start = now
        agent.ready = now + round(agent.compute(now / _NANOSECONDS) * _NANOSECONDS)
        self.push(agent.ready, agent.number)
