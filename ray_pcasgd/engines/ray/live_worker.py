"""Drives the actor of a live worker, which starts when its servers have answered, and gives up what they cancel."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.actor import ActorHandle

from ray_pcasgd.agents.mailbox import Answer, Header, OnceMailbox
from ray_pcasgd.agents.participant import NO_LOSS, Received
from ray_pcasgd.agents.worker import Worker
from ray_pcasgd.base.state import State
from ray_pcasgd.engines.base import InterruptionError
from ray_pcasgd.engines.live.decisions import Over, Rejoin, Take
from ray_pcasgd.engines.live.injection import InjectedDelays
from ray_pcasgd.engines.live.worker import WorkerPolicy
from ray_pcasgd.engines.messages import Contents, RejectedError
from ray_pcasgd.engines.ray.actor import Actor
from ray_pcasgd.engines.ray.live import LiveDriver, moment
from ray_pcasgd.engines.ray.mail import StoppedError
from ray_pcasgd.records import Read, Row, RowKind


class WorkerDriver(LiveDriver):
    """Takes a worker's steps until every server has taken all of its own."""

    note = Answer
    policy: WorkerPolicy

    def __init__(self, actor: Actor, state: State | None, injection: InjectedDelays) -> None:
        super().__init__(actor)
        assert state is None, "a worker goes on from its servers' weights"
        assert isinstance(actor.participant, Worker)
        self.worker = actor.participant
        mailbox: OnceMailbox[Contents] = OnceMailbox(actor.spec.neighbors)
        actor.mailbox = mailbox
        self.policy = WorkerPolicy(self.worker.spec, mailbox, actor.driving.wait_seconds, injection)
        self.worker.warm_up()

    def run(self) -> None:
        """Take steps until every server has taken all of its own."""
        self.policy.started_at = self.actor.started_at
        while not isinstance(decision := self.next_decision(), Over):
            if isinstance(decision, Rejoin):
                self.rejoin(decision)
            else:
                self.take_step(decision.reads)

    def next_decision(self) -> Rejoin | Take | Over:
        """Wait until the worker may go on.

        Raises:
            StoppedError: the run is being stopped.

        """
        with self.actor.changed:
            decision = self.await_decision(self.policy)
            if self.actor.stopped:
                raise StoppedError
            return decision

    def check_turn(self, header: Header) -> None:
        """Raise ``RejectedError`` where a message answers what the worker has not sent last."""
        if problem := self.policy.admit(header):
            raise RejectedError(problem)

    def take_step(self, reads: tuple[Read, ...]) -> None:
        """Compute and deliver, or give up where the work is cancelled."""
        actor, worker, policy = self.actor, self.worker, self.policy
        asked = actor.now()
        received = self.fetch_all(reads)
        started = actor.now()
        waited_seconds = self.waited_seconds + started - asked
        loss: float | None = None
        if self.wait_longer():
            loss = worker.step(received, self.is_cancelled)
        else:
            worker.skip()
        with actor.changed:
            policy.stepped(worker.version, moment())
            if actor.stopped:
                raise StoppedError
            headers = {} if loss is None else policy.headers(loss, moment())
        kind: RowKind = "cancelled" if loss is None else "step"
        row = Row(actor.spec.agent, worker.version - 1, started, started, started, reads, kind)
        outcome = NO_LOSS if loss is None else worker.taken(loss)
        actor.send(worker.message(row), headers)
        ended = actor.now()
        actor.submit(row._replace(ready=ended, end=ended), outcome, waited_seconds=waited_seconds)

    def fetch_all(self, reads: Sequence[Read]) -> list[Received]:
        """Return the servers' weights, fetched.

        Raises:
            InterruptionError: they are not what they must be, and there are no others: the worker comes back.

        """
        actor, who = self.actor, self.actor.spec.agent
        with actor.changed:
            found = [one for read in reads if (one := actor.find(read)) is not None]
        try:
            return [actor.open(one) for one in found]
        except RejectedError as error:
            raise InterruptionError(f"worker {who} was sent weights that it had to reject: {error}", who) from error

    def wait_longer(self) -> bool:
        """Wait for the seconds that a straggler's step takes longer; return whether its work is still wanted."""
        with self.actor.changed:
            while (until := self.policy.slowed(moment())) is not None:
                if self.actor.stopped or self.policy.is_void:
                    return False
                self.actor.changed.wait(max(0.0, until - time.monotonic()))
        return True

    def is_cancelled(self) -> bool:
        """Return whether the present work is not needed any more."""
        with self.actor.changed:
            return self.policy.is_cancelled(moment()) or self.actor.stopped

    def come_back(self, neighbors: Mapping[int, ActorHandle[Any]], at_least: int) -> bool:
        """Come back into the run, with the servers' weights, unless these are done."""
        actor = self.actor
        actor.outbox = actor.transport.outbox(neighbors)
        agent, myself = actor.spec.agent, ray.get_runtime_context().current_actor
        servers: list[Any] = list(neighbors.values())
        known: list[int] = ray.get([server.newest_of.remote(agent) for server in servers])
        with actor.changed:
            self.worker.version = self.policy.rejoin(known, at_least)
        return all(ray.get([server.welcome.remote(agent, myself, self.worker.version) for server in servers]))

    def rejoin(self, decision: Rejoin) -> None:
        """Be in the run again, with the weights that the servers have answered."""
        actor, now = self.actor, self.actor.now()
        row = Row(actor.spec.agent, decision.version - 1, now, now, now, decision.reads, "rejoined")
        self.worker.take(row, self.fetch_all(decision.reads))
        with actor.changed:
            self.policy.rejoined()
            actor.unsent += self.policy.events()
        actor.submit(row, NO_LOSS, flush=True)

    def on_leave(self) -> None:
        """Report that the worker has left, if it was asked to."""
        self.report_leaving()
