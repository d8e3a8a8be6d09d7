"""Events of a live run that change who takes part in it, or what is done about that; see ``Membership``."""

from collections.abc import Mapping
from dataclasses import dataclass

from ray_pcasgd.engines.base import InterruptionError
from ray_pcasgd.engines.live.commands import Command


@dataclass(frozen=True)
class Starting:
    """The first actors are being built."""


@dataclass(frozen=True)
class Began:
    """The first actors are built and connected, except those that were lost meanwhile."""

    lost: Mapping[int, InterruptionError]


@dataclass(frozen=True)
class Finished:
    """An agent's training ended without an error."""

    agent: int


@dataclass(frozen=True)
class Lost:
    """An agent that trained or was being made again is gone, or lost a message that it cannot do without."""

    agent: int
    error: InterruptionError


@dataclass(frozen=True)
class Failed:
    """An agent raised an error, of the user's code for example; or its actor did while it was built again."""

    agent: int
    error: Exception


@dataclass(frozen=True)
class Silent:
    """An agent that trains has not answered for too long."""

    agent: int


@dataclass(frozen=True)
class Built:
    """The actor of an agent that was made again is built."""

    agent: int
    place: str
    """Where."""


@dataclass(frozen=True)
class Asked:
    """An operator has sent a command."""

    number: int
    """By which it is answered."""
    command: Command


@dataclass(frozen=True)
class SchedulerLost:
    """The scheduler's actor is gone, or does not answer."""

    reason: str


@dataclass(frozen=True)
class Tick:
    """Time has passed."""

    second: float = 0.0
    """Of the run, in all."""


AgentEvent = Starting | Began | Finished | Lost | Failed | Silent | Built | Asked | SchedulerLost | Tick
