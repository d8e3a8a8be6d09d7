"""Where each method settles on a problem whose minimum differs from worker to worker: least squares, digits by label.

Half the squared error of a linear model with weight decay is a quadratic, so that its minimum is known, and a method
settles, in the mean over the noise, where what its server adds up is zero in the mean.
"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from experiments.convergence.problem import CLASSES, Digits
from experiments.rivals.study import METHODS, Progress, progress, speeds_of
from experiments.running import at_once
from ray_pcasgd.base.own_files import TemporaryFolder
from ray_pcasgd.config import Config
from ray_pcasgd.records import StepReport
from ray_pcasgd.runs.callbacks import Callback
from ray_pcasgd.runs.settings.loading import load_config
from ray_pcasgd.runs.trainer import Trainer
from ray_pcasgd.tasks.samples import Samples

STEP_SIZES = {"sync SGD": 0.5, "K-sync, K = 4": 0.5, "Rennala, K = 8": 0.5, "Malenia": 0.5, "Ringleader": 0.1}
"""Of methods whose updates are of many gradients, none of them late or none very late."""
STEP_SIZE = 0.05
"""Of the others. Where a quadratic settles in the mean does not hang on it; how late a gradient may be does."""
EVALUATIONS = 400
"""Points on the way, about, of which those of the second half count."""


class Settled(Callback):
    """Adds up the server's weights in the second half of a run."""

    def __init__(self, config: Config) -> None:
        self._after = config.num_steps // 2
        self._total = torch.zeros((), dtype=torch.float64)
        self._count = 0

    def on_step(self, report: StepReport) -> None:
        """Take in the weights of a server's step that is evaluated."""
        if report.snapshot is not None and report.progress > self._after:
            self._total = self._total + report.snapshot.weights.double()
            self._count += 1

    @property
    def mean(self) -> Tensor:
        """Their mean, shape (D,), float64."""
        return self._total / self._count


def minimum(shards: Sequence[np.ndarray], pulls: Sequence[float], decay: float) -> Tensor:
    """Return where ``sum_i u_i f_i(x) + (decay / 2) |x|^2`` is least, by the normal equations; (D,), float64.

    f_i is the mean of half the squared error over shard i, and u_i stands in ``pulls``.
    """
    inputs, labels = Digits().tensors
    inputs = torch.cat([inputs.double(), torch.ones(len(inputs), 1, dtype=torch.float64)], 1)
    wanted = torch.nn.functional.one_hot(labels, CLASSES).double()
    hessian = decay * torch.eye(inputs.shape[1], dtype=torch.float64)
    moment = torch.zeros(inputs.shape[1], CLASSES, dtype=torch.float64)
    for shard, pull in zip(shards, pulls, strict=True):
        rows = torch.as_tensor(shard)
        hessian += pull / len(rows) * inputs[rows].T @ inputs[rows]
        moment += pull / len(rows) * inputs[rows].T @ wanted[rows]
    solution = torch.linalg.solve(hessian, moment)
    return torch.cat([solution[:-1].T.reshape(-1), solution[-1]])


def done_by(own: Mapping[str, Any], method: str) -> Progress:
    """Return what a method's server does in its run: all of them move by as much in all, fewer updates by more each."""
    return progress(
        method, speeds_of(own["config"]), updates=round(own["movement"] / STEP_SIZES.get(method, STEP_SIZE))
    )


def config_of(own: Mapping[str, Any], method: str, seed: int) -> Config:
    """Return one run."""
    taken = done_by(own, method).taken
    changes = {
        "algorithm": METHODS[method].model_dump(),
        "num_steps": taken,
        "evaluate_every": max(1, taken // EVALUATIONS),
        "step_size": STEP_SIZES.get(method, STEP_SIZE),
        "seed": seed,
    }
    return load_config(own["config"], changes=changes)


def settled(own: Mapping[str, Any], method: str, seed: int) -> dict[str, Any]:
    """Return how far from the minima a method settles, over their distance from each other.

    ``plain``: from the minimum of the plain mean of the workers' losses. ``paced``: from that of the losses weighted by
    the workers' paces. ``own``: from that of the losses weighted by how much each worker's gradients count in its
    updates (``Progress.pulls``).
    """
    config, storage = config_of(own, method, seed), TemporaryFolder()
    watched = Settled(config)
    result = Trainer(config, callbacks=[watched], storage_path=str(storage.path)).fit()
    storage.remove()
    if result.error is not None:
        raise result.error
    speeds, done = speeds_of(own["config"]), done_by(own, method)
    shards = config.partition.split(Samples(*Digits().tensors), len(speeds), seed)
    decay = config.optimizer.weight_decay  # type: ignore[union-attr]
    total = sum(1 / each for each in speeds)
    pulls = {
        "plain": [1 / len(speeds)] * len(speeds),
        "paced": [1 / each / total for each in speeds],
        "own": done.pulls,
    }
    minima = {name: minimum(shards, weights, decay) for name, weights in pulls.items()}
    between = (minima["plain"] - minima["paced"]).norm()
    apart = {name: float((watched.mean - best).norm() / between) for name, best in minima.items()}
    slow = sum(done.pulls[len(speeds) // 2 :]) / sum(done.pulls)
    labels = {"method": method, "step_size": STEP_SIZES.get(method, STEP_SIZE), "updates": done.updates, "seed": seed}
    return {**labels, "seconds": done.seconds, "slow_half": slow, **apart}


def measure(own: Mapping[str, Any], output: Path, processes: int) -> None:
    """Run all of it, and keep what was measured."""
    pairs = list(itertools.product(METHODS, own["seeds"]))
    with at_once(processes) as pool:
        rows = list(pool.map(settled, itertools.repeat(own), *zip(*pairs, strict=True)))
    pd.DataFrame(rows).to_parquet(output / "bias.parquet", index=False)
