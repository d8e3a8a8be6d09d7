"""One process, virtual time: executes a schedule's rows, those that are ready together as one batch."""

import time
from collections.abc import Generator, Iterator, Sequence
from typing import Literal

import torch
from pydantic import Field

from ray_pcasgd.agents.learner import LearnerSpec, NonFiniteLossError
from ray_pcasgd.agents.pair import PairSpec
from ray_pcasgd.agents.peer import AgentSpec, Peer, Received
from ray_pcasgd.agents.server import ServerSpec, WorkerSpec
from ray_pcasgd.base.settings import Settings
from ray_pcasgd.base.state import State
from ray_pcasgd.engines.base import Leaving, Report
from ray_pcasgd.engines.failures import measured, naming, who_of
from ray_pcasgd.engines.local.batching import apply_together, compute_together
from ray_pcasgd.engines.local.dataflow import DataFlow
from ray_pcasgd.engines.local.pairs import pair_reports
from ray_pcasgd.engines.local.server import server_reports
from ray_pcasgd.records import Event, Row, StepReport
from ray_pcasgd.schedule.scheduler import Recorded, Schedule, waits_for_losses
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
        return not (isinstance(specs[0], PairSpec) or waits_for_losses(self._schedule))

    def run(
        self, specs: Sequence[LearnerSpec], data: TaskData, state: State | None = None
    ) -> Generator[Report, None, None]:
        """Execute all rows; see ``Engine.run``. Only AD-PSGD, and plans that depend on losses, do not pause."""
        threads = torch.get_num_threads()
        torch.set_num_threads(self._settings.threads)
        rows = iter(self._schedule)
        peers = [spec for spec in specs if isinstance(spec, AgentSpec)]
        others = [spec for spec in specs if isinstance(spec, WorkerSpec | ServerSpec)]
        pairs = [spec for spec in specs if isinstance(spec, PairSpec)]
        try:
            with torch.random.fork_rng():
                if peers:
                    recorded = self._schedule.recorded if isinstance(self._schedule, Recorded) else ()
                    execution = _Execution(self._settings, rows, [_built(spec, data) for spec in peers], recorded)
                    execution.leaving = self.leaving
                    execution.go_on(state)
                    yield from execution.reports()
                elif pairs:
                    yield from pair_reports(rows, pairs, data)
                else:
                    stacks = self._settings.batched == "always"
                    pauses = self.can_pause(specs)
                    yield from server_reports(rows, others, data, stacks, pauses, state, self.leaving)
        finally:
            torch.set_num_threads(threads)


def _built(spec: AgentSpec, data: TaskData) -> Peer:
    with naming(spec.agent, 0):
        return Peer(spec, data)


class _Execution(DataFlow):
    def __init__(
        self,
        settings: LocalSettings,
        rows: Iterator[Row | None],
        agents: Sequence[Peer],
        recorded: Sequence[Row] = (),
    ) -> None:
        super().__init__(rows, agents, recorded)
        self.agents = agents
        self.batched = _runs_batched(settings, agents)
        self.events: list[Event] = []

    def reports(self) -> Iterator[Report]:
        while True:
            self.compute_pending()
            yield from self.happened()
            ready = self.take_ready()
            if not ready:
                return
            for group in self.grouped(ready):
                yield from self.execute(group)
                yield from self.happened()
            yield from self.pause()

    def happened(self) -> Iterator[Event]:
        """Yield the events that were not yielded yet."""
        yield from self.events
        self.events.clear()

    def compute_pending(self) -> None:
        """Compute the direction of every agent that has a next step, as soon as its version exists."""
        pending = [
            agent
            for agent in self.agents
            if self.losses[agent.spec.agent] is None
            and agent.version < self.recipe.num_steps
            and agent.spec.agent not in self.isolated
        ]
        if self.batched and len(pending) > 1:
            with naming(-1, min(agent.version for agent in pending), who_of(pending)):
                losses = compute_together(pending).tolist()
        else:
            losses = []
            for agent in pending:
                with naming(agent.spec.agent, agent.version):
                    losses.append(agent.compute())
        for agent, loss in zip(pending, losses, strict=True):
            try:
                self.losses[agent.spec.agent] = agent.check_finite(loss)
            except NonFiniteLossError as error:
                self.isolate(error)
            else:
                self.published[agent.spec.agent][agent.version].direction = agent.direction

    def isolate(self, error: NonFiniteLossError) -> None:
        """Let an agent leave the run after its present version; end the run where that is not asked for."""
        if not self.recipe.isolate_non_finite:
            raise error
        self.isolated[error.agent] = error.step
        self.events.append(Event("agent_isolated", error.agent, error.step, str(error)))

    def grouped(self, rows: list[Row]) -> list[list[Row]]:
        """Return the groups that may run as one batch: as much to gather, and alike in probing."""
        if not self.batched:
            return [[row] for row in rows]
        groups: dict[tuple[int, bool], list[Row]] = {}
        alone = [[row] for row in rows if row.kind == "rejoined"]
        for row in rows:
            if row.kind == "rejoined":
                continue
            agent = self.agents[row.agent]
            gathers = len(row.reads) if agent.pushes else len(agent.spec.neighbors)
            key = (gathers, self.recipe.rule.probes_at(row.step))
            groups.setdefault(key, []).append(row)
        return [*alone, *groups.values()]

    def rejoin(self, row: Row) -> StepReport:
        """Let an agent come back as it did in the run that was recorded."""
        agent, received = self.agents[row.agent], self.receive(row)
        agent.rejoin(received, row.step + 1)
        self.losses[row.agent] = None
        self.publish(row)
        return self.report(row._replace(reads=tuple(r.read for r in received)), agent, float("nan"), {})

    def execute(self, rows: list[Row]) -> Iterator[StepReport]:
        if rows[0].kind == "rejoined":
            yield self.rejoin(rows[0])
            return
        agents = [self.agents[row.agent] for row in rows]
        received = [self.receive(row) for row in rows]
        # Reported is what was really read: agents that have left the run are not.
        rows = [row._replace(reads=tuple(r.read for r in own)) for row, own in zip(rows, received, strict=True)]
        losses = [self.losses[row.agent] for row in rows]
        held = [len(row.held) for row in rows]
        outcomes: list[dict[str, float] | NonFiniteLossError]
        with naming(rows[0].agent if len(rows) == 1 else -1, min(row.step for row in rows), who_of(agents)):
            if len(rows) == 1:
                outcomes = [self.apply(agents[0], received[0], held[0])]
            else:
                outcomes = apply_together(agents, received, held)
        for row, outcome in zip(rows, outcomes, strict=True):
            self.losses[row.agent] = None
            if isinstance(outcome, NonFiniteLossError):
                self.isolate(outcome)
            else:
                self.publish(row)
        for row, agent, loss, outcome in zip(rows, agents, losses, outcomes, strict=True):
            if not isinstance(outcome, NonFiniteLossError):
                assert loss is not None
                yield self.report(row, agent, loss, outcome)

    def apply(self, agent: Peer, received: list[Received], held: int) -> dict[str, float] | NonFiniteLossError:
        try:
            return agent.apply(received, held)
        except NonFiniteLossError as error:
            return error

    def report(self, row: Row, agent: Peer, loss: float, measures: dict[str, float]) -> StepReport:
        evaluates = self.recipe.evaluates_at(agent.progress)
        evaluation = None
        if evaluates:
            evaluation, failed = measured(agent.evaluate, self.recipe.task, row.agent, agent.progress)
            self.events += [failed] if failed else []
        return StepReport(
            row=row,
            progress=agent.progress,
            loss=loss,
            measures=measures,
            bytes_sent=agent.message_bytes * len(agent.receivers()),
            wall_seconds=time.perf_counter() - self.started,
            snapshot=agent.snapshot() if evaluates else None,
            evaluation=evaluation,
        )


def _runs_batched(settings: LocalSettings, agents: Sequence[Peer]) -> bool:
    if settings.batched != "auto" or len(agents) < MANY_AGENTS:
        return settings.batched == "always"
    task = agents[0].spec.recipe.task
    if not agents[0].spec.recipe.rule.stackable:
        return False
    if isinstance(task.model, CustomModel | Torchvision) or isinstance(task.loss, CustomMeasure):
        return False  # the user's own code may hold what cannot run stacked
    slower = (torch.nn.modules.conv._ConvNd, torch.nn.RNNBase)
    return not any(isinstance(module, slower) for module in agents[0].replica.module.modules())
