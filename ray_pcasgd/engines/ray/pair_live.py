"""The actor of AD-PSGD in live mode: an agent that is asked answers at once, and a lost one comes back."""

import time
from collections.abc import Mapping
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError

from ray_pcasgd.agents.mailbox import Header
from ray_pcasgd.agents.pair import PairSpec
from ray_pcasgd.engines.live.decisions import Ask, Over, Take
from ray_pcasgd.engines.live.injection import InjectedDelays
from ray_pcasgd.engines.live.pair import PairPolicy
from ray_pcasgd.engines.ray.cuts import Restored
from ray_pcasgd.engines.ray.deciding import await_decision, moment
from ray_pcasgd.engines.ray.lost import GONE
from ray_pcasgd.engines.ray.offers import Offer, offers_of
from ray_pcasgd.engines.ray.pair_actors import PairActor
from ray_pcasgd.engines.ray.shell import Driving
from ray_pcasgd.engines.transport import Contents, RejectedError
from ray_pcasgd.engines.validation import check_header, checked_contents
from ray_pcasgd.records import Row, Version
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
        self.policy = PairPolicy(spec, injection, restored.agent["steps"] if restored else 0)
        self.partners: dict[int, ActorHandle[Any]] = {}
        """The neighbors' actors; whom of them to ask, the policy decides."""
        self.has_begun = False
        self.is_leaving = False
        self.is_over = False
        self.agent.warm_up()

    def set_links(self, injection: InjectedDelays) -> None:
        """Take in what an injection says of links."""
        self.policy.links(injection)

    def begin(self) -> None:
        """Let those who ask know what the time is; called with the lock held."""
        self.policy.started_at = self.started_at
        self.has_begun = True
        self.changed.notify_all()

    def connect(self, neighbors: Mapping[int, ActorHandle[Any]]) -> None:
        """Take in the neighbors' actors."""
        with self.changed:
            self.partners = dict(neighbors)
            self.policy.connected(neighbors)

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
            at, version, before = self.now(), self.agent.version, self.contents()
            self.agent.answer(asking)
            read = self.policy.asked(header, self.agent.version, moment())
            self.submit(Row(self.spec.agent, version, at, at, at, (read,), "passive"), float("nan"))
            self.report(flush=True)
            if self.is_over:
                # The run ends once those who ask have what they asked for.
                ray.get([call.answer for call in self.handed_in])
        return [version, *self.transport.arguments(before)]

    @ray.method(concurrency_group="mail")
    def neighbor_lost(self, neighbor: int) -> None:
        """Ask a neighbor no more that is gone, or has left."""
        with self.changed:
            self.policy.lost(neighbor)
            self.partners.pop(neighbor, None)

    @ray.method(concurrency_group="mail")
    def welcome(self, neighbor: int, handle: ActorHandle[Any]) -> Offer:
        """Take a neighbor in that comes back, and return what it comes back from."""
        with self.changed:
            self.partners[neighbor] = handle
            self.policy.back(neighbor, 0)
            self.report(flush=True)
            return Offer(self.header(), self.contents(), self.policy.known(neighbor))

    @ray.method(concurrency_group="train")
    def come_back(self, neighbors: Mapping[int, ActorHandle[Any]], started_at: float, at_least: int) -> None:
        """Come back into a run and train on; the agent's next version is ``at_least`` this one."""
        self.started_at = started_at
        self.connect(neighbors)
        offers = offers_of(self, neighbors)
        versions = {k: offer.header.version for k, offer in offers.items()}
        version, reads = self.policy.rejoin(versions, [offer.known for offer in offers.values()], at_least)
        found = [self.open(offers[read.neighbor].contents) for read in reads]
        with self.changed:
            self.agent.rejoin(found, version, self.policy.steps_before)
            self.policy.rejoined(version, reads)
            self.unsent += self.policy.events()
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
                self.policy.left()
                self.unsent += self.policy.events()

    def take_steps(self) -> None:
        """Take all own steps as fast as partners answer."""
        while self.take_step():
            pass
        with self.changed:
            self.report(flush=True)
            self.is_over = True

    def take_step(self) -> bool:
        """Compute, ask a partner where there is one, and take the step; return whether there was one left."""
        with self.changed:
            if isinstance(await_decision(self, self.policy), Over):
                return False
        agent, start = self.agent, time.time()
        loss = agent.check_finite(agent.compute())
        computed = moment()
        with self.changed:
            self.policy.computed(start, computed)
        take, partner = self.ask()
        with self.changed:
            began, ready = start - self.started_at, self.policy.ready_at - self.started_at
            row = Row(self.spec.agent, agent.version, began, ready, self.now(), take.reads)
            agent.step(partner)
            self.policy.stepped(agent.version, moment())
            if not self.evaluates(row):
                self.submit(row, loss)
        if self.evaluates(row):  # who asks does not wait for that
            self.submit(row, loss)
        return True

    def ask(self) -> tuple[Take, Version | None]:
        """Ask whom the policy names, until the step can be taken; return it, and what a partner has answered."""
        partner: Version | None = None
        while True:
            with self.changed:
                decision = await_decision(self, self.policy)
                if isinstance(decision, Take):
                    return decision, partner
                assert isinstance(decision, Ask)
                handle = self.partners[decision.agent]
            partner = self.exchange_with(decision.agent, handle)

    def exchange_with(self, k: int, handle: Any) -> Version | None:
        """Average with another agent, and tell the policy what became of it; return the version that it answers."""
        try:
            self.report(flush=True)
            arguments = self.transport.arguments(self.contents())
            # What comes back has as many pieces.
            asked = handle.exchange.options(num_returns=1 + len(arguments)).remote(self.header(), *arguments)
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
                self.policy.rejected()
            return None
        except (*GONE, GetTimeoutError) as error:
            # One that hangs is ended by the driver: should it still average with this agent, it does so alone.
            with self.changed:
                self.policy.unanswered(k, self.driving.wait_seconds if isinstance(error, GetTimeoutError) else None)
            return None
        with self.changed:
            self.policy.answered(k, version, moment())
        return found
