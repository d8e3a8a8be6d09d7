"""A metric that takes as long as its test wants it to, in the process that evaluates the averaged model."""

from pathlib import Path

import ray
from torch import Tensor


def gated_accuracy(outputs: Tensor, targets: Tensor, gate: str) -> Tensor:
    """Return the share of right answers; in the process of evaluations only once nobody holds the gate, a pipe."""
    in_worker = ray.is_initialized() and ray.get_runtime_context().worker.mode == ray.WORKER_MODE
    evaluates = in_worker and (ray.get_runtime_context().get_actor_name() or "").endswith(" evaluation")
    if evaluates and Path(gate).is_fifo():
        Path(gate).read_bytes()
    return (outputs.argmax(1) == targets).float().mean()
