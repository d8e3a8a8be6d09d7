"""The actor around a worker in live mode: its policy decides, it waits, fetches, computes and sends."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.actor import ActorHandle

from ray_pcasgd.agents.participant import Received
from ray_pcasgd.agents.worker import WorkerSpec
from ray_pcasgd.engines.base import InterruptionError
from ray_pcasgd.engines.live.decisions import Over, Rejoin, Take
from ray_pcasgd.engines.live.injection import InjectedDelays
from ray_pcasgd.engines.live.worker import WorkerPolicy
from ray_pcasgd.engines.ray.deciding import await_decision, moment
from ray_pcasgd.engines.ray.server_actors import WorkerActor
from ray_pcasgd.engines.ray.shell import Driving, StoppedError
from ray_pcasgd.engines.transport import RejectedError
from ray_pcasgd.records import Read, Row, RowKind
from ray_pcasgd.tasks.task import TaskData


class LiveWorkerActor(WorkerActor):
    """Starts when all servers have answered, and gives up what they have cancelled."""

    is_live = True

    def __init__(
        self,
        spec: WorkerSpec,
        data: TaskData,
        driving: Driving,
        scheduler: ActorHandle[Any],
        injection: InjectedDelays,
        first_call: int = 0,
    ) -> None:
        super().__init__(spec, data, driving, scheduler, first_call=first_call)
        self.policy = WorkerPolicy(spec, self.mailbox, driving.wait_seconds, injection)
        self.is_leaving = False
        self.worker.warm_up()

    def set_links(self, injection: InjectedDelays) -> None:
        """Take in what an injection says of links."""
        self.policy.links(injection)

    @ray.method(concurrency_group="train")
    def come_back(self, servers: Mapping[int, ActorHandle[Any]], started_at: float, at_least: int) -> None:
        """Come back into a run and train on; the worker's next version is ``at_least`` this one."""
        self.started_at = started_at
        self.outbox = self.transport.outbox(servers)
        agent, myself = self.spec.agent, ray.get_runtime_context().current_actor
        handles: list[Any] = list(servers.values())
        known: list[int] = ray.get([server.newest_of.remote(agent) for server in handles])
        with self.changed:
            self.worker.version = self.policy.rejoin(known, at_least)
        if all(ray.get([server.welcome.remote(agent, myself, self.worker.version) for server in handles])):
            self.train_on()

    @ray.method(concurrency_group="mail")
    def leave(self) -> None:
        """Leave the run on purpose, without a gradient that is unfinished."""
        with self.changed:
            self.is_leaving = True
            self.stopped = True
            self.changed.notify_all()

    def on_leave(self) -> None:
        """Say that the worker has left, if it was asked to."""
        if self.is_leaving:
            with self.changed:
                self.policy.left()
                self.unsent += self.policy.events()

    def take_steps(self) -> None:
        """Take steps until every server has taken all of its own."""
        self.policy.started_at = self.started_at
        while not isinstance(decision := self.await_decision(), Over):
            if isinstance(decision, Rejoin):
                self.rejoin(decision)
            else:
                self.take_step(decision.reads)

    def await_decision(self) -> Rejoin | Take | Over:
        """Wait until the worker may go on.

        Raises:
            StoppedError: the run is being stopped.

        """
        with self.changed:
            decision = await_decision(self, self.policy)
            if self.stopped:
                raise StoppedError
            return decision

    def rejoin(self, decision: Rejoin) -> None:
        """Be in the run again, with the weights that the servers have answered."""
        version, reads, now = decision.version, decision.reads, self.now()
        self.worker.rejoin(self.fetch_all(reads), version)
        with self.changed:
            self.policy.rejoined()
            self.unsent += self.policy.events()
        self.submit(Row(self.spec.agent, version - 1, now, now, now, reads, "rejoined"), None)
        self.report(flush=True)

    def take_step(self, reads: tuple[Read, ...]) -> None:
        """Compute and deliver, or give up where the work is cancelled."""
        started = self.now()
        states = self.fetch_all(reads)
        if self.wait_longer():
            loss = self.worker.step(states, self.is_cancelled)
        else:
            self.worker.skip()
            loss = None
        with self.changed:
            self.policy.stepped(self.worker.version, moment())
            if self.stopped:
                raise StoppedError
            headers = {} if loss is None else self.policy.headers(loss, moment())
        self.deliver(headers)
        ended = self.now()
        kind: RowKind = "cancelled" if loss is None else "step"
        self.submit(Row(self.spec.agent, self.worker.version - 1, started, ended, ended, reads, kind), loss)

    def fetch_all(self, reads: Sequence[Read]) -> list[Received]:
        """Return the servers' weights, fetched.

        Raises:
            InterruptionError: they are not what they must be, and there are no others: the worker comes back.

        """
        with self.changed:
            found = [self.find(read) for read in reads]
        try:
            return [self.fetch(read, contents) for read, _, contents in found]
        except RejectedError as error:
            who = self.spec.agent
            raise InterruptionError(f"worker {who} was sent weights that it had to reject: {error}", who) from error

    def wait_longer(self) -> bool:
        """Wait for the seconds that a straggler's step takes longer; return whether its work is still wanted."""
        with self.changed:
            while (until := self.policy.slowed(moment())) is not None:
                if self.stopped or self.policy.is_void:
                    return False
                self.changed.wait(max(0.0, until - time.monotonic()))
        return True

    def is_cancelled(self) -> bool:
        """Return whether the present work is not needed any more."""
        with self.changed:
            return self.policy.is_cancelled(moment()) or self.stopped
