"""The package's local engine on small runs, in float32 as it is or in float64, and how far a reference is off."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray

from ray_pcasgd.agents import replica
from ray_pcasgd.agents.worker import Worker
from ray_pcasgd.engines.local.execution import Execution
from ray_pcasgd.records import StepReport
from ray_pcasgd.runs.plan.plan import Plan

Array = NDArray[np.float64]
Versions = Mapping[tuple[int, int], Array]
"""Weights by agent and version, of peers or of servers."""


@contextmanager
def computing_in(dtype: torch.dtype) -> Iterator[None]:
    """Let models, data and the rules' numbers be of a type, float32 or float64.

    The package trains float32 alone: it refuses models of other types, and makes float32 of data by ``Tensor.float``.
    These two are passed over here; all that computes is its own code.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with (
            patch.object(replica, "require_trainable", lambda tensors: None),
            patch.object(torch.Tensor, "float", lambda tensor: tensor.to(dtype)),
        ):
            yield
    finally:
        torch.set_default_dtype(before)


def versions_of(own: Plan) -> Versions:
    """Return the weights that the local engine comes to, after each row of an agent that has weights of its own."""
    execution = Execution(own.schedule, [spec.build(own.data) for spec in own.specs])
    found = {}
    for report in execution.reports():
        if isinstance(report, StepReport):
            agent = execution.agents[report.row.agent]
            if not isinstance(agent, Worker):
                found[report.row.agent, report.row.step + 1] = agent.weights.double().numpy().copy()
    return found


def difference(found: Versions, expected: Versions) -> float:
    """Return the largest relative difference of any version: of its largest numbers, over the reference's.

    Raises:
        KeyError: the reference has not come to a version.
        ValueError: the reference has hardly moved, so that the difference says nothing, or is not finite.

    """
    if np.ptp([expected[key] for key in found], axis=0).max() < 1e-3:
        raise ValueError("no agent has moved by a thousandth")
    largest = max(float(np.abs(x - expected[key]).max() / np.abs(expected[key]).max()) for key, x in found.items())
    if not all(np.isfinite(x).all() and np.isfinite(expected[key]).all() for key, x in found.items()):
        raise ValueError("not all weights are finite")
    return largest
