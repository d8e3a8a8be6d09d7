"""One process, virtual time, several runs at once that differ only in numbers."""

import time
from collections.abc import Iterator, Sequence
from functools import partial

import torch

from ray_pcasgd.agents.learner import LearnerSpec, NonFiniteLossError
from ray_pcasgd.agents.peer import AgentSpec
from ray_pcasgd.agents.variants import Variants
from ray_pcasgd.base.state import State
from ray_pcasgd.engines.base import Pause
from ray_pcasgd.engines.failures import measured, naming
from ray_pcasgd.engines.local.dataflow import DataFlow
from ray_pcasgd.engines.local.engine import LocalSettings
from ray_pcasgd.records import Event, Row, StepReport
from ray_pcasgd.schedule.scheduler import Recorded, Schedule
from ray_pcasgd.tasks.task import TaskData

VariantReport = tuple[int, StepReport | Event | NonFiniteLossError]
"""The variant's number, and its step or event; or what ended it: it reports no more, and the others go on."""


def variant_reports(
    settings: LocalSettings,
    schedule: Schedule,
    specs: Sequence[Sequence[LearnerSpec]],
    data: TaskData,
    state: State | None = None,
) -> Iterator[VariantReport | Pause]:
    """Execute a schedule's rows for all variants at once, those that are left after ``state`` where one is given.

    ``specs`` has the agents of each variant.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    try:
        with torch.random.fork_rng():
            peers = [[spec for spec in own if isinstance(spec, AgentSpec)] for own in specs]
            agents = [Variants(of_one, data) for of_one in zip(*peers, strict=True)]
            recorded = schedule.recorded if isinstance(schedule, Recorded) else ()
            execution = _Execution(iter(schedule), agents, recorded)
            execution.go_on(state)
            yield from execution.reports()
    finally:
        torch.set_num_threads(threads)


class _Execution(DataFlow):
    def __init__(self, rows: Iterator[Row | None], agents: Sequence[Variants], recorded: Sequence[Row] = ()) -> None:
        super().__init__(rows, agents, recorded)
        self.variants = agents
        self.going = set(range(len(agents[0].specs)))

    def state(self) -> State:
        return super().state() | {"going": sorted(self.going)}

    def restore(self, state: State) -> None:
        super().restore(state)
        self.going = set(state["going"])

    def reports(self) -> Iterator[VariantReport | Pause]:
        while self.going:
            yield from self.compute_pending()
            ready = self.take_ready()
            if not ready:
                return
            for row in ready:
                yield from self.execute(row)
            yield from self.pause()

    def compute_pending(self) -> Iterator[VariantReport]:
        """Compute the directions of every agent that has a next step, and say which variants this ends."""
        for number, agent in enumerate(self.variants):
            if self.losses[number] is None and agent.version < self.recipe.num_steps:
                with naming(number, agent.version):
                    losses = agent.compute_all()
                self.losses[number] = losses
                self.published[number][agent.version].direction = agent.direction
                yield from self.ended(agent.errors(losses))

    def ended(self, errors: Sequence[NonFiniteLossError | None]) -> Iterator[VariantReport]:
        """Say which variants have ended, by the error of each."""
        for variant in sorted(self.going):
            if error := errors[variant]:
                self.going.discard(variant)
                yield variant, error

    def execute(self, row: Row) -> Iterator[VariantReport]:
        agent, losses = self.variants[row.agent], self.losses[row.agent]
        assert losses is not None
        if row.kind == "rejoined":
            agent.rejoin(self.receive(row), row.step + 1)
            losses = [float("nan")] * len(losses)
            measures: list[dict[str, float]] = [{} for _ in losses]
        else:
            received = self.receive(row)
            with naming(row.agent, row.step):
                measures = agent.apply_all(received, len(row.held))
            yield from self.ended(agent.overflows)
        self.losses[row.agent] = None
        self.publish(row)
        evaluates = self.recipe.evaluates_at(agent.progress)
        snapshots = agent.snapshots() if evaluates else [None] * len(losses)
        for variant in sorted(self.going):
            snapshot, evaluation = snapshots[variant], None
            if snapshot is not None:
                evaluate = partial(agent.evaluate_at, snapshot)
                evaluation, failed = measured(evaluate, self.recipe.task, row.agent, agent.progress)
                if failed is not None:
                    yield variant, failed
            yield (
                variant,
                StepReport(
                    row=row,
                    progress=agent.progress,
                    loss=losses[variant],
                    measures=measures[variant],
                    bytes_sent=agent.message_bytes * len(agent.receivers()),
                    wall_seconds=time.perf_counter() - self.started,
                    snapshot=snapshot,
                    evaluation=evaluation,
                ),
            )
