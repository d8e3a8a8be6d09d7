"""Actions of a live run's driver: what ``Membership`` decides, and the supervisor carries out."""

from dataclasses import dataclass

from ray_pcasgd.engines.live.commands import Heal, Isolate, SetDelay
from ray_pcasgd.records import EventKind


@dataclass(frozen=True)
class Announce:
    """Report an event of the run, at the step that the agent is known to have come to."""

    kind: EventKind
    agent: int
    """-1 where it is about no agent."""
    detail: str


@dataclass(frozen=True)
class Train:
    """Let agents begin to train."""

    agents: tuple[int, ...]


@dataclass(frozen=True)
class Make:
    """End what is left of an agent's actor, and make another one."""

    agent: int


@dataclass(frozen=True)
class Rejoin:
    """Let an agent whose actor was made again join the run."""

    agent: int
    others: tuple[int, ...]
    """Those of its neighbors and receivers that are there."""


@dataclass(frozen=True)
class AskToLeave:
    """Ask an agent to leave after its present step."""

    agent: int


@dataclass(frozen=True)
class TellLost:
    """Tell some agents that another one is not there any more."""

    agent: int
    to: tuple[int, ...]


@dataclass(frozen=True)
class TellDone:
    """Tell some agents that one to which they push shares has taken all its steps."""

    agent: int
    to: tuple[int, ...]


@dataclass(frozen=True)
class Forget:
    """Let the scheduler wait for no more reports of an agent's last actor."""

    agent: int


@dataclass(frozen=True)
class Kill:
    """End an agent's process, as which it is lost."""

    agent: int


@dataclass(frozen=True)
class ChangeLinks:
    """Carry out a command about links."""

    command: SetDelay | Isolate | Heal
    to: tuple[int, ...]


@dataclass(frozen=True)
class Answer:
    """Answer a command."""

    number: int
    text: str


@dataclass(frozen=True)
class ReplaceScheduler:
    """Make another scheduler in place of a lost one."""


@dataclass(frozen=True)
class Stop:
    """Ask agents to stop, wait for them, and take in what they report last."""

    agents: tuple[int, ...]


@dataclass(frozen=True)
class End:
    """End the run."""

    error: Exception | None
    """What is raised, if it was not finished."""


DriverAction = (
    Announce
    | Train
    | Make
    | Rejoin
    | AskToLeave
    | TellLost
    | TellDone
    | Forget
    | Kill
    | ChangeLinks
    | Answer
    | ReplaceScheduler
    | Stop
    | End
)
