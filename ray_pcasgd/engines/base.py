"""The interface of an engine, which executes agents' steps and reports each of them."""

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from ray_pcasgd.agents.participant import LearnerSpec
from ray_pcasgd.base.errors import RunError as RunError
from ray_pcasgd.base.state import State
from ray_pcasgd.records import Event, StepReport
from ray_pcasgd.tasks.task import TaskData

PAUSE_SECONDS = 30.0
"""Seconds to wait, when a run on actors is to be left, until its state can be kept."""


class Pause(NamedTuple):
    """All agents that take part have come to an evaluation, and no message is under way: here a run can be left."""

    step: int
    """The step that all of them have reached, or passed."""
    next_step: int
    """The first step that no agent has taken."""
    state: Callable[[], State]
    """Returns the state that the engine goes on from; to be called before the next report is taken."""
    versions: tuple[int, ...] | None = None
    """Versions from which agents go on, where the steps that were reported after them will be taken differently."""


Report = StepReport | Event | Pause
"""What an engine says of a run."""


class Leaving:
    """Whether a run is going to be left: then its next pause comes as soon as it can."""

    def __init__(self) -> None:
        self._asked_at: float | None = None

    def ask(self) -> None:
        """Ask for a pause."""
        self._asked_at = self._asked_at or time.monotonic()

    @property
    def is_asked(self) -> bool:
        """Whether a pause was asked for."""
        return self._asked_at is not None

    def give_up(self) -> None:
        """Raise ``KeyboardInterrupt`` where a pause has not come for too long."""
        if self._asked_at is not None and time.monotonic() - self._asked_at > PAUSE_SECONDS:
            raise KeyboardInterrupt


class Engine(Protocol):
    """Executes the agents of one run; only the driving differs between engines, never what an agent computes."""

    leaving: Leaving

    def can_pause(self, specs: Sequence[LearnerSpec]) -> bool:
        """Return whether the run can be left, and go on from a state."""
        ...

    def evaluated(self, step: int, figures: Mapping[str, float]) -> None:
        """Take in the averaged model's test figures at a step, for those who watch the run from outside."""
        ...

    def run(
        self, specs: Sequence[LearnerSpec], data: TaskData, state: State | None = None
    ) -> Generator[Report, None, None]:
        """Execute every agent's steps, those after ``state``, and report them, each agent's in order.

        Closing the iterator early stops the run and frees what it holds. Where steps are planned, a state is a point
        in the schedule, and reports of steps that were taken after it before are the same again.

        Raises:
            NonFiniteLossError: an agent's loss is not finite, and the recipe does not isolate such agents.
            InterruptionError: something was lost that executes the run, which goes on from its last state.
            StateError: ``state`` is not one of this run; only events were reported so far.
            RunError: the run cannot go on, for a reason that its message names.

        """
        ...


class StateError(ValueError):
    """A state that is not one of this run, though its file is whole."""


class GoneError(Exception):
    """A process that was called is gone, or failed outside of what it was asked for."""


class Elsewhere(Protocol):
    """A process that calls a function for the driver, while the driver goes on."""

    def call(self, *arguments: Any) -> Any:
        """Begin a call, and return what ``answer`` knows it by."""
        ...

    def answer(self, call: Any, wait: bool) -> tuple[Any] | None:
        """Return what a call has returned, in a tuple; ``None`` where that is not there yet and there is no ``wait``.

        Raises:
            GoneError: there will be no answer.

        """
        ...

    def close(self) -> None:
        """End the process."""
        ...


class Cluster:
    """What has to be there before a run's processes start: by default, for a run in this process alone, no cluster."""

    is_own = False
    """Whether ``join`` has started it."""

    agent_options: Mapping[str, Any] = {}
    """How the processes of agents are started on it, in Ray's words."""

    def prepare(self) -> None:
        """Begin with what takes long and is of use to a run on it, while the run is being planned."""

    def join(self) -> None:
        """Make sure that it is there; where it is already, do nothing.

        Raises:
            ValueError: what the settings name cannot be a cluster.
            RunError: it does not start, or does not answer.

        """

    def leave(self) -> None:
        """End what ``join`` has started."""


class InterruptionError(RunError):
    """A run that lost a part of what executes it, and can go on from its last state."""

    def __init__(self, message: str, agent: int = -1) -> None:
        super().__init__(message, agent)
        self.agent = agent
        """Which agent was lost; -1 where it was not an agent."""

    def __str__(self) -> str:
        return str(self.args[0])
