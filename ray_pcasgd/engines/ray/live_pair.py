"""Drives the actor of a live agent of AD-PSGD: one that is asked answers at once, and a lost one comes back."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError

from ray_pcasgd.agents.mailbox import Header
from ray_pcasgd.agents.pair import PairPeer
from ray_pcasgd.agents.participant import NO_LOSS, Received
from ray_pcasgd.base.state import State
from ray_pcasgd.engines.live.decisions import Ask, Over, Take
from ray_pcasgd.engines.live.injection import InjectedDelays
from ray_pcasgd.engines.live.pair import PairPolicy
from ray_pcasgd.engines.messages import Contents, RejectedError
from ray_pcasgd.engines.ray.actor import Actor, Found
from ray_pcasgd.engines.ray.live import LiveDriver, moment
from ray_pcasgd.engines.ray.lost import GONE
from ray_pcasgd.engines.ray.offers import Offer, offers_of
from ray_pcasgd.engines.validation import check_header, check_times, checked_contents
from ray_pcasgd.records import Read, Row


class PairDriver(LiveDriver):
    """An active agent asks, and waits for the answer; a passive one answers at once, whatever it is doing.

    The row of a version is reported before a partner sees it, so that the record of a run is complete even where the
    agent dies next.
    """

    policy: PairPolicy

    def __init__(self, actor: Actor, state: State | None, injection: InjectedDelays) -> None:
        super().__init__(actor)
        assert isinstance(actor.participant, PairPeer)
        self.agent = actor.participant
        self.policy = PairPolicy(self.agent.spec, injection, 0 if state is None else state["steps"])
        self.partners: dict[int, ActorHandle[Any]] = {}
        """The neighbors' actors; whom of them to ask, the policy decides."""
        self.has_begun = False
        self.is_over = False
        self.agent.warm_up()

    def begin(self) -> None:
        """Let those who ask know what the time is."""
        super().begin()
        self.has_begun = True
        self.actor.changed.notify_all()

    def connected(self, neighbors: Mapping[int, ActorHandle[Any]]) -> None:
        """Take in the neighbors' actors."""
        self.partners = dict(neighbors)
        self.policy.connected(neighbors)

    def run(self) -> None:
        """Take all own steps as fast as partners answer."""
        while self.take_step():
            pass
        with self.actor.changed:
            self.actor.report(flush=True)
            self.is_over = True

    def take_step(self) -> bool:
        """Compute, ask a partner where there is one, and take the step; return whether there was one left."""
        actor, policy = self.actor, self.policy
        with actor.changed:
            if isinstance(self.await_decision(policy), Over):
                return False
        start = time.time()
        actor.prepare()
        computed = moment()
        with actor.changed:
            policy.computed(start, computed)
        began = start - actor.started_at
        take, received = self.ask(began)
        with actor.changed:
            row = self.row(began)
            row = row._replace(end=max(row.ready, actor.now()), reads=take.reads)
            outcome = self.agent.take(row, received)
            policy.stepped(actor.version, moment())
            is_evaluated = self.agent.evaluation_point(row) is not None
            if not is_evaluated:
                actor.submit(row, outcome)
        if is_evaluated:  # who asks does not wait for that
            actor.submit(row, outcome)
        return True

    def row(self, began: float) -> Row:
        """Return the row of the present step, begun at that second of the run, as long as it has not ended."""
        ready = max(began, self.policy.ready_at - self.actor.started_at)  # a wall clock may be set back
        return Row(self.actor.spec.agent, self.actor.version, began, ready, ready, ())

    def ask(self, began: float) -> tuple[Take, list[Received]]:
        """Ask whom the policy names, until the step can be taken; return it, and what a partner has answered."""
        received: list[Received] = []
        while True:
            with self.actor.changed:
                decision = self.await_decision(self.policy)
                if isinstance(decision, Take):
                    return decision, received
                assert isinstance(decision, Ask)
                handle = self.partners[decision.agent]
            received = self.exchange_with(decision.agent, handle, self.row(began))

    def exchange_with(self, k: int, handle: Any, row: Row) -> list[Received]:
        """Average with another agent, and tell the policy what became of it; return the version that it answers."""
        actor, seconds = self.actor, self.actor.driving.wait_seconds
        try:
            actor.report(flush=True)
            arguments = actor.transport.arguments(self.contents(row))
            # What comes back has as many pieces.
            method = handle.exchange.options(num_returns=1 + len(arguments))
            asked = method.remote(actor.header(), (row.start, row.ready), *arguments)
            version, *answer = ray.get(asked, timeout=seconds)
            received = self.open(actor.header()._replace(sender=k, version=version), answer[0], answer[1:])
        except RejectedError as error:
            with actor.changed:
                actor.reject(k, actor.version, error)
                self.policy.rejected()
            return []
        except (*GONE, GetTimeoutError) as error:
            # One that hangs is ended by the supervisor: should it still average with this agent, it does so alone.
            with actor.changed:
                self.policy.unanswered(k, seconds if isinstance(error, GetTimeoutError) else None)
            return []
        with actor.changed:
            self.policy.answered(k, version, moment())
        return [received]

    def open(self, header: Header, contents: Any, pieces: Sequence[Any]) -> Received:
        """Return a partner's version, checked and fetched.

        Raises:
            RejectedError: it is not what it must be.

        """
        actor = self.actor
        check_header(actor.expected, header)
        checked = checked_contents(actor.transport, actor.expected, header, contents, pieces)
        if checked is None:
            raise RejectedError("it is empty")
        return actor.open(Found(Read(header.sender, header.version, 0, 0), header, checked, None))

    def contents(self, row: Row | None) -> Contents:
        """Return the agent's present version, as it travels, sent by a row.

        ``None``: for one that comes back, with the twin, if there is one, in place of a direction.
        """
        published = self.agent.message(row)
        return self.actor.contents(published, published.twin if row is None else None)

    def exchange(
        self, header: Header, times: tuple[float, float], contents: Contents, pieces: Sequence[Any]
    ) -> list[Any]:
        """Average with the agent that asks; return the version before that, and its contents in pieces.

        ``times`` are when the step began for which it asks, and when its gradient was ready.
        """
        actor = self.actor
        check_times(times)
        received = self.open(header, contents, pieces)
        with actor.changed:
            actor.changed.wait_for(lambda: self.has_begun, actor.driving.wait_seconds)
            at, version = actor.now(), actor.version
            row = Row(actor.spec.agent, version, *times, at, (), "passive")
            before = self.contents(row)
            outcome = self.agent.take(row, [received])
            read = self.policy.asked(header, actor.version, moment())
            actor.submit(row._replace(reads=(read,)), outcome, flush=True)
            if self.is_over:
                # The run ends once those who ask have what they asked for.
                ray.get([call.answer for call in actor.handed_in])
        return [version, *actor.transport.arguments(before)]

    def lost(self, neighbor: int) -> None:
        """Ask a neighbor no more that is gone, or has left."""
        super().lost(neighbor)
        self.partners.pop(neighbor, None)

    def welcome(self, neighbor: int, handle: ActorHandle[Any], version: int) -> Offer:
        """Take a neighbor in that comes back, and return what it comes back from."""
        self.partners[neighbor] = handle
        self.policy.back(neighbor, version)
        self.actor.report(flush=True)
        return Offer(self.actor.header(), self.contents(None), self.policy.known(neighbor))

    def come_back(self, neighbors: Mapping[int, ActorHandle[Any]], at_least: int) -> bool:
        """Come back into the run, as the mean of the neighbors."""
        actor, policy = self.actor, self.policy
        with actor.changed:
            self.connected(neighbors)
        offers = offers_of(actor, neighbors)
        versions = {k: offer.header.version for k, offer in offers.items()}
        version, reads = policy.rejoin(versions, [offer.known for offer in offers.values()], at_least)
        offered = [(read, offers[read.neighbor]) for read in reads]
        received = [self.open_offer(read, offer) for read, offer in offered]
        with actor.changed:
            now = actor.now()
            self.agent.rejoin(received, version, policy.steps_before, now)
            policy.rejoined(version, reads)
            actor.unsent += policy.events()
            actor.submit(Row(actor.spec.agent, version - 1, now, now, now, reads, "rejoined"), NO_LOSS)
            self.begin()
        return True

    def open_offer(self, read: Read, offer: Offer) -> Received:
        """Return what a neighbor offers, with its twin where it has one."""
        actor, (header, contents, _) = self.actor, offer
        received = actor.open(Found(read, header, contents, None))
        if contents.direction is None:
            return received
        form = actor.expected.form("direction")
        return received._replace(twin=actor.transport.open("direction", contents.direction, *form, actor.device))

    def on_leave(self) -> None:
        """Take in that the agent was stopped, and report that it has left, if it was asked to."""
        with self.actor.changed:
            self.is_over = True
        self.report_leaving()
