"""What the policies of live agents have in common: the events that go in, and the decisions that come out.

A policy decides for one live agent, and its actor acts: it holds the lock, reads the clocks, waits, fetches, computes,
sends and reports. The actor calls whatever changes a policy with its lock held, hands it each message right after
putting it into the mailbox that the two share, and asks ``decide`` again whenever something has come or a wait is
over::

    match policy.decide(moment()):
        case Wait(until, _):
            condition.wait(None if until is None else until - time.monotonic())
        case Compute():
            ...  # compute without the lock, then: policy.computed(start, moment())
        case Take(reads):
            ...  # find and fetch what is read, take the step, publish, report the row
        case Over():
            return
"""

from typing import NamedTuple, Protocol, TypeVar

from ray_pcasgd.agents.mailbox import Header
from ray_pcasgd.engines.live.injection import InjectedDelays
from ray_pcasgd.records import Event, Read


class Moment(NamedTuple):
    """One instant, by the two clocks of an actor's machine."""

    wall: float
    """Seconds of the wall clock (``time.time``): what headers and rows hold, comparable between machines."""
    steady: float
    """Seconds of a clock that is never set (``time.monotonic``): what waits, mailboxes and ``Wait.until`` count in."""


class Compute(NamedTuple):
    """Compute the gradient at the present version, and tell the policy once it is there; where it needs no reading."""


class Take(NamedTuple):
    """Take the next step now."""

    reads: tuple[Read, ...] = ()
    """What it reads, in the order of a row's reads; all of it is in the mailbox."""


class Publish(NamedTuple):
    """Publish the version that the step has come to; of agents that take it as soon as they have read."""


class Ask(NamedTuple):
    """Ask another agent for its version, and tell the policy what became of it; in pairs alone."""

    agent: int


class Wait(NamedTuple):
    """Nothing can be decided yet."""

    until: float | None
    """The steady second at which to decide again at the latest; ``None`` where only an event changes anything."""
    missing: str
    """What is waited for, in words."""


class Over(NamedTuple):
    """There is no step left."""


Decision = TypeVar("Decision", covariant=True)
"""What an actor is to do next, apart from waiting: of each family its own decisions."""


class Policy(Protocol[Decision]):
    """What a live agent decides: plain code, without Ray, clock, thread or lock."""

    def arrived(self, header: Header, now: Moment) -> None:
        """Take in that a message has come, which lies in the mailbox, or is still held back there."""

    def lost(self, agent: int) -> None:
        """Take in that another agent is gone; it may be told twice."""

    def back(self, agent: int, version: int) -> None:
        """Take in that another agent comes back; ``version`` is its newest, or 0 where that is not known yet."""

    def links(self, injection: InjectedDelays) -> None:
        """Take in what is injected on links from now on."""

    def decide(self, now: Moment) -> Decision | Wait:
        """Return what to do next.

        Raises:
            InterruptionError: what is missing has not come in time, and there is no going on without it.

        """

    def events(self) -> list[Event]:
        """Return the events to be told since the last call, in their order."""


class Rejoin(NamedTuple):
    """How an agent that was lost comes back into the run."""

    version: int
    """At which version; none of it is known that is as high, or higher."""
    reads: tuple[Read, ...]
    """The versions as whose mean it comes back, sorted by neighbor; where there are none, it stays as it is."""


def overdue(agent: int, step: int, seconds: float, missing: str) -> str:
    """Return in words that an agent has waited too long.

    >>> overdue(2, 7, 20.0, "version 7 of agent 1")
    'agent 2 waited 20 s at step 7 for version 7 of agent 1'
    """
    return f"agent {agent} waited {seconds:g} s at step {step} for {missing}"
