"""The actor around a server in live mode: its policy decides, it waits, fetches, updates and sends."""

import time
from collections.abc import Mapping
from typing import Any

import ray
from ray.actor import ActorHandle

from ray_pcasgd.agents.mailbox import Header
from ray_pcasgd.agents.participant import Received
from ray_pcasgd.agents.server import ServerSpec
from ray_pcasgd.engines.live.decisions import Over, Take
from ray_pcasgd.engines.live.injection import InjectedDelays
from ray_pcasgd.engines.live.server import Connect, Decision, Open, ServerPolicy, Tell
from ray_pcasgd.engines.ray.cuts import AgentState, Restored, portable_state
from ray_pcasgd.engines.ray.deciding import await_decision, moment
from ray_pcasgd.engines.ray.lost import LOST
from ray_pcasgd.engines.ray.server_actors import ServerActor
from ray_pcasgd.engines.ray.shell import Driving, StoppedError
from ray_pcasgd.engines.transport import Contents, RejectedError
from ray_pcasgd.records import Event, Read, Row
from ray_pcasgd.tasks.task import TaskData


class LiveServerActor(ServerActor):
    """Updates when its gathering says so, over what has come."""

    def __init__(
        self,
        spec: ServerSpec,
        data: TaskData,
        driving: Driving,
        scheduler: ActorHandle[Any],
        injection: InjectedDelays,
        restored: Restored | None = None,
    ) -> None:
        super().__init__(spec, data, driving, scheduler, restored)
        state = restored.agent if restored else None
        self.policy = ServerPolicy(spec, self.mailbox, driving.wait_seconds, injection, state)
        self.contents = {self.version: self.present()}
        """By version, what workers may still be told to read."""
        self.opened: dict[tuple[int, int], Received] = {}
        """By worker and version, the gradients that wait for an update."""
        self.back: dict[int, ActorHandle[Any]] = {}
        """Workers that are back, until messages are sent to them."""
        self.kept_at = time.monotonic()

    def set_links(self, injection: InjectedDelays) -> None:
        """Take in what an injection says of links."""
        self.policy.links(injection)

    def present(self) -> Contents:
        """Return the present version as it travels."""
        return self.packed(self.server.weights, self.server.buffers)

    @ray.method(concurrency_group="mail")
    def neighbor_lost(self, agent: int) -> None:
        """Take in that a worker is gone; called from the mail thread."""
        with self.changed:
            self.policy.lost(agent)
            self.outbox.drop(agent)
            self.changed.notify_all()

    @ray.method(concurrency_group="mail")
    def newest_of(self, worker: int) -> int:
        """Return the newest version of a worker that has come."""
        with self.changed:
            return self.policy.known(worker)

    @ray.method(concurrency_group="mail")
    def welcome(self, worker: int, handle: ActorHandle[Any], version: int) -> bool:
        """Take a worker in that comes back at a version, unless all steps are taken; return whether it is."""
        with self.changed:
            if not self.policy.is_over:
                self.back[worker] = handle
                self.policy.back(worker, version)
                self.changed.notify_all()
            return not self.policy.is_over

    def check_turn(self, header: Header) -> None:
        """Raise ``RejectedError`` unless a gradient may be its worker's next one; called with the lock held."""
        if problem := self.policy.admit(header):
            raise RejectedError(problem)

    def take_steps(self) -> None:
        """Update until all steps are taken, and tell the workers so."""
        self.policy.started_at = self.started_at
        while not isinstance(decision := self.await_decision(), Over):
            self.act(decision)

    def await_decision(self) -> Decision:
        """Wait until there is something to do.

        Raises:
            StoppedError: the run is being stopped, and what was begun is completed.

        """
        with self.changed:
            decision = await_decision(self, self.policy)
            if self.stopped and isinstance(decision, Open):
                raise StoppedError
            return decision

    def act(self, decision: Decision) -> None:
        """Do what the policy has decided."""
        match decision:
            case Open(header):
                is_here = self.open_gradient(header)
                with self.changed:
                    self.policy.opened(header, is_here, moment())
            case Connect(worker):
                self.outbox.welcome(worker, self.back[worker])
            case Take(reads):
                self.update(reads)
            case Tell(headers):
                self.send(headers)
                self.keep_part()

    def keep_part(self) -> None:
        """Give the driver the server's part of the run's state, if it is time; workers go on from its weights."""
        every, now = self.driving.state_seconds, time.monotonic()
        if every is None or now - self.kept_at < every:
            return
        state = portable_state(self.server.state() | self.policy.state())
        self.unsent.append(AgentState(self.spec.agent, self.version, 0, state))
        self.report()
        self.kept_at = now

    def open_gradient(self, header: Header) -> bool:
        """Fetch a gradient; return whether it is here, and what it must be, and not lost together with its worker."""
        key = (header.sender, header.version)
        try:
            with self.changed:
                if problem := self.policy.problem(header):
                    raise RejectedError(problem)
                message = self.mailbox.get(*key)
                self.mailbox.drop(*key)
            if message is None or message.contents is None:
                return False
            self.opened[key] = self.fetch(Read(*key, 0, 0), message.contents)
        except RejectedError as error:
            with self.changed:
                self.reject(*key, error)
            return False
        except LOST as error:
            detail = f"version {header.version} of agent {header.sender} was lost ({type(error).__name__})"
            self.unsent.append(Event("message_lost", self.spec.agent, self.version, detail))
            return False
        return True

    def update(self, reads: tuple[Read, ...]) -> None:
        """Take one update over the gradients that were gathered."""
        server, policy = self.server, self.policy
        now, before = self.now(), server.progress
        measures = server.step([self.opened.pop(read[:2])._replace(read=read) for read in reads])
        losses = [policy.losses[read[:2]] for read in reads]
        with self.changed:
            policy.stepped(server.version, moment())
        self.contents[server.version] = self.present()
        row = Row(self.spec.agent, server.version - 1, now, now, now, reads)
        self.submit(row, losses, measures, before, len(policy.given))

    def send(self, headers: Mapping[int, Header]) -> None:
        """Send each worker its answer with the weights that it names, and forget what is not needed any more."""
        by_version: dict[int, dict[int, Header]] = {}
        for worker, header in headers.items():
            by_version.setdefault(header.version, {})[worker] = header
        for version, group in by_version.items():
            self.outbox.send(group, self.contents[version], may_skip=False)
        policy = self.policy
        self.contents = {version: one for version, one in self.contents.items() if version >= policy.oldest}
        self.opened = {key: one for key, one in self.opened.items() if key in policy.losses}
        self.server.keep(policy.kept.__contains__)
