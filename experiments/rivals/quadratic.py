"""Quadratics ``f(x) = sum_d h_d x_d^2 / 2`` without noise as a task of the package, and how a server's weights move."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from ray_pcasgd.agents.learner import NonFiniteLossError
from ray_pcasgd.engines.local.execution import Execution
from ray_pcasgd.runs.plan.plan import Plan, make_plan
from ray_pcasgd.runs.settings.loading import load_config

Array = npt.NDArray[np.float64]


class Ones(TensorDataset):
    """Samples that are all alike, so that every mini-batch has the whole gradient."""

    def __init__(self) -> None:
        super().__init__(torch.ones(64, 1), torch.zeros(64, 1))


class Bowl(nn.Module):
    """Outputs ``sqrt(h_d) x_d`` of parameters that begin at 1."""

    def __init__(self, curvatures: Sequence[float]) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.ones(len(curvatures)))
        self.roots = [math.sqrt(one) for one in curvatures]

    def forward(self, inputs: Tensor) -> Tensor:
        """Return a row of outputs for each sample."""
        return inputs * self.x * self.x.new_tensor(self.roots)


def half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return half the mean squared distance of the outputs from the target."""
    return 0.5 * (outputs - targets).square().sum(1).mean()


def task(curvatures: Sequence[float]) -> dict[str, Any]:
    """Return the settings of the task."""
    module = "experiments.rivals.quadratic"
    return {
        "data": {"name": "custom", "train": f"{module}:Ones", "test": f"{module}:Ones"},
        "model": {"name": "custom", "factory": f"{module}:Bowl", "arguments": {"curvatures": list(curvatures)}},
        "loss": {"name": "custom", "function": f"{module}:half_square"},
        "metrics": [],
    }


def planned(settings: Mapping[str, Any]) -> Plan:
    """Return the plan of a run with one server and links without delay, on the local engine."""
    return make_plan(load_config({"engine": "local", "links": [], "clusters": 1, "batch_size": 4, **settings}))


def weights_of(plan: Plan, most: int | None = None) -> Array:
    """Return the server's weights before the first update and after each, shape (updates + 1, D).

    After ``most`` updates it stops, and where the weights are no numbers any more.
    """
    agents = [spec.build(plan.data) for spec in plan.specs]
    execution, server = Execution(plan.schedule, agents), agents[-1]
    found = [server.weights.double().numpy()]
    for row in plan.schedule:
        assert row is not None
        try:
            list(execution.execute([row]))
        except NonFiniteLossError:
            break
        if row.agent == server.spec.agent:
            found.append(server.weights.double().numpy())
            if len(found) - 1 == most:
                break
    return np.stack(found)
