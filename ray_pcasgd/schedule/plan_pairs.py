"""Plans who averages with whom, when: the timing of AD-PSGD."""

from collections.abc import Iterator
from dataclasses import dataclass

from ray_pcasgd.records import Read, Row
from ray_pcasgd.rules.adpsgd import draw_partner
from ray_pcasgd.schedule.simulation import Calendar, Channel, Computing, Timing, row_times
from ray_pcasgd.schedule.transfers import HostPipes


@dataclass(frozen=True, kw_only=True)
class PairPlanner(Timing):
    """A run's timing; iterating over it yields the same rows every time, lazily, in an order that can be executed.

    Once an active agent's gradient is ready, it asks a random partner; the request takes the link's latency, and where
    it arrives, the passive agent averages at once: an instant, and a row of the kind ``passive``. The answer takes the
    link's latency back; then the active agent's row ends. Both rows read the other's version before the averaging.

    **Choice**: at one instant requests come before answers, these before gradients, and lower numbers first.
    """

    partners: tuple[tuple[int, ...], ...]
    """The agents that each agent asks, rising; passive agents ask none."""
    num_steps: int
    """Own steps that each agent takes; passive agents answer until all have."""
    message_bytes: int = 0
    """Bytes of a request, and of an answer; only bandwidths ask for it."""

    def __iter__(self) -> Iterator[Row]:
        return _Simulation(self).rows()


class _Agent:
    def __init__(self, plan: PairPlanner, number: int) -> None:
        self.number = number
        self.partners = plan.partners[number]
        self.gradients = Computing(plan, number)
        self.version = 0
        self.steps = 0
        self.start = 0
        self.ready = 0
        self.partner_version = 0
        """The version of its partner that was there when this was asked."""
        self.answered = Read(0, 0, 0, 0)
        """What it reads of the partner that has answered it."""


_REQUEST, _ANSWER, _READY = range(3)


class _Simulation:
    def __init__(self, plan: PairPlanner) -> None:
        self.plan = plan
        self.agents = [_Agent(plan, number) for number in range(len(plan.partners))]
        pipes = HostPipes(plan.hosts)
        self.links = {
            (k, i): Channel(plan, k, i, plan.message_bytes, pipes)
            for a, partners in enumerate(plan.partners)
            for b in partners
            for k, i in ((a, b), (b, a))
        }
        self.calendar = Calendar[tuple[int, int, int]]()
        """What happens, to which agent, with which partner."""

    def rows(self) -> Iterator[Row]:
        for agent in self.agents:
            self.begin(agent, 0)
        while (event := self.calendar.pop()) is not None:
            now, (what, number, other) = event
            agent = self.agents[number]
            if what == _REQUEST:
                yield self.answer(agent, self.agents[other], now)
                continue
            if what == _READY:
                partner = draw_partner(self.plan.seed, number, agent.steps, agent.partners)
                if partner is not None:
                    self.ask(agent, self.agents[partner], now)
                    continue
                reads: tuple[Read, ...] = ()
            else:
                read = agent.answered
                reads = (read._replace(staleness=self.agents[other].version - read.version - 1),)
            yield Row(number, agent.version, *row_times(agent.start, agent.ready, now), reads)
            agent.version += 1
            agent.steps += 1
            self.begin(agent, now)

    def begin(self, agent: _Agent, now: int) -> None:
        """Start the agent's next step, if there is one."""
        if agent.steps == self.plan.num_steps:
            return
        agent.start = now
        agent.ready = agent.gradients.ready_at(now)
        self.enter(agent.ready, _READY, agent.number, 0)

    def ask(self, agent: _Agent, partner: _Agent, now: int) -> None:
        agent.partner_version = partner.version
        self.send(agent, partner, now, (_REQUEST, agent.number, partner.number))

    def answer(self, agent: _Agent, partner: _Agent, now: int) -> Row:
        """Return the partner's row, which ends as it starts."""
        read = Read(agent.number, agent.version, 0, partner.version - agent.partner_version)
        row = Row(partner.number, partner.version, *row_times(now, now, now), (read,), "passive")
        agent.answered = Read(partner.number, partner.version, 0, 0)
        partner.version += 1
        self.send(partner, agent, now, (_ANSWER, agent.number, partner.number))
        return row

    def send(self, sender: _Agent, receiver: _Agent, now: int, event: tuple[int, int, int]) -> None:
        """Enter what happens when a message arrives that is sent now."""
        channel = self.links[sender.number, receiver.number]
        self.calendar.send(channel, sender.version, now, event, *event)

    def enter(self, moment: int, what: int, agent: int, partner: int) -> None:
        self.calendar.enter(moment, (what, agent, partner), what, agent, partner)
