"""One process, virtual time: executes a schedule's rows, those that are ready together as one batch."""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from ray_pcasgd.agent import Agent, AgentSpec, Received
from ray_pcasgd.engines.base import RunError
from ray_pcasgd.engines.batching import apply_together, compute_together
from ray_pcasgd.engines.local_pairs import pair_reports
from ray_pcasgd.engines.local_server import server_reports
from ray_pcasgd.learner import LearnerSpec, NonFiniteLossError
from ray_pcasgd.mailbox import FALLBACK_VERSIONS
from ray_pcasgd.pairs import PairSpec
from ray_pcasgd.records import Event, Read, Row, StepReport
from ray_pcasgd.schedule.scheduler import Schedule
from ray_pcasgd.server import ServerSpec, WorkerSpec
from ray_pcasgd.settings import Settings
from ray_pcasgd.tasks.models import CustomModel, Torchvision
from ray_pcasgd.tasks.objective import CustomMeasure
from ray_pcasgd.tasks.task import TaskData

MANY_AGENTS = 32
"""From so many agents on, stacking saves more than it costs (measured on CPUs: experiments/benchmarks)."""


class LocalSettings(Settings):
    """The local engine: one process and virtual time."""

    name: Literal["local"] = "local"
    batched: Literal["auto", "always", "never"] = "auto"
    """Whether agents' steps run stacked under vmap: ``auto`` for 32 agents or more of the package's own networks
    without convolutions, where it is faster. ``never`` gives the very bits of the ray engine's planned mode."""
    device: str = Field("cpu", pattern="^(cpu|cuda(:[0-9]+)?)$")
    """Where the agents compute: cpu, cuda, or cuda:1 for one of several GPUs."""
    threads: int = Field(1, ge=1)
    """Threads that torch uses within one operation."""


@dataclass
class _Published:
    weights: Tensor
    buffers: Tensor
    direction: Tensor | None = None
    mass: float = 1.0


class LocalEngine:
    """Executes planned rows in the order of their data flow.

    A row runs once its agent is at the row's step and every version that it reads exists, with its direction where
    the rule needs that. So rows whose times overlap run together, and a recorded schedule needs no exact clocks.
    """

    def __init__(self, settings: LocalSettings, schedule: Schedule) -> None:
        self._settings = settings
        self._schedule = schedule

    def run(self, specs: Sequence[LearnerSpec], data: TaskData) -> Iterator[StepReport | Event]:
        """Execute all rows; see ``Engine.run``."""
        threads = torch.get_num_threads()
        torch.set_num_threads(self._settings.threads)
        rows = iter(self._schedule)
        peers = [spec for spec in specs if isinstance(spec, AgentSpec)]
        others = [spec for spec in specs if isinstance(spec, WorkerSpec | ServerSpec)]
        pairs = [spec for spec in specs if isinstance(spec, PairSpec)]
        try:
            with torch.random.fork_rng():
                if peers:
                    yield from _Execution(self._settings, rows, peers, data).reports()
                elif pairs:
                    yield from pair_reports(rows, pairs, data)
                else:
                    yield from server_reports(rows, others, data, self._settings.batched == "always")
        finally:
            torch.set_num_threads(threads)


class _Execution:
    def __init__(
        self, settings: LocalSettings, rows: Iterator[Row | None], specs: Sequence[AgentSpec], data: TaskData
    ) -> None:
        self.recipe = specs[0].recipe
        self.agents = [Agent(spec, data) for spec in specs]
        self.batched = _runs_batched(settings, self.agents)
        self.rows = rows
        self.window: deque[Row] = deque()
        self.published: list[dict[int, _Published]] = [{0: _Published(a.weights, a.buffers)} for a in self.agents]
        self.losses: list[float | None] = [None] * len(self.agents)
        self.isolated: dict[int, int] = {}
        self.last_read: dict[tuple[int, int], int] = {(s.agent, k): 0 for s in specs for k in s.neighbors}
        self.readers = [[s.agent for s in specs if k in s.neighbors] for k in range(len(specs))]
        self.unread: list[dict[int, set[int]]] = [{0: set(readers)} for readers in self.readers]
        """Where every version is read: who has yet to read each."""
        self.events: list[Event] = []
        self.started = time.perf_counter()

    def reports(self) -> Iterator[StepReport | Event]:
        while True:
            self.compute_pending()
            yield from self.events
            self.events.clear()
            ready = self.take_ready()
            if not ready:
                return
            for group in self.grouped(ready):
                yield from self.execute(group)

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
            losses = compute_together(pending).tolist()
        else:
            losses = [agent.compute() for agent in pending]
        for agent, loss in zip(pending, losses, strict=True):
            try:
                self.losses[agent.spec.agent] = agent.check_finite(loss)
            except NonFiniteLossError as error:
                if not self.recipe.isolate_non_finite:
                    raise
                self.isolated[error.agent] = error.step
                self.events.append(Event("agent_isolated", error.agent, error.step, str(error)))
            else:
                self.published[agent.spec.agent][agent.version].direction = agent.direction

    def take_ready(self) -> list[Row]:
        """Take the rows that can run now, in the schedule's order; nothing once all rows have run."""
        limit = 2 * len(self.agents)
        while True:
            while len(self.window) < limit and (row := next(self.rows, None)) is not None:
                if row.step < self.recipe.num_steps:
                    self.window.append(row)
            rows = [row for row in self.window if row.agent not in self.isolated]
            ready = [row for row in rows if self.is_ready(row)]
            if ready or not rows:
                taken = set(ready)
                self.window = deque(row for row in rows if row not in taken)
                if ready or len(self.window) == 0:
                    return ready
            if len(self.window) < limit:
                raise RunError(self.why_stuck(rows[0]))
            limit *= 2

    def is_ready(self, row: Row) -> bool:
        return self.agents[row.agent].version == row.step and all(
            self.is_gone(read.neighbor, read.version) or self.is_here(row.agent, read) for read in row.reads
        )

    def is_gone(self, agent: int, version: int) -> bool:
        return agent in self.isolated and version > self.isolated[agent]

    def is_here(self, agent: int, read: Read) -> bool:
        published = self.published[read.neighbor].get(read.version)
        if published is None or not self.recipe.needs_direction(agent, read):
            return published is not None
        return published.direction is not None or read.neighbor in self.isolated

    def why_stuck(self, row: Row) -> str:
        for read in row.reads:
            if not self.is_here(row.agent, read):
                return (
                    f"schedule: agent {row.agent} reads version {read.version} of agent {read.neighbor} at step "
                    f"{row.step}, and no row before it publishes that version"
                )
        return f"schedule: agent {row.agent} has a row for step {row.step} and none for the step before it"

    def grouped(self, rows: list[Row]) -> list[list[Row]]:
        """Return the groups that may run as one batch: as much to gather, and alike in probing."""
        if not self.batched:
            return [[row] for row in rows]
        groups: dict[tuple[int, bool], list[Row]] = {}
        for row in rows:
            agent = self.agents[row.agent]
            gathers = len(row.reads) if agent.pushes else len(agent.spec.neighbors)
            key = (gathers, self.recipe.rule.probes_at(row.step))
            groups.setdefault(key, []).append(row)
        return list(groups.values())

    def execute(self, rows: list[Row]) -> Iterator[StepReport]:
        agents = [self.agents[row.agent] for row in rows]
        received = [self.receive(row) for row in rows]
        # Reported is what was really read: agents that have left the run are not.
        rows = [row._replace(reads=tuple(r.read for r in own)) for row, own in zip(rows, received, strict=True)]
        losses = [self.losses[row.agent] for row in rows]
        measures = apply_together(agents, received) if len(rows) > 1 else [agents[0].apply(received[0])]
        for row, agent in zip(rows, agents, strict=True):
            self.losses[row.agent] = None
            self.published[row.agent][agent.version] = _Published(agent.weights, agent.buffers, mass=agent.mass)
            self.forget(row)
        for row, agent, loss, measured in zip(rows, agents, losses, measures, strict=True):
            assert loss is not None
            yield self.report(row, agent, loss, measured)

    def receive(self, row: Row) -> list[Received]:
        received = []
        for read in row.reads:
            if not self.is_gone(read.neighbor, read.version):
                version = self.published[read.neighbor][read.version]
                direction = version.direction
                if direction is None and self.recipe.rule.needs_directions:
                    direction = torch.zeros_like(version.weights)
                received.append(Received(read, version.weights, version.buffers, direction, version.mass))
        return received

    def forget(self, row: Row) -> None:
        """Drop the versions that no later row can ask for: reads of one link never fall back by more than one."""
        if self.agents[row.agent].pushes:
            self.forget_read(row)
            return
        for read in row.reads:
            self.last_read[row.agent, read.neighbor] = read.version
        for k in (row.agent, *(read.neighbor for read in row.reads)):
            newest = self.agents[k].version
            needed = [self.last_read[i, k] for i in self.readers[k] if self.is_running(i)]
            horizon = min([newest, *(version - FALLBACK_VERSIONS for version in needed)])
            for version in [v for v in self.published[k] if v < horizon]:
                del self.published[k][version]

    def forget_read(self, row: Row) -> None:
        """Drop the versions that everybody has read who reads each version once, in whatever order."""
        for read in row.reads:
            self.unread[read.neighbor].get(read.version, set()).discard(row.agent)
        self.unread[row.agent][row.step + 1] = set(self.readers[row.agent])
        for k in (row.agent, *(read.neighbor for read in row.reads)):
            for version, readers in list(self.unread[k].items()):
                if version < self.agents[k].version and not any(map(self.is_running, readers)):
                    del self.unread[k][version], self.published[k][version]

    def is_running(self, agent: int) -> bool:
        return self.agents[agent].version < self.recipe.num_steps and agent not in self.isolated

    def report(self, row: Row, agent: Agent, loss: float, measures: dict[str, float]) -> StepReport:
        evaluates = self.recipe.evaluates_at(agent.progress)
        return StepReport(
            row=row,
            progress=agent.progress,
            loss=loss,
            measures=measures,
            bytes_sent=agent.message_bytes * len(agent.receivers()),
            wall_seconds=time.perf_counter() - self.started,
            snapshot=agent.snapshot() if evaluates else None,
            evaluation=agent.evaluate() if evaluates else None,
        )


def _runs_batched(settings: LocalSettings, agents: Sequence[Agent]) -> bool:
    if settings.batched != "auto" or len(agents) < MANY_AGENTS:
        return settings.batched == "always"
    task = agents[0].spec.recipe.task
    if isinstance(task.model, CustomModel | Torchvision) or isinstance(task.loss, CustomMeasure):
        return False  # the user's own code may hold what cannot run stacked
    slower = (torch.nn.modules.conv._ConvNd, torch.nn.RNNBase)
    return not any(isinstance(module, slower) for module in agents[0].replica.module.modules())
