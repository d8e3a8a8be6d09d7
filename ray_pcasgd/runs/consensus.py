"""The averaged model of all agents, and how far the agents are from it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ray_pcasgd.agents.local_tensors import joined
from ray_pcasgd.agents.module_tensors import public_name
from ray_pcasgd.agents.replica import MixedBuffers, Replica
from ray_pcasgd.records import Snapshot
from ray_pcasgd.tasks.objective import Evaluation
from ray_pcasgd.tasks.task import Task, TaskData


class Consensus(NamedTuple):
    """Several agents' replicas at one version, put together."""

    mean: Snapshot
    """Mean weights and mixed buffers, and what the agents' own tensors make together."""
    distances: dict[int, float]
    """Each agent's Euclidean distance to the mean weights."""

    @property
    def distance(self) -> float:
        """Root mean square of the agents' distances."""
        return float(torch.tensor(list(self.distances.values()), dtype=torch.float64).square().mean().sqrt())


def average(snapshots: Mapping[int, Snapshot]) -> Consensus:
    """Return the consensus of the agents' snapshots, summed in float64 in the agents' order."""
    agents = sorted(snapshots)
    mean = Snapshot(
        _mean([snapshots[i].weights for i in agents]),
        _mean([snapshots[i].buffers for i in agents]),
        joined([snapshots[i].local for i in agents]),
    )
    distances = {i: float((snapshots[i].weights.double() - mean.weights.double()).norm()) for i in agents}
    return Consensus(mean, distances)


def concatenate(snapshots: Mapping[int, Snapshot]) -> Consensus:
    """Return the model whose parts are the servers' snapshots, in the servers' order; there are no distances to it."""
    parts = [snapshots[server] for server in sorted(snapshots)]
    weights = torch.cat([part.weights for part in parts])
    buffers = torch.cat([part.buffers for part in parts])
    return Consensus(Snapshot(weights, buffers, parts[0].local), dict.fromkeys(snapshots, 0.0))


def _mean(tensors: list[Tensor]) -> Tensor:
    total = torch.zeros_like(tensors[0], dtype=torch.float64)
    for tensor in tensors:
        total += tensor
    return (total / len(tensors)).float()


class AveragedModel:
    """Evaluates the averaged model, and writes it in a form that plain PyTorch loads."""

    def __init__(
        self, task: Task, data: TaskData, seed: int, device: str, mixed_buffers: MixedBuffers = "statistics"
    ) -> None:
        self._task = task
        self._data = data
        self._replica = Replica(task.build_model(data, seed), torch.device(device), mixed_buffers)

    @property
    def num_parameters(self) -> int:
        """D."""
        return self._replica.weights.numel()

    def examine_start(self) -> Evaluation:
        """Return the test loss and metrics of the common start, version 0, if no snapshot was evaluated yet."""
        with self._replica.undisturbed():
            return self._task.examine(self._replica.module, self._data, self._replica.device)

    def evaluate(self, snapshot: Snapshot) -> dict[str, float]:
        """Return the test loss and metrics of a snapshot."""
        with self._replica.undisturbed():
            self._replica.load(snapshot.weights, snapshot.buffers)
            self._replica.load_local(snapshot.local)
            return self._task.examine(self._replica.module, self._data, self._replica.device).values

    def first_snapshot(self) -> Snapshot:
        """Return the snapshot that the model was built with."""
        return Snapshot(self._replica.weights, self._replica.buffers, self._replica.copy_of_local())

    def state_dict(self, snapshot: Snapshot) -> dict[str, Any]:
        """Return the state dict of a snapshot, on the CPU; what a module adds to it need not be a tensor."""
        return self._replica.state_dict(*snapshot)

    def bare_state_dict(self, snapshot: Snapshot) -> dict[str, Tensor]:
        """Return a snapshot's parameters and buffers by their names, whatever the module itself makes of them."""
        named = self._replica.named(snapshot.weights, snapshot.buffers) | dict(snapshot.local)
        return {public_name(name): tensor.detach().cpu().clone() for name, tensor in named.items()}
