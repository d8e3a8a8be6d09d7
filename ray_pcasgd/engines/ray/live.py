"""The actor of a live peer: its policy decides what it reads and waits for; it waits, fetches, sends and reports."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.actor import ActorHandle

from ray_pcasgd.agents.mailbox import Header, Message
from ray_pcasgd.agents.participant import Received
from ray_pcasgd.agents.peer import AgentSpec
from ray_pcasgd.engines.live.decisions import Over, Take
from ray_pcasgd.engines.live.injection import InjectedDelays
from ray_pcasgd.engines.live.peer import PeerPolicy
from ray_pcasgd.engines.live.watching import Limits
from ray_pcasgd.engines.ray.agent_actor import AgentActor, Found
from ray_pcasgd.engines.ray.cuts import AgentState, Restored, portable_state
from ray_pcasgd.engines.ray.deciding import await_decision, moment
from ray_pcasgd.engines.ray.lost import LOST
from ray_pcasgd.engines.ray.offers import Offer, offers_of
from ray_pcasgd.engines.ray.shell import Driving, StoppedError
from ray_pcasgd.engines.transport import Contents
from ray_pcasgd.records import Event, Read, Row, Snapshot
from ray_pcasgd.tasks.task import TaskData


class LiveAgentActor(AgentActor):
    """A peer that reads whatever has come, whose neighbors may be lost and come back, as it may itself."""

    may_skip = True

    def __init__(
        self,
        spec: AgentSpec,
        data: TaskData,
        driving: Driving,
        scheduler: ActorHandle[Any],
        injection: InjectedDelays,
        restored: Restored | None = None,
        first_call: int = 0,
    ) -> None:
        super().__init__(spec, data, driving, scheduler, restored, first_call)
        limits = Limits(driving.wait_seconds, driving.silent_steps, driving.max_lag)
        self.policy = PeerPolicy(
            spec, self.mailbox, limits, injection, self.is_here, self.version, is_restored=self.is_restored
        )
        self.published: tuple[Header, Contents] | None = None
        """The newest version, as it travels."""
        self.is_back = False
        """Whether it has come back into the run since its actor was made."""
        self.is_leaving = False
        self.kept_at = time.monotonic()
        self.agent.warm_up()

    def restore(self, restored: Restored) -> None:
        """Be where the agent was when its state was kept."""
        super().restore(restored)
        state = restored.agent
        self.agent.place(state["version"], Snapshot(state["weights"], state["buffers"], state["local"]))

    def begin(self) -> None:
        """Put the version that all start from into the mailbox; who is not there has no share of it."""
        self.policy.started_at = self.started_at
        super().begin()
        if self.agent.pushes:
            self.held = tuple(k for k in self.agent.receivers() if k not in self.outbox)

    def take_steps(self) -> None:
        """Take all steps as fast as the barrier allows."""
        if self.is_restored and not self.is_back:
            self.rejoin([], self.policy.rejoin({}, (), 0).version)
        while not self.is_isolated and self.take_step():
            self.keep_part()

    def keep_part(self) -> None:
        """Give the driver the agent's part of the run's state, if it is time."""
        every, now = self.driving.state_seconds, time.monotonic()
        if every is None or now - self.kept_at < every:
            return
        state = portable_state({"version": self.version, **self.agent.snapshot()._asdict()})
        self.unsent.append(AgentState(self.spec.agent, self.version, 0, state, is_isolated=self.is_isolated))
        self.kept_at = now

    def take_step(self) -> bool:
        """Take one step; return whether there was one left, and the agent is still in the run."""
        with self.changed:
            if isinstance(await_decision(self, self.policy), Over):
                return False
        start = time.time()
        loss = self.compute()
        if loss is None:
            return False
        computed = moment()
        with self.changed:
            self.policy.computed(start, computed)
            found = self.find_reads()
        read_at = time.time()
        received = self.open_all(found)
        held = self.held
        measures = self.apply(received, len(held))
        if measures is None:
            return False
        with self.changed:
            self.policy.stepped(self.version, moment())
        self.step_seconds = self.policy.step_seconds
        began, ready, ended = (wall - self.started_at for wall in (start, self.policy.ready_at, read_at))
        row = Row(self.spec.agent, self.version - 1, began, ready, ended, tuple(r.read for r in received), held=held)
        if self.spec.recipe.evaluates_at(self.agent.progress):
            self.publish()  # an evaluation is not waited for
            self.finish_step(row, loss, measures)
        else:
            self.finish_step(row, loss, measures)
            self.publish()
        return True

    @property
    def reports_at_once(self) -> bool:
        """Whether each step is handed in by itself."""
        return self.policy.reports_at_once

    def find_reads(self) -> list[Found]:
        """Return what the step reads, once its policy lets it end; called with the lock held."""
        take = await_decision(self, self.policy)
        assert isinstance(take, Take)
        if self.stopped:
            raise StoppedError
        found = [found for read in take.reads if (found := self.find(read)) is not None]
        self.policy.taken(take.reads)
        return found

    def is_here(self, neighbor: int, version: int, with_direction: bool) -> bool:
        """Return whether a version can be read without waiting for the network; if not, its transfer has begun."""
        message = self.mailbox.get(neighbor, version)
        if message is None or message.contents is None:
            return False
        if not (self.transport.is_here(message.contents.weights) and self.transport.is_here(message.contents.buffers)):
            return False
        direction = self.direction_of(neighbor, version) if with_direction else None
        return not with_direction or (direction is not None and self.transport.is_here(direction))

    def open_all(self, found: Sequence[Found]) -> list[Received]:
        """Return the versions found, fetched, except those that were rejected, or lost with their sender meanwhile."""
        received: list[Received] = []
        for item in found:
            try:
                received += super().open_all([item])
            except LOST as error:
                k, version = item.read[:2]
                detail = f"version {version} of agent {k} was lost ({type(error).__name__})"
                self.unsent.append(Event("message_lost", self.spec.agent, self.version, detail))
        return received

    def on_message(self, header: Header) -> None:
        """Hand a message to the policy."""
        self.policy.arrived(header, moment())

    def set_links(self, injection: InjectedDelays) -> None:
        """Take in what an injection says of links."""
        self.policy.links(injection)

    def can_reach(self, neighbor: int) -> bool:
        """Return whether messages get through to a neighbor, and a share that is pushed to it is not lost."""
        return self.policy.can_reach(neighbor)

    def address(self, header: Header, neighbor: int) -> Header:
        """Return the header for one neighbor, with the delays that are injected on the link to it."""
        return self.policy.addressed(header, neighbor)

    def send(self, contents: Contents | None, isolated: bool = False) -> None:
        """Send one message to every neighbor, and remember it for those who come back."""
        if contents is not None and not isolated:
            self.published = (self.header(), contents)
        super().send(contents, isolated)

    def lose(self, neighbor: int) -> None:
        """Take in that a neighbor is gone."""
        with self.changed:
            self.policy.lost(neighbor)

    @ray.method(concurrency_group="mail")
    def neighbor_lost(self, neighbor: int) -> None:
        """Take in that a neighbor is gone, from the driver, which notices first."""
        with self.changed:
            self.policy.lost(neighbor)
            self.outbox.drop(neighbor)
            self.changed.notify_all()

    @ray.method(concurrency_group="mail")
    def neighbor_done(self, neighbor: int) -> None:
        """Take in that a receiver has taken all its steps, from the driver."""
        with self.changed:
            self.policy.finished(neighbor)

    @ray.method(concurrency_group="mail")
    def welcome(self, neighbor: int, handle: ActorHandle[Any]) -> Offer:
        """Take a neighbor in that comes back, and return what it comes back from."""
        with self.changed:
            known = self.policy.known(neighbor)
            self.policy.back(neighbor, 0)
            if neighbor in self.spec.receivers:
                self.outbox.welcome(neighbor, handle)
            if self.published is None:
                self.published = (self.header(), self.packed(self.agent.weights, self.agent.buffers))
            header, contents = self.published
            return Offer(header, contents, known)

    @ray.method(concurrency_group="train")
    def come_back(self, neighbors: Mapping[int, ActorHandle[Any]], started_at: float, at_least: int) -> None:
        """Come back into a run and train on; the agent's next version is ``at_least`` this one."""
        self.started_at = self.policy.started_at = started_at
        self.outbox = self.transport.outbox({k: handle for k, handle in neighbors.items() if k in self.spec.receivers})
        with self.changed:
            self.policy.connected(neighbors)
        offers = offers_of(self, neighbors, self.lose)
        versions = {k: offer.header.version for k, offer in offers.items()}
        plan = self.policy.rejoin(versions, [offer.known for offer in offers.values()], at_least)
        if not self.policy.pushes:
            # A share is read once, and what neighbors offer is not a share: they have kept theirs.
            with self.changed:
                for read in plan.reads:
                    offer = offers[read.neighbor]
                    self.mailbox.start(Message(offer.header, offer.contents))
        self.rejoin([Found(read, offers[read.neighbor].contents, None, 1.0) for read in plan.reads], plan.version)
        self.train_on()

    def rejoin(self, found: list[Found], version: int) -> None:
        """Be in the run again at a version, as the mean of the versions found, or as the agent is if there are none."""
        received = self.open_all(found)
        reads: tuple[Read, ...] = tuple(one.read for one in received)
        self.agent.rejoin(received, version)
        self.is_back, self.is_back_at = True, version
        with self.changed:
            self.policy.rejoined(version, reads)
            self.unsent += self.policy.events()
        now = self.now()
        self.finish_step(Row(self.spec.agent, version - 1, now, now, now, reads, "rejoined"), float("nan"), {})
        self.report(flush=True)
        self.publish()

    def on_leave(self) -> None:
        """Tell the neighbors that the agent has left, if it was asked to."""
        if self.is_leaving:
            self.send(None, isolated=True)
            self.policy.left()
            self.unsent += self.policy.events()

    @ray.method(concurrency_group="mail")
    def leave(self) -> None:
        """Leave the run on purpose, after the present step."""
        with self.changed:
            self.is_leaving = True
            self.stopped = True
            self.changed.notify_all()
