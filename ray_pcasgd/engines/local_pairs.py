"""One process, virtual time: executes the rows of AD-PSGD one after another."""

import time
from collections.abc import Iterator, Sequence

from ray_pcasgd.engines.base import RunError
from ray_pcasgd.pairs import PairAgent, PairSpec
from ray_pcasgd.records import Row, StepReport, Version
from ray_pcasgd.tasks.task import TaskData


def pair_reports(rows: Iterator[Row | None], specs: Sequence[PairSpec], data: TaskData) -> Iterator[StepReport]:
    """Execute all rows in their order; see ``Engine.run``."""
    execution = _Execution(specs, data)
    for row in rows:
        assert row is not None
        yield execution.execute(row)


class _Execution:
    def __init__(self, specs: Sequence[PairSpec], data: TaskData) -> None:
        self.agents = [PairAgent(spec, data) for spec in specs]
        self.losses = [agent.check_finite(agent.compute()) for agent in self.agents]
        self.kept: dict[tuple[int, int], Version] = {}
        """What agents were before an averaging, by agent and version, until their partners have it."""
        self.started = time.perf_counter()

    def execute(self, row: Row) -> StepReport:
        agent, loss = self.agents[row.agent], self.losses[row.agent]
        if agent.version != row.step:
            raise RunError(f"schedule: agent {row.agent} has a row for step {row.step} at its version {agent.version}")
        partner = self.read(row)
        if row.kind == "passive":
            assert partner is not None
            agent.answer(partner)
            return self.report(row, agent, float("nan"))
        agent.step(partner)
        report = self.report(row, agent, loss)
        if agent.steps < agent.spec.recipe.num_steps:
            self.losses[row.agent] = agent.check_finite(agent.compute())
        return report

    def read(self, row: Row) -> Version | None:
        """Return the partner before the averaging: of the two rows of a pair, the second finds it kept by the first."""
        if not row.reads:
            return None
        (read,) = row.reads
        kept = self.kept.pop((read.neighbor, read.version), None)
        if kept is not None:
            return kept
        partner = self.agents[read.neighbor]
        if partner.version != read.version:
            raise RunError(
                f"schedule: agent {row.agent} averages at step {row.step} with version {read.version} of agent "
                f"{read.neighbor}, which is at version {partner.version}, and was not averaged with there"
            )
        self.kept[row.agent, row.step] = self.agents[row.agent].present
        return partner.present

    def report(self, row: Row, agent: PairAgent, loss: float) -> StepReport:
        evaluates = row.kind == "step" and agent.spec.recipe.evaluates_at(agent.progress)
        return StepReport(
            row=row,
            progress=agent.progress,
            loss=loss,
            measures={},
            bytes_sent=agent.message_bytes * len(row.reads),
            wall_seconds=time.perf_counter() - self.started,
            snapshot=agent.snapshot() if evaluates else None,
            evaluation=agent.evaluate() if evaluates else None,
        )
