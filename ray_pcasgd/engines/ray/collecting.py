"""What agents say, as the driver collects it from the scheduler: each call once, whatever is lost on the way."""

from typing import Any

import ray
import torch
from ray.actor import ActorHandle
from ray.exceptions import RayError

from ray_pcasgd.engines.ray.scheduler_actor import Call, Said
from ray_pcasgd.records import Event, Snapshot, StepReport


class Collector:
    """Drains the scheduler's actor."""

    def __init__(self, scheduler: ActorHandle[Any], num_agents: int) -> None:
        self.scheduler = scheduler
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
        """Return what has been said since the last call.

        Raises:
            RayActorError: the scheduler is lost.

        """
        calls: list[Call] = ray.get(self.scheduler.drain.remote(self._received))
        self._received += len(calls)
        said: list[Said] = []
        for agent, number, own in calls:
            if number >= self._next[agent]:
                self._next[agent] = number + 1
                said += [_fetched(one) for one in own]
        return said


def _fetched(said: Said) -> Said:
    """Return a report with its snapshot; without one where it was lost together with its agent."""
    if not isinstance(said, StepReport) or said.snapshot is None:
        return said
    reference: Any = said.snapshot
    try:
        weights, buffers, integers = ray.get(reference)
    except RayError as error:
        detail = f"the evaluation of agent {said.row.agent} at step {said.progress} was lost ({type(error).__name__})"
        return Event("evaluation_lost", said.row.agent, said.progress, detail)
    snapshot = Snapshot(
        torch.from_numpy(weights.copy()),
        torch.from_numpy(buffers.copy()),
        {name: torch.as_tensor(value.copy()) for name, value in integers.items()},
    )
    return said._replace(snapshot=snapshot)
