"""The runs of the study: shards, gathering policies, step sizes and seeds, for the same virtual seconds."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.running import Job, measured
from ray_pcasgd.rules.balanced import Ringleader
from ray_pcasgd.rules.delay_threshold import Rennala, Ringmaster
from ray_pcasgd.rules.gathering import ASGD, Gathering, KSync
from ray_pcasgd.runs.settings.loading import load_config
from ray_pcasgd.schedule.delays import ComputeTimes
from ray_pcasgd.schedule.plan_servers import ServerPlanner

HERE = Path(__file__).parent
SHARDS: dict[str, Any] = {"alike": "iid", "skewed (Dirichlet, 0.1)": {"name": "dirichlet", "alpha": 0.1}}
METHODS: dict[str, Gathering] = {
    "K-sync, K = 4": KSync(k=4),
    "ASGD": ASGD(),
    "Ringmaster, R = 8": Ringmaster(delay_threshold=8),
    "Rennala, K = 8": Rennala(k=8),
    "Ringleader": Ringleader(),
}
TUNING_SEED = 0
VALIDATION_SHARE = 0.1


@cache  # shards, step sizes and seeds change nothing in it
def progress(method: str, seconds: float, speeds: tuple[float, ...]) -> tuple[int, int]:
    """Return how many mini-batches for each worker the server has taken after so many seconds, and in how many updates.

    It is at least one.
    """
    num_workers = len(speeds)
    laws = {k: {"name": "constant", "value": value} for k, value in enumerate(speeds)}
    planner = ServerPlanner(
        compute=ComputeTimes.model_validate({"agents": laws}),
        links=(),
        clusters=(0,) * (num_workers + 1),
        seed=0,
        num_workers=num_workers,
        num_servers=1,
        gathering=METHODS[method],
        num_steps=1_000_000,
        local_steps=(1,) * num_workers,
        reads_before=0,
    )
    batches = updates = 0
    for row in planner:
        assert row is not None
        if row.end > seconds:
            break
        if row.agent == num_workers:
            batches += len(row.reads)
            updates += 1
    return max(1, batches // num_workers), updates


def job(settings: Mapping[str, Any], shards: str, method: str, step_size: float, seed: int, validates: bool) -> Job:
    """Return one run."""
    speeds = tuple(settings["config"]["compute"]["agents"].values())
    num_steps, updates = progress(method, settings["seconds"], speeds)
    changes = {
        "algorithm": {"name": "server", "gathering": METHODS[method].model_dump()},
        "partition": SHARDS[shards],
        "num_steps": num_steps,
        "evaluate_every": num_steps,
        "step_size": step_size,
        "seed": seed,
        "task": {"validation_share": VALIDATION_SHARE if validates else 0.0},
    }
    labels = {"shards": shards, "method": method, "step_size": step_size, "seed": seed, "validates": validates}
    labels |= {"updates": updates, "taken": num_steps}
    return Job(labels, load_config(settings["config"], changes=changes))


def tuning_jobs(settings: Mapping[str, Any]) -> Iterator[Job]:
    """Yield the runs by which each method's step size is chosen."""
    for shards in SHARDS:
        for method in METHODS:
            for step_size in settings["step_sizes"]:
                yield job(settings, shards, method, step_size, TUNING_SEED, True)


def measure(settings: Mapping[str, Any], storage: Path, output: Path, processes: int) -> None:
    """Run what is missing, and keep what was measured."""
    tuning = measured(tuning_jobs(settings), storage, processes)
    best = {
        key: float(group.loc[group["test_loss"].fillna(float("inf")).idxmin(), "step_size"])
        for key, group in tuning.groupby(["shards", "method"], sort=False)
    }
    seeds: Sequence[int] = settings["seeds"]
    jobs = [job(settings, *key, step_size, seed, False) for key, step_size in best.items() for seed in seeds]
    results = pd.concat([tuning, measured(jobs, storage, processes)], ignore_index=True)
    results.drop(columns=["path", "run"]).to_parquet(output / "results.parquet", index=False)
