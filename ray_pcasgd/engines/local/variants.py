"""One process, virtual time, several runs at once that differ only in numbers."""

import time
from collections.abc import Iterator, Sequence
from functools import partial

from ray_pcasgd.agents.learner import NonFiniteLossError
from ray_pcasgd.agents.participant import LearnerSpec
from ray_pcasgd.agents.peer import AgentSpec
from ray_pcasgd.agents.variants import Variants
from ray_pcasgd.base.state import State
from ray_pcasgd.engines.base import Leaving, Pause
from ray_pcasgd.engines.failures import measured, naming
from ray_pcasgd.engines.local.engine import LocalSettings, computing_alone
from ray_pcasgd.engines.local.execution import Execution
from ray_pcasgd.records import Event, Row, StepReport
from ray_pcasgd.schedule.scheduler import Schedule
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
    with computing_alone(settings):
        peers = [[spec for spec in own if isinstance(spec, AgentSpec)] for own in specs]
        agents = [Variants(of_one, data) for of_one in zip(*peers, strict=True)]
        execution = _Execution(schedule, agents)
        try:
            execution.go_on(state)
            yield from execution.reports_of_all()
        finally:
            execution.close()


class _Execution(Execution):
    def __init__(self, schedule: Schedule, agents: Sequence[Variants]) -> None:
        super().__init__(schedule, agents, leaving=Leaving())
        self.variants = agents
        self.going = set(range(len(agents[0].specs)))

    def state(self) -> State:
        return super().state() | {"going": sorted(self.going)}

    def restore(self, state: State) -> None:
        super().restore(state)
        self.going = set(state["going"])

    def reports_of_all(self) -> Iterator[VariantReport | Pause]:
        while self.going:
            yield from self.prepare_all()
            ready = self.take_ready()
            if not ready:
                return
            for row in ready:
                yield from self.execute_for_all(row)
            yield from self.pause()

    def prepare_all(self) -> Iterator[VariantReport]:
        """Compute the directions of every agent that has a next step, and say which variants this ends."""
        for agent in self.variants:
            if agent.losses is None and agent.is_running:
                with naming(agent.spec.agent, agent.version):
                    agent.losses = agent.compute_all()
                self.publish_direction(agent)
                yield from self.ended(agent.errors(agent.losses))

    def ended(self, errors: Sequence[NonFiniteLossError | None]) -> Iterator[VariantReport]:
        """Say which variants have ended, by the error of each."""
        for variant in sorted(self.going):
            if error := errors[variant]:
                self.going.discard(variant)
                yield variant, error

    def execute_for_all(self, row: Row) -> Iterator[VariantReport]:
        """Execute a row for all variants, and report it for those that go on."""
        agent, received = self.variants[row.agent], self.receive(row)
        with naming(row.agent, row.step):
            outcomes = agent.take_all(row, received)
        self.note_ends([agent])
        yield from self.ended(agent.overflows)
        self.publish(agent, row)
        self.forget(row)
        point = agent.evaluation_point(row)
        snapshots = [None] * len(outcomes) if point is None else agent.snapshots()
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
                    loss=outcomes[variant].loss,
                    measures=dict(outcomes[variant].measures),
                    bytes_sent=agent.bytes_sent(row),
                    wall_seconds=time.perf_counter() - self.started,
                    snapshot=snapshot,
                    evaluation=evaluation,
                ),
            )
