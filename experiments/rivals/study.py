"""The runs of the study: shards, methods, step sizes and seeds, for the same virtual seconds."""

import itertools
import math
from collections.abc import Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch

from experiments.rivals.search import Choice, grid, jobs_of, search
from experiments.running import Job, evaluations, measured
from ray_pcasgd.rules.balanced import IA2SGD, Malenia, Ringleader
from ray_pcasgd.rules.correction import Dampened
from ray_pcasgd.rules.delay_threshold import Rennala, Ringmaster
from ray_pcasgd.rules.gathering import ASGD, KSync, Sync
from ray_pcasgd.rules.lateness import ExponentialWeight, HingeWeight, PolynomialWeight
from ray_pcasgd.rules.parameter_server import ParameterServer
from ray_pcasgd.runs.settings.loading import load_config
from ray_pcasgd.schedule.delays import ComputeTimes
from ray_pcasgd.schedule.plan_servers import ServerPlanner

HERE = Path(__file__).parent
SHARDS: dict[str, Any] = {"alike": "iid", "skewed (Dirichlet, 0.1)": {"name": "dirichlet", "alpha": 0.1}}
METHODS: dict[str, ParameterServer] = {
    "sync SGD": ParameterServer(gathering=Sync()),
    "K-sync, K = 4": ParameterServer(gathering=KSync(k=4), micro_batches=1),
    "ASGD": ParameterServer(gathering=ASGD()),
    "ASGD, polynomial": ParameterServer(correction=Dampened(weighting=PolynomialWeight())),
    "ASGD, hinge": ParameterServer(correction=Dampened(weighting=HingeWeight())),
    "ASGD, exponential": ParameterServer(correction=Dampened(weighting=ExponentialWeight())),
    "Ringmaster, R = 8": ParameterServer(gathering=Ringmaster(delay_threshold=8)),
    "Ringmaster, R = 8, stops": ParameterServer(gathering=Ringmaster(delay_threshold=8, stops=True), micro_batches=1),
    "Rennala, K = 8": ParameterServer(gathering=Rennala(k=8)),
    "Malenia": ParameterServer(gathering=Malenia()),
    "Ringleader": ParameterServer(gathering=Ringleader()),
    "IA2SGD": ParameterServer(gathering=IA2SGD()),
}
"""The settings of each; polynomial, hinge and exponential: the laws by which late gradients of ASGD count less.

Mini-batches stay whole: by virtual time it is known from the start what is given up.
"""
CHOICE = Choice(("shards", "method"), "test_loss")
EVALUATIONS = 50
"""Tests on the way of a run whose curve is drawn, about; of a method with few updates as many as it has."""
TUNING_SEED = 0
VALIDATION_SHARE = 0.1


class Progress(NamedTuple):
    """What a server has done by some time."""

    taken: int
    """Mini-batches for each worker, one at least."""
    updates: int
    seconds: float
    """When it made the last update, in virtual seconds."""
    pulls: tuple[float, ...]
    """By how much each worker's gradients count in an update, in the mean: together 1, or less where dampened."""


@cache  # shards, step sizes and seeds change nothing in it
def progress(method: str, speeds: tuple[float, ...], seconds: float = math.inf, updates: float = math.inf) -> Progress:
    """Return what the server has done after so many seconds or updates, where workers take ``speeds`` a mini-batch."""
    rule, num_workers = METHODS[method], len(speeds)
    counts, taken, made, last = [0.0] * num_workers, 0, 0, 0.0
    for row in _planner(rule, speeds):
        assert row is not None
        if row.end > seconds or made >= updates:
            break
        if row.agent < num_workers:
            continue
        for read in row.reads:
            counts[read.neighbor] += _weight(method, read.staleness)
        taken, made, last = taken + len(row.reads), made + 1, row.end
    alike = rule.gathering.averages != "gradients"
    pulls = (1 / num_workers,) * num_workers if alike else tuple(count / max(1, taken) for count in counts)
    return Progress(max(1, taken // num_workers), made, last, pulls)


def _planner(rule: ParameterServer, speeds: tuple[float, ...]) -> ServerPlanner:
    laws = {k: {"name": "constant", "value": value} for k, value in enumerate(speeds)}
    return ServerPlanner(
        compute=ComputeTimes.model_validate({"agents": laws}),
        links=(),
        clusters=(0,) * (len(speeds) + 1),
        seed=0,
        num_workers=len(speeds),
        num_servers=1,
        gathering=rule.gathering,
        num_steps=1_000_000,
        local_steps=(1,) * len(speeds),
        reads_before=0,
    )


@cache
def _weight(method: str, staleness: int) -> float:
    correction = METHODS[method].correction
    return float(correction.weighting.of(torch.tensor(float(staleness)))) if isinstance(correction, Dampened) else 1.0


def speeds_of(config: Mapping[str, Any]) -> tuple[float, ...]:
    """Return the seconds that each worker takes for a mini-batch."""
    return tuple(config["compute"]["agents"].values())


def job(settings: Mapping[str, Any], shards: str, method: str, step_size: float, seed: int, validates: bool) -> Job:
    """Return one run."""
    done = progress(method, speeds_of(settings["config"]), settings["seconds"])
    changes = {
        "algorithm": METHODS[method].model_dump(),
        "partition": SHARDS[shards],
        "num_steps": done.taken,
        "evaluate_every": done.taken if validates else max(1, done.taken // EVALUATIONS),
        "step_size": step_size,
        "seed": seed,
        "task": {"validation_share": VALIDATION_SHARE if validates else 0.0},
    }
    labels = {"shards": shards, "method": method, "step_size": step_size, "seed": seed, "validates": validates}
    labels |= {"updates": done.updates, "taken": done.taken}
    return Job(labels, load_config(settings["config"], changes=changes))


def cases() -> list[tuple[str, str]]:
    """Return the shards and methods that have a step size of their own."""
    return list(itertools.product(SHARDS, METHODS))


def tuning_jobs(settings: Mapping[str, Any]) -> Iterator[Job]:
    """Yield the runs by which each method's step size is chosen, without those beyond the grid."""
    return jobs_of(partial(job, settings), grid(cases(), settings), settings)


def measure(settings: Mapping[str, Any], storage: Path, output: Path, processes: int) -> None:
    """Run what is missing, and keep what was measured: at the end, and on the way."""
    own = partial(job, settings)
    tuning = search(own, cases(), CHOICE, settings, storage, processes)
    best = CHOICE.chosen(tuning)
    jobs = [own(*case, step_size, seed, False) for case, step_size in best.items() for seed in settings["seeds"]]
    final = measured(jobs, storage, processes)
    labels = [*CHOICE.columns, "seed"]
    curves = evaluations(final, labels)[[*labels, "seconds", "test_accuracy", "test_loss"]]
    curves.to_parquet(output / "curves.parquet", index=False)
    results = pd.concat([tuning, final], ignore_index=True)
    results.drop(columns=["path", "run"]).to_parquet(output / "results.parquet", index=False)
