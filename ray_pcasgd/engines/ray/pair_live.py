"""The actor of AD-PSGD in live mode: an agent that is asked answers at once, and a lost one comes back."""

import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError

from ray_pcasgd.agents.mailbox import Header
from ray_pcasgd.agents.pair import PairSpec
from ray_pcasgd.engines.live.injection import InjectedDelays
from ray_pcasgd.engines.live.reading import OwnTimes
from ray_pcasgd.engines.ray.cuts import Restored
from ray_pcasgd.engines.ray.lost import GONE
from ray_pcasgd.engines.ray.offers import Offer, offers_of
from ray_pcasgd.engines.ray.pair_actors import PairActor
from ray_pcasgd.engines.ray.shell import Driving, StoppedError
from ray_pcasgd.engines.transport import Contents, RejectedError
from ray_pcasgd.engines.validation import check_header, checked_contents
from ray_pcasgd.records import Event, Read, Row, Version
from ray_pcasgd.schedule.plan_pairs import draw_partner
from ray_pcasgd.tasks.task import TaskData


class LivePairActor(PairActor):
    """An active agent asks, and waits for the answer; a passive one answers at once, whatever it is doing.

    The row of a version is reported before a partner sees it, so that the record of a run is complete even where the
    agent dies next.
    """

    def __init__(
        self,
        spec: PairSpec,
        data: TaskData,
        driving: Driving,
        scheduler: ActorHandle[Any],
        injection: InjectedDelays,
        restored: Restored | None = None,
        first_call: int = 0,
    ) -> None:
        super().__init__(spec, data, driving, scheduler, first_call)
        self.extra_seconds = injection.compute.extra_sampler(injection.seed, spec.agent)
        self.set_links(injection)
        self.partners: dict[int, ActorHandle[Any]] = {}
        self.met: Counter[int] = Counter()
        """The newest version of each neighbor that the agent has averaged with."""
        self.own_times = OwnTimes(1, [])
        self.steps_before: int = restored.agent["steps"] if restored else 0
        """The own steps of an agent that was lost, as far as they are known."""
        self.has_begun = False
        self.is_leaving = False
        self.is_over = False
        self.agent.warm_up()

    def set_links(self, injection: InjectedDelays) -> None:
        """Take in what an injection says of links."""
        agent = self.spec.agent
        self.links = {(agent, k): times for k, times in injection.links_from(agent, self.spec.neighbors).items()}
        self.links |= {(k, agent): injection.links_from(k, (agent,))[agent] for k in self.spec.neighbors}

    def begin(self) -> None:
        """Let those who ask know what the time is; called with the lock held."""
        self.has_begun = True
        self.changed.notify_all()

    def connect(self, neighbors: Mapping[int, ActorHandle[Any]]) -> None:
        """Take in the neighbors' actors."""
        self.partners = dict(neighbors) if self.spec.is_active else {}

    @ray.method(concurrency_group="mail")
    def exchange(self, header: Header, contents: Contents, *pieces: Any) -> list[Any]:
        """Average with the agent that asks; return the version before that, and its contents in pieces."""
        check_header(self.expected, header)
        asked = checked_contents(self.transport, self.expected, header, contents, pieces)
        if asked is None:
            raise RejectedError("it is empty; an agent that has left the run does not ask")
        asking = self.open(asked)
        with self.changed:
            self.changed.wait_for(lambda: self.has_begun, self.driving.wait_seconds)
            moment, version, before = self.now(), self.agent.version, self.contents()
            self.agent.answer(asking)
            self.met[header.sender] = header.version
            age = self.own_times.steps_since(header.sent_at)
            self.own_times.sent_at.append(time.time())
            read = Read(header.sender, header.version, 0, age)
            self.submit(Row(self.spec.agent, version, moment, moment, moment, (read,), "passive"), float("nan"))
            self.report(flush=True)
            if self.is_over:
                # The run ends once those who ask have what they asked for.
                ray.get([call.answer for call in self.handed_in])
        return [version, *self.transport.arguments(before)]

    @ray.method(concurrency_group="mail")
    def neighbor_lost(self, neighbor: int) -> None:
        """Ask a neighbor no more that is gone, or has left."""
        with self.changed:
            self.partners.pop(neighbor, None)

    @ray.method(concurrency_group="mail")
    def welcome(self, neighbor: int, handle: ActorHandle[Any]) -> Offer:
        """Take a neighbor in that comes back, and tell it what it comes back from."""
        with self.changed:
            if self.spec.is_active:
                self.partners[neighbor] = handle
            self.report(flush=True)
            return Offer(self.header(), self.contents(), self.met[neighbor])

    @ray.method(concurrency_group="train")
    def come_back(self, neighbors: Mapping[int, ActorHandle[Any]], started_at: float, at_least: int) -> None:
        """Come back into a run and train on; the agent's next version is ``at_least`` this one."""
        self.started_at = started_at
        self.connect(neighbors)
        offers = offers_of(self, neighbors)
        version = max([at_least, *(offer.known + 1 for offer in offers.values())])
        reads = tuple(Read(k, offers[k].header.version, 0, 0) for k in sorted(offers))
        found = [self.open(offers[read.neighbor].contents) for read in reads]
        with self.changed:
            self.agent.rejoin(found, version, self.steps_before)
            whence = " and ".join(f"agent {read.neighbor}" for read in reads)
            detail = f"agent {self.spec.agent} is back at its own step {self.agent.steps}, " + (
                f"as the mean of {whence}" if found else "with the first weights: no neighbor is there"
            )
            self.unsent.append(Event("agent_returned", self.spec.agent, self.agent.steps, detail))
            now = self.now()
            self.submit(Row(self.spec.agent, version - 1, now, now, now, reads, "rejoined"), float("nan"))
            self.begin()
        self.train_on()

    @ray.method(concurrency_group="mail")
    def leave(self) -> None:
        """Leave the run on purpose, before the next own step; requests that come meanwhile are answered."""
        with self.changed:
            self.is_leaving = True
            self.stopped = True
            self.changed.notify_all()

    def on_leave(self) -> None:
        """Say that the agent has left, if it was asked to."""
        with self.changed:
            self.is_over = True
            if self.is_leaving:
                steps = self.agent.steps
                detail = f"agent {self.spec.agent} has left at its own step {steps}, as it was asked to"
                self.unsent.append(Event("agent_left", self.spec.agent, steps, detail))

    def take_steps(self) -> None:
        """Take all own steps as fast as partners answer."""
        while self.agent.steps < self.spec.recipe.num_steps:
            if self.stopped:
                raise StoppedError
            self.take_step()
        with self.changed:
            self.report(flush=True)
            self.is_over = True

    def take_step(self) -> None:
        """Compute, ask a partner where there is one, and take the step."""
        agent, start = self.agent, self.now()
        loss = agent.check_finite(agent.compute())
        self.pause(self.extra_seconds(start))
        ready = self.now()
        found = self.ask()
        with self.changed:
            partner, reads = (None, ()) if found is None else (found[1], (found[0],))
            row = Row(self.spec.agent, agent.version, start, ready, self.now(), reads)
            agent.step(partner)
            self.own_times.sent_at.append(time.time())
            if not self.evaluates(row):
                self.submit(row, loss)
        if self.evaluates(row):  # who asks does not wait for that
            self.submit(row, loss)

    def ask(self) -> tuple[Read, Version] | None:
        """Ask a random partner that is alive, and return its version; ``None`` where no partner is alive."""
        agent = self.spec.agent
        while (k := draw_partner(self.spec.recipe.seed, agent, self.agent.steps, self.those_alive())) is not None:
            self.pause(self.links[agent, k].latency_seconds(self.agent.version, self.now()))
            partner: Any = self.partners.get(k)
            if partner is None:
                continue  # it has left meanwhile
            try:
                self.report(flush=True)
                arguments = self.transport.arguments(self.contents())
                # What comes back has as many pieces.
                asked = partner.exchange.options(num_returns=1 + len(arguments)).remote(self.header(), *arguments)
                version, *answer = ray.get(asked, timeout=self.driving.wait_seconds)
                header = self.header()._replace(sender=k, version=version)
                check_header(self.expected, header)
                contents = checked_contents(self.transport, self.expected, header, answer[0], answer[1:])
                if contents is None:
                    raise RejectedError("it is empty")
                found = self.open(contents)
            except RejectedError as error:
                with self.changed:
                    self.reject(k, self.agent.version, error)
                return None
            except (*GONE, GetTimeoutError) as error:
                # One that hangs is ended by the driver: should it still average with this agent, it does so alone.
                self.give_up(k, partner)
                waited = f" for {self.driving.wait_seconds:g} s" if isinstance(error, GetTimeoutError) else ""
                detail = f"agent {k} does not answer{waited}; it is asked no more"
                self.unsent.append(Event("neighbor_lost", agent, self.agent.version, detail))
                continue
            self.met[k] = version
            self.pause(self.links[k, agent].latency_seconds(version, self.now()))
            return Read(k, version, 0, 0), found
        return None

    def those_alive(self) -> tuple[int, ...]:
        """Return whom the agent may ask."""
        with self.changed:
            return tuple(sorted(self.partners))

    def give_up(self, neighbor: int, partner: ActorHandle[Any]) -> None:
        """Ask a neighbor no more, unless it has come back meanwhile."""
        with self.changed:
            if self.partners.get(neighbor) is partner:
                del self.partners[neighbor]

    def pause(self, seconds: float) -> None:
        """Wait for the injected ``seconds``, unless the run is stopped."""
        deadline = time.monotonic() + seconds
        with self.changed:
            while seconds > 0 and (left := deadline - time.monotonic()) > 0:
                if self.stopped:
                    raise StoppedError
                self.changed.wait(left)
