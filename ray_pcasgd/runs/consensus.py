"""The averaged model of all agents, and how far the agents are from it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ray_pcasgd.agents.local_tensors import joined
from ray_pcasgd.agents.module_tensors import named_tensors, public_name
from ray_pcasgd.agents.replica import MixedBuffers, Replica
from ray_pcasgd.base.determinism import deterministic
from ray_pcasgd.base.text import one_line
from ray_pcasgd.engines.local.engine import LocalSettings
from ray_pcasgd.engines.ray.settings import RaySettings
from ray_pcasgd.records import Snapshot
from ray_pcasgd.runs.storage.pretrained import configuration_files
from ray_pcasgd.tasks.objective import Evaluation
from ray_pcasgd.tasks.precision import Precision, computing, fitting
from ray_pcasgd.tasks.task import Task, TaskData

_LONGEST = 400
"""Characters of a reason that are shown."""


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
    """Return the consensus of the agents' snapshots, summed in float64 in the agents' order, on the CPU.

    So distances are the same bits wherever the agents compute: a GPU sums in another order.
    """
    snapshots = {agent: _on_cpu(snapshot) for agent, snapshot in snapshots.items()}
    agents = sorted(snapshots)
    mean = Snapshot(
        _mean([snapshots[i].weights for i in agents]),
        _mean([snapshots[i].buffers for i in agents]),
        joined([snapshots[i].local for i in agents]),
    )
    distances = {i: float((snapshots[i].weights.double() - mean.weights.double()).norm()) for i in agents}
    return Consensus(mean, distances)


def _on_cpu(snapshot: Snapshot) -> Snapshot:
    return snapshot._replace(weights=snapshot.weights.cpu(), buffers=snapshot.buffers.cpu())


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


def evaluation_device(engine: LocalSettings | RaySettings) -> str:
    """Return where the averaged model is tested: as the agents are, or on the CPU where this machine has no such GPU.

    A run on CPUs uses no GPU, though there may be one: it was not asked for, and gives other bits.
    """
    wanted = torch.device(engine.device)
    return str(wanted) if wanted.type == "cpu" or (wanted.index or 0) < torch.cuda.device_count() else "cpu"


class AveragedModel:
    """Evaluates the averaged model, and writes it in a form that plain PyTorch loads."""

    def __init__(
        self,
        task: Task,
        data: TaskData,
        seed: int,
        device: str,
        mixed_buffers: MixedBuffers = "statistics",
        precision: Precision = "float32",
    ) -> None:
        self._task = task
        self._data = data
        self._replica = Replica(task.build_model(data, seed), torch.device(device), mixed_buffers)
        self._precision = fitting(precision, self._replica.device)

    @property
    def num_parameters(self) -> int:
        """D."""
        return self._replica.weights.numel()

    def examine(self) -> Evaluation:
        """Return the test loss and metrics, with remarks, of the model as it is: first the common start, version 0."""
        with self._replica.undisturbed():
            return self._examined()

    def evaluate(self, snapshot: Snapshot) -> dict[str, float]:
        """Return the test loss and metrics of a snapshot."""
        with self._replica.undisturbed():
            self._replica.load(snapshot.weights, snapshot.buffers)
            self._replica.load_local(snapshot.local)
            return self._examined().values

    def _examined(self) -> Evaluation:
        replica = self._replica
        with deterministic(replica.device), computing(self._precision, replica.device):
            return self._task.examine(replica.module, self._data, replica.device)

    def take_state(self, state: Mapping[str, Any]) -> None:
        """Make the model that of a state dict which ``state_dict`` or ``bare_state_dict`` has returned.

        Its tensors lie where they do in a run, so that it gives the figures of the run to the bit.

        Raises:
            ValueError: it is that of another model.

        """
        module, replica = self._replica.module, self._replica
        # Buffers that only a first batch makes.
        made = {name: public_name(name) for name, form in replica.forms.items() if form is None}
        replica.load_local(
            replica.copy_of_local() | {name: state[public] for name, public in made.items() if public in state}
        )
        try:
            own, is_whole = {public_name(name): name for name in module.state_dict()}, True
        except Exception:  # of a module that cannot say its own, parameters and buffers were written
            own, is_whole = {public_name(name): name for name in named_tensors(module)}, False
        try:
            module.load_state_dict({own.get(name, name): value for name, value in state.items()}, strict=is_whole)
        except Exception as error:  # whatever the module's own code raises
            raise ValueError(one_line(error, _LONGEST)) from error

    def configuration_files(self) -> dict[str, bytes]:
        """Return the configuration of a Hugging Face transformers model as files, by their names; of others, none."""
        return configuration_files(self._replica.module)

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
