"""What the live actor of AD-PSGD is made from."""

import time
from typing import Any

import ray
import torch
from ray.actor import ActorHandle

from ray_pcasgd.agents.mailbox import Header, Mailbox
from ray_pcasgd.agents.pair import PairPeer, PairSpec
from ray_pcasgd.engines.failures import measured
from ray_pcasgd.engines.ray.shell import Driving, Shell
from ray_pcasgd.engines.ray.transport import Contents, portable
from ray_pcasgd.engines.ray.validation import Expected, fetch_checked
from ray_pcasgd.records import Row, StepReport, Version
from ray_pcasgd.tasks.task import TaskData


class PairActor(Shell):
    """The actor of an agent that averages in pairs."""

    spec: PairSpec

    def __init__(
        self, spec: PairSpec, data: TaskData, driving: Driving, scheduler: ActorHandle[Any], first_call: int = 0
    ) -> None:
        super().__init__(spec, Mailbox(spec.neighbors), driving, scheduler, first_call)
        self.agent = PairPeer(spec, data)

    @property
    def version(self) -> int:
        """The agent's version."""
        return self.agent.version

    @property
    def device(self) -> torch.device:
        """Where the agent computes."""
        return self.agent.replica.device

    @property
    def expected(self) -> Expected:
        """What the agent's messages must be; its partners' averagings count as versions, without a bound."""
        return Expected(self.spec.neighbors, None, self.agent.weights.numel(), self.agent.buffers.numel())

    def header(self) -> Header:
        """Return the header of the agent's present version."""
        return Header(self.spec.agent, self.agent.version, time.time(), 0.0)

    def contents(self) -> Contents:
        """Return the agent's present version, as it travels."""
        return self.packed(self.agent.weights, self.agent.buffers)

    def open(self, contents: Contents) -> Version:
        """Return a partner's version, fetched."""
        expected = self.expected
        return Version(
            fetch_checked("weights", contents.weights, expected.weights, self.device),
            fetch_checked("buffers", contents.buffers, expected.buffers, self.device),
        )

    def evaluates(self, row: Row) -> bool:
        """Return whether there is an evaluation after the agent's newest row."""
        return row.kind == "step" and self.spec.recipe.evaluates_at(self.agent.progress)

    def submit(self, row: Row, loss: float) -> None:
        """Report a row, with an evaluation where the recipe asks for one."""
        agent, evaluates = self.agent, self.evaluates(row)
        snapshot: Any = ray.put(portable(agent.snapshot())) if evaluates else None
        evaluation, failed = None, None
        if evaluates:
            evaluation, failed = measured(agent.evaluate, self.spec.recipe.task, self.spec.agent, agent.progress)
        report = StepReport(
            row=row,
            progress=agent.progress,
            loss=loss,
            measures={},
            bytes_sent=agent.message_bytes * len(row.reads),
            wall_seconds=self.now(),
            snapshot=snapshot,
            evaluation=evaluation,
        )
        with self.changed:
            self.unsent += [report, *([failed] if failed else [])]
            self.report(flush=evaluates)
