"""How an agent comes back into a live run, or leaves it on purpose, and what its neighbors then do."""

import time
from collections.abc import Mapping
from typing import Any

import ray
from ray.actor import ActorHandle

from ray_pcasgd.agents.mailbox import Header, Message
from ray_pcasgd.engines.ray.agent_actor import AgentActor, Found
from ray_pcasgd.engines.ray.cuts import Restored
from ray_pcasgd.engines.ray.offers import Offer, offers_of
from ray_pcasgd.engines.transport import Contents
from ray_pcasgd.records import Event, Read, Row, Snapshot


class ReturningAgentActor(AgentActor):
    """An agent's actor whose neighbors may be lost, and come back."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        self.lost: set[int] = set()
        """Neighbors that are known to be gone."""
        self.done: set[int] = set()
        """Receivers that are known to have taken all their steps."""
        self.published: tuple[Header, Contents] | None = None
        """The newest version, as it travels."""
        self.is_back = False
        """Whether it has come back into the run since its actor was made."""
        self.is_leaving = False
        super().__init__(*arguments, **more)

    def restore(self, restored: Restored) -> None:
        """Be where the agent was when its state was kept."""
        super().restore(restored)
        state = restored.agent
        self.agent.place(state["version"], Snapshot(state["weights"], state["buffers"], state["local"]))

    def kept_state(self) -> dict[str, Any]:
        """Return what ``restore`` needs."""
        return {"version": self.version, **self.agent.snapshot()._asdict()}

    def send(self, contents: Contents | None, isolated: bool = False) -> None:
        """Send one message to every neighbor, and remember it for those who come back."""
        if contents is not None and not isolated:
            self.published = (self.header(), contents)
        super().send(contents, isolated)

    def lose(self, neighbor: int) -> None:
        """Take in that a neighbor is gone: it is waited for no more, and what it is known to be is read no more."""
        self.lost.add(neighbor)

    @ray.method(concurrency_group="mail")
    def neighbor_lost(self, neighbor: int) -> None:
        """Take in that a neighbor is gone, from the driver, which notices first."""
        with self.changed:
            self.lose(neighbor)
            self.outbox.drop(neighbor)
            self.changed.notify_all()

    @ray.method(concurrency_group="mail")
    def neighbor_done(self, neighbor: int) -> None:
        """Take in that a receiver has taken all its steps, from the driver."""
        with self.changed:
            self.done.add(neighbor)

    @ray.method(concurrency_group="mail")
    def welcome(self, neighbor: int, handle: ActorHandle[Any]) -> Offer:
        """Take a neighbor in that comes back, and tell it what it comes back from."""
        with self.changed:
            known = 0
            if neighbor in self.spec.neighbors:
                newest = self.mailbox.newest(neighbor)
                known = newest.version if newest else 0
                self.mailbox.readmit(neighbor)
            if neighbor in self.spec.receivers:
                self.outbox.welcome(neighbor, handle)
            self.lost.discard(neighbor)
            self.done.discard(neighbor)
            if self.published is None:
                self.published = (self.header(), self.packed(self.agent.weights, self.agent.buffers))
            header, contents = self.published
            return Offer(header, contents, known)

    @ray.method(concurrency_group="train")
    def come_back(self, neighbors: Mapping[int, ActorHandle[Any]], started_at: float, at_least: int) -> None:
        """Come back into a run and train on; the agent's next version is ``at_least`` this one."""
        self.started_at = started_at
        self.outbox = self.transport.outbox({k: handle for k, handle in neighbors.items() if k in self.spec.receivers})
        self.lost = {k for k in self.spec.neighbors if k not in neighbors}
        offers = offers_of(self, neighbors, self.lose)
        at_least = max([at_least, *(offer.known + 1 for offer in offers.values())])
        here = {k: offer for k, offer in offers.items() if k in self.spec.neighbors}
        mean = sum(offer.header.version for offer in here.values()) / len(here) if here else 0.0
        if here and (not self.is_restored or self.version < mean):
            with self.changed:
                # A share is read once, and what neighbors offer is not a share: they have kept theirs.
                for offer in () if self.agent.pushes else here.values():
                    self.mailbox.start(Message(offer.header, offer.contents))
            found = [
                Found(Read(k, offer.header.version, 0, 0), offer.contents, None, 1.0)
                for k, offer in sorted(here.items())
            ]
            self.rejoin(found, max(at_least, int(mean)))
        else:
            self.rejoin([], max(at_least, self.version + 1))
        self.train_on()

    def rejoin(self, found: list[Found], version: int) -> None:
        """Be in the run again at a version, as the mean of the versions found, or as the agent is if there are none."""
        version = min(version, self.spec.recipe.num_steps)
        received = self.open_all(found)
        self.agent.rejoin(received, version)
        self.is_back = True
        self.is_back_at = version
        now = time.time() - self.started_at
        whence = " and ".join(f"agent {one.read.neighbor}" for one in received)
        detail = f"agent {self.spec.agent} is back at step {version}, " + (
            f"as the mean of {whence}" if received else "as it was when its state was kept"
        )
        self.unsent.append(Event("agent_returned", self.spec.agent, version, detail))
        reads = tuple(one.read for one in received)
        self.finish_step(Row(self.spec.agent, version - 1, now, now, now, reads, "rejoined"), float("nan"), {})
        self.report(flush=True)
        self.publish()

    def on_leave(self) -> None:
        """Tell the neighbors that the agent has left, if it was asked to."""
        if self.is_leaving:
            self.send(None, isolated=True)
            detail = f"agent {self.spec.agent} has left at step {self.version}, as it was asked to"
            self.unsent.append(Event("agent_left", self.spec.agent, self.version, detail))

    @ray.method(concurrency_group="mail")
    def leave(self) -> None:
        """Leave the run on purpose, after the present step."""
        with self.changed:
            self.is_leaving = True
            self.stopped = True
            self.changed.notify_all()
