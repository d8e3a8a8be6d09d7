"""Drives the actor of a live server, which updates when its gathering policy says so, over what has come."""

from collections.abc import Collection, Mapping
from typing import Any

from ray.actor import ActorHandle

from ray_pcasgd.agents.mailbox import Answer, Header, OnceMailbox
from ray_pcasgd.agents.participant import Received
from ray_pcasgd.agents.server import Server
from ray_pcasgd.base.state import State
from ray_pcasgd.engines.live.decisions import Over, Take
from ray_pcasgd.engines.live.injection import InjectedDelays
from ray_pcasgd.engines.live.server import Connect, Decision, Open, ServerPolicy, Tell
from ray_pcasgd.engines.messages import Contents, RejectedError
from ray_pcasgd.engines.ray.actor import Actor, Found
from ray_pcasgd.engines.ray.live import LiveDriver, moment
from ray_pcasgd.engines.ray.lost import LOST
from ray_pcasgd.engines.ray.mail import StoppedError
from ray_pcasgd.records import Event, Read, Row


class _Version:
    """One version of a server as it is sent: whole, or the fragment of it that answers a message."""

    def __init__(self, actor: Actor, server: Server) -> None:
        self._actor = actor
        self._server = server
        self._published = server.message(None)
        self._made: dict[int | None, Contents] = {}

    def contents(self, part: int | None) -> Contents:
        """Return one fragment, or with ``None`` all; made once, for all who are sent the same."""
        if part not in self._made:
            published = self._published if part is None else self._server.fragment_of(self._published, part)
            self._made[part] = self._actor.contents(published)
        return self._made[part]


class ServerDriver(LiveDriver):
    """Takes a server's updates until all steps of the run are taken, and answers its workers."""

    policy: ServerPolicy

    def __init__(self, actor: Actor, state: State | None, injection: InjectedDelays) -> None:
        super().__init__(actor)
        assert isinstance(actor.participant, Server)
        self.server = actor.participant
        if state is not None:
            self.server.restore(state)
        mailbox: OnceMailbox[Contents] = OnceMailbox(actor.spec.neighbors)
        actor.mailbox = mailbox
        self.policy = ServerPolicy(
            self.server.spec, mailbox, actor.driving.wait_seconds, injection, self.is_here, state
        )
        self.contents = {actor.version: _Version(actor, self.server)}
        """By version, what workers may still be told to read."""
        self.opened: dict[tuple[int, int], Received] = {}
        """By worker and version, the gradients that wait for an update."""
        self.workers: dict[int, ActorHandle[Any]] = {}
        """Workers that are back, until messages are sent to them."""

    def run(self) -> None:
        """Update until all steps are taken, and tell the workers so."""
        while not isinstance(decision := self.next_decision(), Over):
            self.act(decision)

    def next_decision(self) -> Decision:
        """Wait until there is something to do.

        Raises:
            StoppedError: the run is being stopped, and what was begun is completed.

        """
        with self.actor.changed:
            decision = self.await_decision(self.policy)
            if self.actor.stopped and isinstance(decision, Open):
                raise StoppedError
            return decision

    def act(self, decision: Decision) -> None:
        """Do what the policy has decided."""
        match decision:
            case Open(header):
                is_here = self.open_gradient(header)
                with self.actor.changed:
                    self.policy.opened(header, is_here, moment())
            case Connect(worker):
                self.actor.outbox.welcome(worker, self.workers[worker])
            case Take(reads):
                self.update(reads)
            case Tell(headers, whole):
                self.answer(headers, whole)
                if self.is_time_to_keep:
                    self.keep_state(self.server.state() | self.policy.state())
                    self.actor.report()

    def is_here(self, header: Header) -> bool:
        """Return whether a gradient can be opened at once; if not, its transfer has begun; the lock is held."""
        message = self.actor.mailbox.get(header.sender, header.version)
        if message is None or message.contents is None:
            return True
        return self.has_come(message.contents[:2], (header.sender, header.version))

    def open_gradient(self, header: Header) -> bool:
        """Fetch a gradient; return whether it is here, and what it must be, and not lost together with its worker."""
        actor, key = self.actor, (header.sender, header.version)
        try:
            with actor.changed:
                if problem := self.policy.problem(header):
                    raise RejectedError(problem)
                message = actor.mailbox.get(*key)
                actor.mailbox.discard(*key)
            if message is None or message.contents is None:
                return False
            self.opened[key] = actor.open(Found(Read(*key, 0, 0), header, message.contents, None))
        except RejectedError as error:
            with actor.changed:
                actor.reject(*key, error)
            return False
        except LOST as error:
            detail = f"version {header.version} of agent {header.sender} was lost ({type(error).__name__})"
            actor.unsent.append(Event("message_lost", actor.spec.agent, actor.version, detail))
            return False
        return True

    def update(self, reads: tuple[Read, ...]) -> None:
        """Take one update over the gradients that were gathered."""
        actor, policy = self.actor, self.policy
        now = actor.now()
        row = Row(actor.spec.agent, actor.version, now, now, now, reads)
        outcome = self.server.take(row, [self.opened.pop(read[:2])._replace(read=read) for read in reads])
        with actor.changed:
            policy.stepped(actor.version, moment())
        self.contents[actor.version] = _Version(actor, self.server)
        # Each message is answered once, and where others are cancelled they are told of the new version, too.
        actor.submit(row, outcome, policy.num_owed if policy.gathering.cancels else None)

    def answer(self, headers: Mapping[int, Header], whole: Collection[int]) -> None:
        """Send each worker its answer with the weights that it names, and forget what is not needed any more."""
        recipe = self.server.spec.recipe
        alike: dict[tuple[int, int | None], dict[int, Header]] = {}
        for worker, header in headers.items():
            assert isinstance(header.note, Answer)
            is_whole = worker in whole or not recipe.has_fragments
            part = None if is_whole else recipe.fragments.part(header.note.answers)
            alike.setdefault((header.version, part), {})[worker] = header
        for (version, part), group in alike.items():
            self.actor.outbox.send(group, self.contents[version].contents(part), may_skip=False)
        policy = self.policy
        self.contents = {version: one for version, one in self.contents.items() if version >= policy.oldest}
        self.opened = {key: one for key, one in self.opened.items() if key in policy.losses}
        self.server.keep(policy.kept.__contains__)

    def check_turn(self, header: Header) -> None:
        """Raise ``RejectedError`` unless a gradient may be its worker's next one."""
        if problem := self.policy.admit(header):
            raise RejectedError(problem)

    def welcome(self, neighbor: int, handle: ActorHandle[Any], version: int) -> bool:
        """Take a worker in that comes back at a version, unless all steps are taken; return whether it is."""
        if not self.policy.is_over:
            self.workers[neighbor] = handle
            self.policy.back(neighbor, version)
            self.actor.changed.notify_all()
        return not self.policy.is_over
