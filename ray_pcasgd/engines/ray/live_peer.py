"""Drives the actor of a live peer, whose neighbors may be lost and come back, as it may itself."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from ray.actor import ActorHandle
from torch import Tensor

from ray_pcasgd.agents.mailbox import Header, Message
from ray_pcasgd.agents.participant import NO_LOSS, Outcome, Published, Received
from ray_pcasgd.agents.peer import Peer
from ray_pcasgd.base.state import State
from ray_pcasgd.engines.live.asking import Asking
from ray_pcasgd.engines.live.decisions import Over, Publish, Rejoin, Take
from ray_pcasgd.engines.live.injection import InjectedDelays
from ray_pcasgd.engines.live.peer import PeerPolicy
from ray_pcasgd.engines.live.sending import InStep, SentCount
from ray_pcasgd.engines.live.watching import Limits
from ray_pcasgd.engines.messages import Contents, RejectedError
from ray_pcasgd.engines.ray.actor import Actor, Found
from ray_pcasgd.engines.ray.live import LiveDriver, moment
from ray_pcasgd.engines.ray.lost import LOST
from ray_pcasgd.engines.ray.mail import StoppedError
from ray_pcasgd.engines.ray.offers import Offer, offers_of
from ray_pcasgd.engines.ray.transfers import Transfers
from ray_pcasgd.records import Event, Row, Snapshot


class PeerDriver(LiveDriver):
    """Takes a peer's steps as fast as its barrier allows, with whatever has come."""

    policy: PeerPolicy

    def __init__(self, actor: Actor, state: State | None, injection: InjectedDelays) -> None:
        super().__init__(actor)
        assert isinstance(actor.participant, Peer)
        self.agent = actor.participant
        if state is not None:
            self.agent.place(state["version"], Snapshot(state["weights"], state["buffers"], state["local"]))
        driving = actor.driving
        self.policy = PeerPolicy(
            self.agent.spec,
            actor.mailbox,
            Limits(driving.version_seconds, driving.silent_steps, driving.max_lag),
            injection,
            self.is_here,
            actor.version,
            is_restored=state is not None,
        )
        self.published: tuple[Header, Callable[[], Contents]] | None = None
        """The newest version, as it travels whole, for those who come back."""
        self.in_step = InStep()
        """Where messages are differences: to whom."""
        self.strangers: set[int] = set()
        """Neighbors that have come back, and from which a whole copy is still to come."""
        self.asking = Asking()
        """Where messages are differences: whose cannot be taken in any more."""
        self.given = 0
        """Whole copies that were sent again to the agent, since its last report."""
        self.held: tuple[int, ...] = ()
        """Where rules push shares: who was not sent the agent's present version."""
        self.counts = SentCount()
        self.transfers = Transfers(actor.transport, actor.mailbox, actor.changed, self.policy.take_newest)
        self.agent.warm_up()

    def begin(self) -> None:
        """Take in that the run begins; who is not there has no share of the version that all start from."""
        super().begin()
        self.in_step.begin(k for k in self.agent.receivers() if k in self.actor.outbox)
        if self.agent.pushes:
            self.held = tuple(k for k in self.agent.receivers() if k not in self.actor.outbox)

    def run(self) -> None:
        """Take all steps as fast as the barrier allows."""
        if self.policy.is_restored and self.policy.back_at < 0:
            self.rejoin(self.policy.rejoin({}, (), 0), {})
        while self.take_step():
            if self.is_time_to_keep:
                self.keep_state({"version": self.agent.version, **self.agent.snapshot()._asdict()})

    def take_step(self) -> bool:
        """Take one step; return whether there was one left, and the agent is still in the run."""
        actor, policy = self.actor, self.policy
        with actor.changed:
            decision = self.await_decision(policy)
            if isinstance(decision, Over):
                return False
            found = self.find(decision) if isinstance(decision, Take) else []
        if isinstance(decision, Take):
            return self.combine_and_step(found, self.waited_seconds)
        start = time.time()
        if not actor.prepare():
            return False
        computed = moment()
        with actor.changed:
            policy.computed(start, computed)
            found = self.find_reads()
        read_at = time.time()
        received = self.open_all(found)
        began, ready, ended = (wall - actor.started_at for wall in (start, policy.ready_at, read_at))
        reads = tuple(one.read for one in received)
        row = Row(actor.spec.agent, actor.version, began, ready, ended, reads, held=self.held)
        outcome = actor.take(row, received)
        if outcome is None:
            return False
        self.end_step(row, outcome)
        return True

    def combine_and_step(self, found: Sequence[Found], waited_seconds: float) -> bool:
        """Take a step that reads before it computes; return whether the agent is still in the run."""
        actor, policy = self.actor, self.policy
        start = time.time()
        received = self.open_all(found)
        began, reads = start - actor.started_at, tuple(one.read for one in received)
        outcome = actor.take(Row(actor.spec.agent, actor.version, began, began, began, reads), received)
        if outcome is None:
            return False
        with actor.changed:
            policy.computed(start, moment())
            decision = self.await_decision(policy)
            if actor.stopped:
                raise StoppedError
            assert isinstance(decision, Publish)
        ended = actor.now()
        self.end_step(Row(actor.spec.agent, actor.version - 1, began, ended, ended, reads), outcome, waited_seconds)
        return True

    def end_step(self, row: Row, outcome: Outcome, waited_seconds: float | None = None) -> None:
        """Report a row that was taken, and publish the version that it came to."""
        actor, policy = self.actor, self.policy
        with actor.changed:
            policy.stepped(actor.version, moment())
        is_evaluated = self.agent.evaluation_point(row) is not None
        if is_evaluated:
            self.publish()  # an evaluation is not waited for
        receivers = self.counts.counted(len(self.agent.receivers()))
        with actor.changed:
            whole, given, self.given = self.in_step.counted(), self.given, 0
        actor.submit(row, outcome, receivers, policy.reports_at_once, waited_seconds, whole, given)
        if not is_evaluated:
            self.publish()

    def find_reads(self) -> list[Found]:
        """Return what the step reads, once its policy lets it end; called with the lock held."""
        take = self.await_decision(self.policy)
        assert isinstance(take, Take)
        return self.find(take)

    def find(self, take: Take) -> list[Found]:
        """Return where what a step reads lies; called with the lock held."""
        if self.actor.stopped:
            raise StoppedError
        places = [(read.neighbor, self.actor.find(read)) for read in take.reads]
        self.policy.taken(take.reads)
        for k, place in places:
            if place is None:
                self.ask(k)
        return [place for _, place in places if place is not None]

    def ask(self, sender: int) -> None:
        """Ask for a whole copy where differences of a sender cannot be taken in; called with the lock held."""
        if self.agent.copies is not None and self.policy.can_reach(sender) and self.asking.refuse(sender):
            self.actor.outbox.ask(sender, self.actor.spec.agent)

    def send_whole(self, reader: int) -> None:
        """Send a receiver a whole copy next, or at once where no version is to come; called with the lock held."""
        self.in_step.lose((reader,))
        if self.published is not None and self.published[0].final and self.policy.can_reach(reader):
            header, contents = self.published
            sent = self.actor.outbox.send({reader: self.policy.addressed(header, reader)}, contents(), may_skip=False)
            self.counts.sent(0, sent.late)
            self.tell_lost(sent.gone)

    def is_here(self, neighbor: int, version: int, with_direction: bool) -> bool:
        """Return whether a version can be read without waiting for the network; if not, its transfer has begun."""
        mailbox, transport = self.actor.mailbox, self.actor.transport
        message = mailbox.get(neighbor, version)
        if message is None or message.contents is None:
            return False
        parts = list(message.contents[:2])
        direction = self.actor.direction_at(neighbor, version) if with_direction else None
        if direction is not None:
            parts.append(direction)
        if self.policy.has_barrier:
            is_here = self.has_come(parts, (neighbor, version))
        elif self.policy.replaces:
            is_here = self.transfers.is_here(neighbor, version, parts)
        else:
            is_here = all(map(transport.is_here, parts))
        return is_here and (direction is not None or not with_direction)

    def open_all(self, found: Sequence[Found]) -> list[Received]:
        """Return the versions found, fetched, except those that were rejected, or lost with their sender meanwhile."""
        received: list[Received] = []
        for item in found:
            try:
                received += self.actor.open_all([item])
            except LOST as error:
                k, version = item.read[:2]
                detail = f"version {version} of agent {k} was lost ({type(error).__name__})"
                self.actor.unsent.append(Event("message_lost", self.actor.spec.agent, self.actor.version, detail))
        taken = {one.read.neighbor for one in received}
        with self.actor.changed:
            for item in found:
                if item.read.neighbor in taken:
                    self.asking.follow(item.read.neighbor)
                else:
                    self.ask(item.read.neighbor)
        return received

    def publish(self) -> None:
        """Send the agent's new version to its neighbors."""
        published = self.agent.message(None) if self.actor.spec.receivers else None
        receivers = self.agent.receivers()
        self.counts.sent(len(receivers), self.send(published, receivers))

    def on_isolated(self, published: Published | None) -> None:
        """Tell all neighbors that the agent has left the run, not only those whom this version would be sent to."""
        self.send(published, self.actor.spec.receivers, isolated=True)

    def send(self, published: Published | None, receivers: Sequence[int], isolated: bool = False) -> int:
        """Send one message to every receiver that can be reached; those who come back get it too.

        Returns:
            How many messages were sent, with those of earlier versions that had to wait until now.

        """
        actor, policy = self.actor, self.policy
        header = self.header()._replace(isolated=isolated)
        to: frozenset[int] = frozenset()
        late = 0
        for k in receivers:
            if not policy.can_reach(k):
                actor.outbox.keep_back(k)
        for headers, contents in self.messages(header, published, receivers):
            in_pairs = self.agent.publishes_directions and actor.spec.family.direction_lag > 0
            # A share that was not sent is the agent's own again, and must not be sent after all.
            sent = actor.outbox.send(headers, contents, policy.may_skip(header), in_pairs, may_wait=not policy.pushes)
            to |= sent.to
            late += sent.late
            self.tell_lost(sent.gone)
        self.held = tuple(k for k in receivers if k not in to) if policy.pushes else ()
        with actor.changed:
            self.in_step.sent(receivers, to)
        return len(to) + late

    def tell_lost(self, gone: Sequence[int]) -> None:
        """Take in that neighbors were found to be gone, and report it."""
        actor = self.actor
        for k in gone:
            self.lose(k)
            detail = f"agent {k} does not answer"
            actor.unsent.append(Event("neighbor_lost", actor.spec.agent, actor.version, detail))

    def messages(
        self, header: Header, published: Published | None, receivers: Sequence[int]
    ) -> Iterator[tuple[Mapping[int, Header], Contents | None]]:
        """Yield what is sent, and to whom: to all the same, but for differences, which some cannot do with."""
        actor, policy = self.actor, self.policy
        if self.agent.copies is None:
            direction = None if published is None else actor.direction
            contents = None if published is None else actor.contents(published, direction)
            if contents is not None and not header.isolated:
                self.published = (header, self.offered(contents, direction))
            yield {k: policy.addressed(header, k) for k in receivers if policy.can_reach(k)}, contents
            return
        with actor.changed:
            headers = {k: policy.addressed(header, k) for k in receivers if policy.can_reach(k)}
            if published is not None:
                self.published = (header, partial(actor.contents, published))
                behind = self.in_step.send(headers, header.version, self.agent.difference is not None)
        if published is None:
            yield headers, None
            return
        # A whole copy is made where there is somebody to take it.
        if whole := {k: own for k, own in headers.items() if k in behind and k in actor.outbox}:
            yield whole, actor.contents(published)
        if in_step := {k: own for k, own in headers.items() if k not in behind}:
            yield actor.as_difference(in_step, published)

    def offered(self, contents: Contents, direction: Tensor | None) -> Callable[[], Contents]:
        """Return what makes the present version's contents for who comes back: with all numbers, where others get some.

        Args:
            contents: What all others are sent.
            direction: The direction in them, as it travels.

        """
        if not self.agent.spec.recipe.has_fragments:
            return lambda: contents
        return partial(self.actor.contents, self.agent.whole_message, direction)

    def header(self) -> Header:
        """Return the header of the agent's present version."""
        final = not self.agent.is_running
        seconds = self.policy.step_seconds
        return self.actor.header()._replace(step_seconds=seconds, final=final, mass=self.agent.mass)

    def on_message(self, header: Header) -> None:
        """Hand a message to the policy."""
        self.policy.arrived(header, moment())

    def lose(self, neighbor: int) -> None:
        """Take in that a neighbor is gone, without the lock."""
        with self.actor.changed:
            self.policy.lost(neighbor)

    def finished(self, neighbor: int) -> None:
        """Take in that a receiver has taken all its steps."""
        self.policy.finished(neighbor)

    def welcome(self, neighbor: int, handle: ActorHandle[Any], version: int) -> Offer:
        """Take a neighbor in that comes back, and return what it comes back from."""
        known = self.policy.known(neighbor)
        self.policy.back(neighbor, version)
        self.transfers.forget(neighbor)
        if neighbor in self.actor.spec.receivers:
            self.actor.outbox.welcome(neighbor, handle)
        if self.published is None:
            whole = self.agent.whole_message if self.agent.spec.recipe.has_fragments else self.agent.message(None)
            self.published = (self.header(), partial(self.actor.contents, whole))
        self.in_step.lose((neighbor,))
        if self.agent.copies is not None:
            self.strangers.add(neighbor)
            self.asking.follow(neighbor)
        header, contents = self.published
        return Offer(header, contents(), known)

    def check_turn(self, header: Header) -> None:
        """Raise ``RejectedError`` where a difference comes from before its sender was lost."""
        k = header.sender
        if header.is_difference and k in self.strangers:
            raise RejectedError("its sender was lost since then; allowed is a whole copy")
        self.strangers.discard(k)
        if not header.is_difference and self.asking.is_asked(k):
            # Of a version that has come already, and which its sender's report counted then.
            self.given += header.version <= self.policy.known(k)

    def come_back(self, neighbors: Mapping[int, ActorHandle[Any]], at_least: int) -> bool:
        """Come back into the run, from the neighbors' versions or the agent's own state."""
        actor, policy = self.actor, self.policy
        policy.started_at = actor.started_at
        actor.outbox = actor.transport.outbox({k: a for k, a in neighbors.items() if k in actor.spec.receivers})
        with actor.changed:
            policy.connected(neighbors)
        offers = offers_of(actor, neighbors, self.lose)
        versions = {k: offer.header.version for k, offer in offers.items()}
        rejoin = policy.rejoin(versions, [offer.known for offer in offers.values()], at_least)
        if not policy.pushes:
            # A share is read once, and what neighbors offer is not a share: they have kept theirs.
            with actor.changed:
                for read in rejoin.reads:
                    offer = offers[read.neighbor]
                    actor.mailbox.start(Message(offer.header, offer.contents))
        self.rejoin(rejoin, offers)
        return True

    def rejoin(self, rejoin: Rejoin, offers: Mapping[int, Offer]) -> None:
        """Be in the run again at a version, as the mean of what is read, or as the agent is without any."""
        actor, agent = self.actor, self.agent
        offered = [(read, offers[read.neighbor]) for read in rejoin.reads]
        received = self.open_all(
            [Found(read, offer.header._replace(mass=1.0), offer.contents, None) for read, offer in offered]
        )
        if agent.spec.recipe.has_fragments:
            received = [one for one in received if self.is_whole(one)]
        reads, now = tuple(one.read for one in received), actor.now()
        row = Row(actor.spec.agent, rejoin.version - 1, now, now, now, reads, "rejoined")
        agent.take(row, received)
        with actor.changed:
            self.policy.rejoined(rejoin.version, reads)
            actor.unsent += self.policy.events()
        actor.submit(row, NO_LOSS, self.counts.counted(len(agent.receivers())), flush=True)
        self.publish()

    def is_whole(self, one: Received) -> bool:
        """Return whether what a neighbor has offered is all of its version, as it must be; reject it else."""
        if one.whole is not None:
            return True
        with self.actor.changed:
            error = RejectedError("it holds a part; allowed for one that comes back is a whole version")
            self.actor.reject(one.read.neighbor, one.read.version, error)
        return False

    def on_leave(self) -> None:
        """Tell the neighbors that the agent has left, if it was asked to."""
        if self.is_leaving:
            self.send(None, self.actor.spec.receivers, isolated=True)
        self.report_leaving()
