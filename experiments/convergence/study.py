"""The runs of the study: all thetas and step sizes of a case at once, each measured by its distance to the optimum."""

import itertools
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor

from experiments.convergence.problem import LOSSES, Digits, FewDigits, Optimum, optimum
from experiments.running import at_once
from ray_pcasgd.base.own_files import TemporaryFolder
from ray_pcasgd.records import StepReport
from ray_pcasgd.runs.callbacks import Callback
from ray_pcasgd.runs.plan.plan import make_plan
from ray_pcasgd.runs.settings.loading import load_config
from ray_pcasgd.runs.trainer import fit_together
from ray_pcasgd.schedule.network import build_network

HERE = Path(__file__).parent
TAIL = 0.25
"""Share of the steps at the end over which the floor is averaged."""


class Case(NamedTuple):
    """What is run at once: every theta with every step size."""

    problem: str
    partition: str
    delay: int
    topology: str
    seed: int


class Distances(Callback):
    """Notes, at every evaluation, how far the agents are from their mean, and their mean from the optimum."""

    def __init__(self, optimum: Optimum, num_agents: int) -> None:
        self._optimum = optimum.weights
        self._num_agents = num_agents
        self._open: dict[int, list[Tensor]] = {}
        self.rows: list[dict[str, float]] = []

    def on_step(self, report: StepReport) -> None:
        if report.snapshot is None:
            return
        agents = self._open.setdefault(report.progress, [])
        agents.append(report.snapshot.weights.double())
        if len(agents) == self._num_agents:
            weights = torch.stack(self._open.pop(report.progress))
            mean = weights.mean(0)
            self.rows.append(
                {
                    "step": report.progress,
                    "error": float((mean - self._optimum).square().sum()),
                    "consensus": float((weights - mean).square().sum(1).mean().sqrt()),
                }
            )


def measure(settings: Mapping[str, Any], storage: Path, output: Path, processes: int) -> None:
    """Run what is missing, and write what was measured."""
    with at_once(processes) as pool:
        frames = list(pool.map(run_case, cases(settings), itertools.repeat(settings), itertools.repeat(storage)))
    pd.concat(frames, ignore_index=True).to_parquet(output / "results.parquet", index=False)


def cases(settings: Mapping[str, Any]) -> list[Case]:
    """Return every case once: all delays on the first topology, all topologies at one delay."""
    first = settings["topologies"][0]
    pairs = [(delay, first) for delay in settings["delays"]]
    pairs += [(settings["topology_delay"], topology) for topology in settings["topologies"]]
    return [
        Case(problem, partition, delay, topology, seed)
        for problem, partition, (delay, topology), seed in itertools.product(
            settings["problems"], settings["partitions"], dict.fromkeys(pairs), range(settings["seeds"])
        )
    ]


def run_case(case: Case, settings: Mapping[str, Any], storage: Path) -> pd.DataFrame:
    """Return a row for each theta and step size: floor and rate of the error, consensus distance at the end."""
    file = storage / f"{'-'.join(map(str, case)).replace(' ', '-')}.parquet"
    if file.exists():
        return pd.read_parquet(file)
    runs = TemporaryFolder()  # nobody looks at them
    partition = {"name": "by-label", "labels_per_agent": 2} if case.partition == "by-label" else case.partition
    base = load_config(
        settings["config"],
        changes={
            "task": {
                "data": {"name": "custom", "train": Digits(), "test": FewDigits()},
                "model": {"name": "mlp", "hidden": []},
                "loss": LOSSES[case.problem],
            },
            "links": [{"between": "clusters", "delay": case.delay}],
            "topology": case.topology,
            "partition": partition,
            "seed": case.seed,
            "storage_path": str(runs.path),
        },
    )
    points = list(itertools.product(settings["thetas"], settings["step_sizes"]))
    configs = [
        load_config(
            base,
            changes={
                "algorithm": {"name": "pc-asgd", "theta": theta},
                "step_size": eta,
                "name": f"{theta:g}-{eta:g}",
            },
        )
        for theta, eta in points
    ]
    plan = make_plan(configs[0])
    best = optimum(case.problem, [spec.shard for spec in plan.specs], base.optimizer.weight_decay)
    callbacks = [Distances(best, base.num_agents) for _ in points]
    results = fit_together(configs, [[callback] for callback in callbacks])
    gap = build_network(base.topology, base.mixing, base.num_agents, base.seed).spectral_gap
    rows = [
        {
            **case._asdict(),
            "theta": theta,
            "step_size": eta,
            "smallest": best.smallest,
            "largest": best.largest,
            "distance": float(best.weights.square().sum()),
            "spectral_gap": gap,
            **summary(pd.DataFrame(callback.rows), diverged=result.error is not None),
        }
        for (theta, eta), callback, result in zip(points, callbacks, results, strict=True)
    ]
    runs.remove()
    frame = pd.DataFrame(rows)
    frame.to_parquet(file, index=False)
    return frame


def summary(curve: pd.DataFrame, diverged: bool) -> dict[str, float]:
    """Return the floor of the error, its rate before that, and the consensus distance at the end."""
    if diverged or not (len(curve) and math.isfinite(curve["error"].iloc[-1])):
        return {"floor": math.inf, "rate": math.nan, "consensus": math.inf}
    tail = curve[curve["step"] > (1 - TAIL) * curve["step"].max()]
    floor = float(tail["error"].mean())
    return {"floor": floor, "rate": _rate(curve, floor), "consensus": float(tail["consensus"].mean())}


def _rate(curve: pd.DataFrame, floor: float) -> float:
    """Return -d log(error) / d step while the error is well above its floor; NaN where it never is for long."""
    far = curve[curve["error"] > 4 * floor]
    if len(far) < 3:
        return math.nan
    logarithms = far["error"].map(math.log)
    steps = far["step"] - far["step"].mean()
    return -float((steps * logarithms).sum() / (steps**2).sum())


def iterations(frame: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Yield what was measured, by problem and partition."""
    for (problem, partition), part in frame.groupby(["problem", "partition"], sort=False):
        yield problem, partition, part
