"""What a live agent of AD-PSGD decides: whom it asks, whom it gives up, and how it comes back."""

from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from ray_pcasgd.agents.mailbox import Header
from ray_pcasgd.agents.pair import PairSpec
from ray_pcasgd.engines.live.decisions import Ask, Compute, Moment, Over, Rejoin, Take, Wait
from ray_pcasgd.engines.live.injection import InjectedDelays
from ray_pcasgd.engines.live.reading import OwnTimes
from ray_pcasgd.records import Event, EventKind, Read
from ray_pcasgd.rules.adpsgd import draw_partner


class PairPolicy:
    """Decides for one live agent of AD-PSGD; an active one asks, and waits for the answer, a passive one answers.

    An own step is: ``Compute``, ``computed``, then until it is answered ``Ask`` and ``answered``, ``rejected`` or
    ``unanswered``, each after the wait that is injected, then ``Take`` and ``stepped``. A request may come any time:
    ``asked``.

    Args:
        spec: The agent.
        injection: What is added to the real network and the real machines.
        steps: The own steps that an agent which was lost has taken, as far as they are known.

    """

    def __init__(self, spec: PairSpec, injection: InjectedDelays, steps: int = 0) -> None:
        self.spec = spec
        self.version = 0
        self.steps = 0
        """Own steps so far."""
        self.steps_before = steps
        self.started_at = 0.0
        """When training began, in wall-clock seconds; the actor sets it."""
        self.ready_at = 0.0
        """The wall-clock second at which the present gradient was ready."""
        self.alive: set[int] = set()
        """Whom the agent may ask."""
        self.met: Counter[int] = Counter()
        """The newest version of each neighbor that the agent has averaged with."""
        self.own_times = OwnTimes(1, array("d"))
        self.links(injection)
        self._extra_seconds = injection.compute.extra_sampler(injection.seed, spec.agent)
        self._due: float | None = None
        """The steady second up to which there is an injected wait; ``None`` before there is a gradient."""
        self._is_ready = False
        self._partner: int | None = None
        """Who is going to be asked."""
        self._asking: int | None = None
        """Who is being asked, unless it has come back meanwhile."""
        self._reads: tuple[Read, ...] | None = None
        """What the step reads, once that is known."""
        self._events: list[Event] = []

    def arrived(self, header: Header, now: Moment) -> None:
        """Take in that a message has come; between pairs there are calls and answers alone."""

    def connected(self, agents: Iterable[int]) -> None:
        """Take in which other agents are there when this one comes in."""
        self.alive = set(agents) if self.spec.is_active else set()

    def lost(self, agent: int) -> None:
        """Take in that a neighbor is gone, or has left: it is asked no more."""
        self.alive.discard(agent)

    def back(self, agent: int, version: int) -> None:
        """Take in that a neighbor comes back."""
        if self.spec.is_active:
            self.alive.add(agent)
        if self._asking == agent:
            self._asking = None

    def known(self, agent: int) -> int:
        """Return the newest known version of a neighbor, 0 where none is known."""
        return self.met[agent]

    def links(self, injection: InjectedDelays) -> None:
        """Take in what is injected on links from now on."""
        agent, neighbors = self.spec.agent, self.spec.neighbors
        self._to = injection.links_from(agent, neighbors)
        self._from = {k: injection.links_from(k, (agent,))[agent] for k in neighbors}

    def events(self) -> list[Event]:
        """Return the events to be told since the last call, in their order."""
        events, self._events = self._events, []
        return events

    def computed(self, start: float, now: Moment) -> None:
        """Take in that the gradient is there whose computing began at a wall-clock second; a straggler waits longer."""
        self._due = now.steady + self._extra_seconds(start - self.started_at)
        self._is_ready, self._partner, self._reads = False, None, None

    def decide(self, now: Moment) -> Compute | Ask | Take | Wait | Over:
        """Return what to do next: a random partner is asked that is alive, another where it does not answer."""
        if self.steps >= self.spec.recipe.num_steps:
            return Over()
        if self._due is None:
            return Compute()
        while now.steady >= self._due:
            if not self._is_ready:
                self._is_ready, self.ready_at = True, now.wall
            if self._reads is not None:
                return Take(self._reads)
            if self._partner is not None and self._partner in self.alive:
                self._asking = self._partner
                return Ask(self._partner)
            self._partner = self._draw()
            if self._partner is None:
                return Take()
            latency = self._to[self._partner].latency_seconds(self.version, now.wall - self.started_at)
            self._due = now.steady + latency
        return Wait(self._due, self._missing())

    def _draw(self) -> int | None:
        """Return who is asked at the present step; ``None`` where no neighbor is alive."""
        alive = tuple(sorted(self.alive))
        return draw_partner(self.spec.recipe.seed, self.spec.agent, self.steps, alive)

    def _missing(self) -> str:
        if self._reads:
            return f"the answer of agent {self._reads[0].neighbor}"
        return "its own gradient" if self._partner is None else f"the way to agent {self._partner}"

    def answered(self, agent: int, version: int, now: Moment) -> None:
        """Take in the version that an agent has answered with; it counts once it has come over the link."""
        self.met[agent] = version
        self._asking, self._reads = None, (Read(agent, version, 0, 0),)
        self._due = now.steady + self._from[agent].latency_seconds(version, now.wall - self.started_at)

    def rejected(self) -> None:
        """Take in that the answer was not what it must be: the step is taken without a partner."""
        self._asking, self._reads = None, ()

    def unanswered(self, agent: int, waited: float | None) -> None:
        """Take in that an agent is gone, or has not answered for ``waited`` seconds: it is asked no more.

        One that has come back while it was asked is asked again.
        """
        if self._asking == agent:
            self.alive.discard(agent)
        self._asking = self._partner = None
        suffix = "" if waited is None else f" for {waited:g} s"
        detail = f"agent {agent} does not answer{suffix}; it is asked no more"
        self._events.append(Event("neighbor_lost", self.spec.agent, self.version, detail))

    def stepped(self, version: int, now: Moment) -> None:
        """Take in that the agent has come to its next version by a step of its own."""
        self.version, self._due = version, None
        self.steps += 1
        self.own_times.sent_at.append(now.wall)

    def asked(self, header: Header, version: int, now: Moment) -> Read:
        """Take in that the agent has averaged with one that asked, and so come to ``version``; return what it read."""
        self.version, self.met[header.sender] = version, header.version
        age = self.own_times.steps_since(header.sent_at)
        self.own_times.sent_at.append(now.wall)
        return Read(header.sender, header.version, 0, age)

    def rejoin(self, offered: Mapping[int, int], known: Iterable[int], at_least: int) -> Rejoin:
        """Return how the agent comes back: as the mean of its neighbors.

        Args:
            offered: The present version of each agent that has answered.
            known: The versions of the agent itself that these know of.
            at_least: The driver's bound of the next version.

        """
        version = max([at_least, *(version + 1 for version in known)])
        return Rejoin(version, tuple(Read(k, offered[k], 0, 0) for k in sorted(offered)))

    def rejoined(self, version: int, reads: Sequence[Read]) -> None:
        """Take in that the agent is back at a version."""
        self.version, self.steps, self._due = version, self.steps_before, None
        whence = " and ".join(f"agent {read.neighbor}" for read in reads)
        how = f"as the mean of {whence}" if reads else "with the first weights: no neighbor is there"
        self._tell("agent_returned", f"agent {self.spec.agent} is back at its own step {self.steps}, {how}")

    def left(self) -> None:
        """Take in that the agent leaves the run, as it was asked to."""
        self._tell("agent_left", f"agent {self.spec.agent} has left at its own step {self.steps}, as it was asked to")

    def _tell(self, kind: EventKind, detail: str) -> None:
        self._events.append(Event(kind, self.spec.agent, self.steps, detail))
