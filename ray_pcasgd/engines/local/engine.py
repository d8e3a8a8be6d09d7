"""One process, virtual time: executes a schedule's rows, those that are ready together as one batch."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from pydantic import Field

from ray_pcasgd.agents.learner import Learner
from ray_pcasgd.agents.participant import LearnerSpec, Participant
from ray_pcasgd.base.determinism import deterministic
from ray_pcasgd.base.settings import Settings
from ray_pcasgd.base.state import State
from ray_pcasgd.engines.base import Leaving, Report
from ray_pcasgd.engines.failures import naming
from ray_pcasgd.engines.local.execution import Execution
from ray_pcasgd.engines.local.stacked import StackedExecution, fits_into_a_table
from ray_pcasgd.schedule.scheduler import Schedule, waits_for_losses
from ray_pcasgd.tasks.models import CustomModel, Torchvision
from ray_pcasgd.tasks.objective import CustomMeasure
from ray_pcasgd.tasks.task import TaskData

MANY_AGENTS = 32
"""From this number of agents on, stacking saves more than it costs (measured on CPUs: experiments/benchmarks)."""


class LocalSettings(Settings):
    """The local engine: one process and virtual time."""

    name: Literal["local"] = "local"
    batched: Literal["auto", "always", "never"] = "auto"
    """Whether agents' steps run stacked under vmap: ``auto`` for 32 agents or more of the package's own networks
    without convolutions, where it is faster. ``never`` gives the very bits of the ray engine's planned mode."""
    device: str = Field("cpu", pattern="^(cpu|cuda(:[0-9]+)?)$")
    """Where the agents compute: cpu, cuda, or cuda:1 for one of several GPUs."""
    threads: int = Field(1, ge=1, le=1024)
    """Threads that torch uses within one operation."""


class LocalEngine:
    """Executes planned rows in the order of their data flow.

    A row runs once its agent is at the row's step and every version that it reads exists, with its direction where
    the rule needs that. So rows whose times overlap run together, and a recorded schedule needs no exact clocks.
    """

    def __init__(self, settings: LocalSettings, schedule: Schedule) -> None:
        self._settings = settings
        self._schedule = schedule
        self.leaving = Leaving()

    def can_pause(self, specs: Sequence[LearnerSpec]) -> bool:
        """Return whether the run can be left, and go on from a state."""
        return specs[0].family.has_states and not waits_for_losses(self._schedule)

    def evaluated(self, step: int, figures: Mapping[str, float]) -> None:
        """Do nothing: nobody watches this process from outside; see ``Engine.evaluated``."""

    def run(
        self, specs: Sequence[LearnerSpec], data: TaskData, state: State | None = None
    ) -> Generator[Report, None, None]:
        """Execute all rows; see ``Engine.run``. Only AD-PSGD, and plans that depend on losses, do not pause."""
        with computing_alone(self._settings):
            agents = [_built(spec, data) for spec in specs]
            agents[0].require_determinism()
            leaving = self.leaving if self.can_pause(specs) else None
            execution = self._execution(agents, leaving)
            try:
                execution.go_on(state)
                yield from execution.reports()
            finally:
                execution.close()

    def _execution(self, agents: Sequence[Participant], leaving: Leaving | None) -> Execution | StackedExecution:
        stacks = _stacks(self._settings, agents)
        if stacks and fits_into_a_table(agents, self._schedule):
            return StackedExecution(self._schedule, agents, leaving)
        return Execution(self._schedule, agents, stacks, leaving)


@contextmanager
def computing_alone(settings: LocalSettings) -> Iterator[None]:
    """Compute as the settings say, and leave torch's threads, generators and choice of kernels as they were."""
    threads, device = torch.get_num_threads(), torch.device(settings.device)
    torch.set_num_threads(settings.threads)
    forked = [device] if device.type == "cuda" else []
    try:
        with deterministic(device), torch.random.fork_rng(forked):
            yield
    finally:
        torch.set_num_threads(threads)


def _built(spec: LearnerSpec, data: TaskData) -> Participant:
    with naming(spec.agent, 0):
        return spec.build(data)


def _stacks(settings: LocalSettings, agents: Sequence[Participant]) -> bool:
    first = agents[0]
    if not first.may_be_stacked or settings.batched != "auto":
        return first.may_be_stacked and settings.batched == "always"
    if not isinstance(first, Learner) or not first.spec.family.runs_ahead or len(agents) < MANY_AGENTS:
        return False
    task = first.spec.recipe.task
    if (
        task.step is not None
        or isinstance(task.loss, CustomMeasure)
        or isinstance(task.model, CustomModel | Torchvision)
    ):
        return False  # the user's own code may hold what cannot run stacked
    slower = (torch.nn.modules.conv._ConvNd, torch.nn.RNNBase)
    return not any(isinstance(module, slower) for module in first.replica.module.modules())
