"""What a live worker decides: what it reads of its servers, whom it waits for, which work it gives up."""

from collections.abc import Iterable
from typing import Any

from ray_pcasgd.agents.mailbox import Answer, Delivery, Header, OnceMailbox
from ray_pcasgd.agents.worker import WorkerSpec
from ray_pcasgd.engines.base import InterruptionError
from ray_pcasgd.engines.live.decisions import Moment, Over, Policy, Rejoin, Take, Wait, overdue
from ray_pcasgd.engines.live.injection import InjectedDelays
from ray_pcasgd.records import Event, Read
from ray_pcasgd.rules.gatherer import has_expired

_START = Header(0, 0, 0.0, 0.0, note=Answer(0, 0))


class WorkerPolicy(Policy[Rejoin | Take | Over]):
    """Decides for one live worker. It starts when all its servers have answered, and gives up what they have cancelled.

    A step is: ``Take``, ``slowed`` where the worker is a straggler, ``is_cancelled`` while it computes, ``stepped``.

    Args:
        spec: The worker.
        mailbox: The messages of its servers, which the actor puts there.
        wait_seconds: Longest wait for its servers' answers.
        injection: What is added to the real network and the real machines.

    """

    def __init__(
        self, spec: WorkerSpec, mailbox: OnceMailbox[Any], wait_seconds: float, injection: InjectedDelays
    ) -> None:
        self.spec = spec
        self.mailbox = mailbox
        self.wait_seconds = wait_seconds
        self.version = 0
        self.started_at = 0.0
        """When training began, in wall-clock seconds; the actor sets it."""
        self.known = {server: _START._replace(sender=server) for server in spec.neighbors}
        """The newest header of each server."""
        self.reading = dict(self.known)
        """Those that the present work was begun with."""
        self.is_returning = False
        """Whether the worker is back, and waits for the weights that it comes back with."""
        self.has_fragments = spec.recipe.has_fragments
        """Whether an answer holds what the message held that it answers, and is of no use for another one."""
        self.gathering = spec.recipe.rule.gathering
        """Which says after how many of a server's updates it cancels what was begun before them."""
        self.links(injection)
        self._extra_seconds = injection.compute.extra_sampler(injection.seed, spec.agent)
        self._slow_until: float | None = None
        """The steady second at which a straggler's present step is computed; ``None`` before that is drawn."""
        self._deadline: float | None = None
        """The steady second up to which answers are waited for; ``None`` where none is waited for."""
        self._events: list[Event] = []

    def admit(self, header: Header) -> str | None:
        """Admit a server's message to the mailbox; of one that answers another life's message, return what is wrong."""
        answers = _answer(header).answers
        if self.has_fragments and not header.final and answers != self.version:
            return f"it answers version {answers}; allowed is {self.version}"
        return None

    def arrived(self, header: Header, now: Moment) -> None:
        """Take in that a server's message has come; its turn is that of its arrival, which a link may delay."""

    def lost(self, agent: int) -> None:
        """Take in that a server is gone: without it there is no run, which the driver ends."""

    def back(self, agent: int, version: int) -> None:
        """Take in that a server is back: it comes back with the whole run alone, and with new workers."""

    def links(self, injection: InjectedDelays) -> None:
        """Take in what is injected on links from now on."""
        self._links = injection.links_from(self.spec.agent, self.spec.neighbors)

    def events(self) -> list[Event]:
        """Return the events to be told since the last call, in their order."""
        events, self._events = self._events, []
        return events

    def decide(self, now: Moment) -> Rejoin | Take | Wait | Over:
        """Return what to do between two steps.

        Raises:
            InterruptionError: the servers have not answered in time.

        """
        self._take_news(now)
        if self.is_over:
            return Over()
        late = [server for server in self.known if not self._has_answered(server)]
        if late:
            return self._wait(now, f"an answer of {' and '.join(f'server {server}' for server in late)}")
        self._deadline = self._slow_until = None
        reads = tuple(self._read_of(header) for header in self.known.values())
        if self.is_returning:
            self.is_returning = False
            return Rejoin(self.version, reads)
        self.reading = dict(self.known)
        for read in reads:
            self.mailbox.drop(read.neighbor, read.version - 1)
        return Take(reads)

    def slowed(self, now: Moment) -> float | None:
        """Return the steady second up to which a straggler waits before it computes, or until something comes.

        ``None`` once that is over.
        """
        if self._slow_until is None:
            self._slow_until = now.steady + self._extra_seconds(now.wall - self.started_at)
        if now.steady >= self._slow_until:
            return None
        self._take_news(now)
        due = self.mailbox.next_due()
        return self._slow_until if due is None else min(self._slow_until, due)

    def is_cancelled(self, now: Moment) -> bool:
        """Return whether the present work is not needed any more."""
        self._take_news(now)
        return self.is_void

    def stepped(self, version: int, now: Moment) -> None:
        """Take in that the worker has come to its next version, by its work or without it."""
        self.version = version

    def headers(self, loss: float, now: Moment) -> dict[int, Header]:
        """Return the header of the present version for each server, with the delays that are injected on its link."""
        return {server: self._header(server, loss, now) for server in self.reading}

    def rejoin(self, known: Iterable[int], at_least: int) -> int:
        """Return the version at which the worker comes back, above all that its servers know of it.

        Of what a lost worker did last, its servers know more than the driver, whose bound is ``at_least``.
        """
        self.version = max([at_least, *(version + 1 for version in known)])
        self.is_returning = True
        return self.version

    def rejoined(self) -> None:
        """Take in that the worker is back in the run, with the weights that the servers have answered."""
        detail = f"worker {self.spec.agent} is back at step {self.version}, with its servers' weights"
        self._events.append(Event("agent_returned", self.spec.agent, self.version, detail))

    def left(self) -> None:
        """Take in that the worker leaves the run, as it was asked to."""
        detail = f"worker {self.spec.agent} has left at step {self.version}, as it was asked to"
        self._events.append(Event("agent_left", self.spec.agent, self.version, detail))

    @property
    def is_over(self) -> bool:
        """Whether all servers have taken their last step."""
        return all(header.final for header in self.known.values())

    @property
    def is_void(self) -> bool:
        """Whether the present work is not needed, as far as is known."""
        return self.is_over or all(map(self._has_cancelled, self.known))

    def _take_news(self, now: Moment) -> None:
        """Take in the headers that have come."""
        self.mailbox.advance(now.steady)
        for header in self.mailbox.news():
            message = self.mailbox.get(header.sender, header.version)
            if message is not None and message.contents is None:
                if self.has_fragments:
                    who = self.spec.agent
                    raise InterruptionError(f"worker {who} was sent weights that it had to reject", who)
                # What it says of its weights was rejected: it is an answer all the same, at the weights before it.
                header = header._replace(version=self.known[header.sender].version)
            note, answered = _answer(header), _answer(self.known[header.sender]).answers
            # A link may answer last what the worker has sent in a life before this one.
            self.known[header.sender] = header._replace(note=note._replace(answers=max(note.answers, answered)))

    def _has_answered(self, server: int) -> bool:
        """Return whether a server has answered the last gradient, cancelled it, or answers no more."""
        header = self.known[server]
        is_answered = header.final or _answer(header).answers >= self.version
        return is_answered or self._has_cancelled(server)

    def _has_cancelled(self, server: int) -> bool:
        """Return whether a server is known to have cancelled the present work."""
        begun, newest = (_answer(headers[server]).newest for headers in (self.reading, self.known))
        return self.gathering.cancels and has_expired(self.gathering, begun, newest)

    def _wait(self, now: Moment, missing: str) -> Wait:
        if self._deadline is None:
            self._deadline = now.steady + self.wait_seconds
        if now.steady >= self._deadline:
            raise InterruptionError(overdue(self.spec.agent, self.version, self.wait_seconds, missing))
        due = self.mailbox.next_due()
        return Wait(self._deadline if due is None else min(self._deadline, due), missing)

    def _read_of(self, header: Header) -> Read:
        """Return what is read of a server."""
        return Read(header.sender, header.version, _answer(header).newest - header.version, 0)

    def _header(self, server: int, loss: float, now: Moment) -> Header:
        """Return the header of the message to one server."""
        sent_at, begun_with = now.wall - self.started_at, self.reading[server]
        latency = self._links[server].latency_seconds(self.version, sent_at)
        note = Delivery(begun_with.version, _answer(begun_with).newest, loss)
        return Header(self.spec.agent, self.version, sent_at, 0.0, latency_seconds=latency, note=note)


def _answer(header: Header) -> Answer:
    assert isinstance(header.note, Answer)
    return header.note
