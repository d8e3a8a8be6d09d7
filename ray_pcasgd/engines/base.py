"""What an engine is: it executes agents' steps and reports each of them."""

from collections.abc import Iterator, Sequence
from typing import Protocol

from ray_pcasgd.learner import LearnerSpec
from ray_pcasgd.records import Event, StepReport
from ray_pcasgd.tasks.task import TaskData


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


class RunError(RuntimeError):
    """A run that started and could not be finished."""
