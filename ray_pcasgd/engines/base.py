"""What an engine is: it executes agents' steps and reports each of them."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

from ray_pcasgd.learner import LearnerSpec
from ray_pcasgd.records import Event, StepReport
from ray_pcasgd.run_state import State
from ray_pcasgd.tasks.task import TaskData


class Pause(NamedTuple):
    """All agents that take part have come to an evaluation, and nothing is under way: here a run can be left."""

    step: int
    """What all of them have come to, or passed."""
    next_step: int
    """The first step that no agent has taken."""
    state: Callable[[], State]
    """Returns what the engine goes on from; to be called before the next report is taken."""


class Engine(Protocol):
    """Executes the agents of one run; only the driving differs between engines, never what an agent computes."""

    def run(self, specs: Sequence[LearnerSpec], data: TaskData) -> Iterator[StepReport | Event]:
        """Execute every agent's steps and report them, each agent's in order.

        Closing the iterator early stops the run and frees what it holds.

        Raises:
            NonFiniteLossError: an agent's loss is not finite, and the recipe does not isolate such agents.
            RunError: the run cannot go on, for a reason that its message names.

        """
        ...


Report = StepReport | Event | Pause
"""What an engine says that can be left on its way."""


class RunError(RuntimeError):
    """A run that started and could not be finished."""
