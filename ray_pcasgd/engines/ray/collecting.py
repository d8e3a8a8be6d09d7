"""Collects for the driver what agents report to the scheduler: each call once, whatever is lost meanwhile."""

from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError
from torch.utils._pytree import tree_map

from ray_pcasgd.engines.ray.scheduler_actor import Call, Said
from ray_pcasgd.engines.ray.transport import as_tensor
from ray_pcasgd.records import Event, Snapshot, StepReport


class Collector:
    """Drains the scheduler's actor."""

    def __init__(self, scheduler: ActorHandle[Any], num_agents: int, answer_seconds: float) -> None:
        self.scheduler = scheduler
        self._answer_seconds = answer_seconds
        self._received = 0
        self._next = [0] * num_agents
        """The number of each agent's next call."""

    def replace(self, scheduler: ActorHandle[Any]) -> None:
        """Drain another scheduler from now on, to which agents say again what may not have come."""
        self.scheduler = scheduler
        self._received = 0

    def next_call(self, agent: int) -> int:
        """Return the number of an agent's next call."""
        return self._next[agent]

    def drain(self) -> list[Said]:
        """Return what agents have reported since the last call.

        Raises:
            RayError: the scheduler is lost, or does not answer.

        """
        calls: list[Call] = ray.get(self.scheduler.drain.remote(self._received), timeout=self._answer_seconds)
        self._received += len(calls)
        said: list[Said] = []
        for agent, number, own in calls:
            if number >= self._next[agent]:
                self._next[agent] = number + 1
                said += [report for one in own for report in self._fetched(one)]
        return said

    def _fetched(self, said: Said) -> list[Said]:
        """Return a report with its snapshot; where that was lost with its agent, an event and the rest of it."""
        if not isinstance(said, StepReport) or said.snapshot is None:
            return [said]
        reference: Any = said.snapshot
        try:
            snapshot = Snapshot(*tree_map(as_tensor, ray.get(reference, timeout=self._answer_seconds)))
        except RayError as error:
            agent, reason = said.row.agent, type(error).__name__
            detail = f"the evaluation of agent {agent} at step {said.progress} was lost ({reason})"
            lost = Event("evaluation_lost", agent, said.progress, detail)
            # The step itself was taken: without its row, the rows after it would have none before them.
            return [lost, said._replace(snapshot=None, evaluation=None)]
        return [said._replace(snapshot=snapshot)]
