"""One process, virtual time: executes the rows of AD-PSGD one after another."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence

from ray_pcasgd.agents.pair import PairPeer, PairSpec
from ray_pcasgd.engines.base import RunError
from ray_pcasgd.engines.failures import measured, naming
from ray_pcasgd.records import Event, Read, Row, StepReport, Version
from ray_pcasgd.tasks.task import TaskData


def pair_reports(rows: Iterator[Row | None], specs: Sequence[PairSpec], data: TaskData) -> Iterator[StepReport | Event]:
    """Execute all rows in their order; see ``Engine.run``."""
    known = [row for row in rows if row is not None]
    execution = _Execution(specs, data, known)
    for row in known:
        yield execution.execute(row)
        yield from execution.events
        execution.events.clear()


class _Execution:
    def __init__(self, specs: Sequence[PairSpec], data: TaskData, rows: Sequence[Row]) -> None:
        self.specs = specs
        self.data = data
        self.agents = [self.built(agent) for agent in range(len(specs))]
        self.losses = [self.compute(agent) for agent in self.agents]
        self.events: list[Event] = []
        """What is still to be reported."""
        self.to_read = Counter(read[:2] for row in rows for read in row.reads)
        """By agent and version, how often it will still be read."""
        self.kept: dict[tuple[int, int], Version] = {}
        """Versions that their agents have left, and that are still to be read."""
        self.started = time.perf_counter()

    def built(self, agent: int) -> PairPeer:
        with naming(agent, 0):
            return PairPeer(self.specs[agent], self.data)

    def compute(self, agent: PairPeer) -> float:
        with naming(agent.spec.agent, agent.progress):
            return agent.check_finite(agent.compute())

    def execute(self, row: Row) -> StepReport:
        agent, loss = self.agents[row.agent], self.losses[row.agent]
        if agent.version != row.step and (row.kind != "rejoined" or row.step < agent.version):
            raise RunError(f"schedule: agent {row.agent} has a row for step {row.step} at its version {agent.version}")
        found = [self.read(row, read) for read in row.reads]
        if self.to_read[row.agent, agent.version]:
            self.kept[row.agent, agent.version] = agent.present
        if row.kind == "passive":
            agent.answer(found[0])
            return self.report(row, agent, float("nan"))
        if row.kind == "rejoined":
            steps = agent.steps
            agent = self.agents[row.agent] = self.built(row.agent)
            agent.rejoin(found, row.step + 1, steps)
            loss = float("nan")
        else:
            agent.step(found[0] if found else None)
        report = self.report(row, agent, loss)
        if agent.steps < agent.spec.recipe.num_steps:
            self.losses[row.agent] = self.compute(agent)
        return report

    def read(self, row: Row, read: Read) -> Version:
        """Return another agent as it was at a version: as it is, or as it was kept when it left that."""
        key, other = read[:2], self.agents[read.neighbor]
        if key not in self.kept and other.version != read.version:
            raise RunError(
                f"schedule: agent {row.agent} reads at step {row.step} version {read.version} of agent "
                f"{read.neighbor}, which is at version {other.version}"
            )
        self.to_read[key] -= 1
        if key not in self.kept:
            return other.present
        return self.kept[key] if self.to_read[key] else self.kept.pop(key)

    def report(self, row: Row, agent: PairPeer, loss: float) -> StepReport:
        recipe = agent.spec.recipe
        evaluates = row.kind == "step" and recipe.evaluates_at(agent.progress)
        evaluation = None
        if evaluates:
            evaluation, failed = measured(agent.evaluate, recipe.task, row.agent, agent.progress)
            self.events += [failed] if failed else []
        return StepReport(
            row=row,
            progress=agent.progress,
            loss=loss,
            measures={},
            bytes_sent=agent.message_bytes * len(row.reads),
            wall_seconds=time.perf_counter() - self.started,
            snapshot=agent.snapshot() if evaluates else None,
            evaluation=evaluation,
        )
