"""The runs of the study: numbers of workers, n, with and without the staleness-aware step size."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.running import Job, measured
from ray_pcasgd.runs.settings.loading import load_config

HERE = Path(__file__).parent
CORRECTIONS = {"modulated": "staleness-aware", "not modulated": "none"}


def other_gatherings(workers: int) -> dict[str, dict[str, Any]]:
    """Return the gatherings, by name, that limit staleness themselves, so that the step size is not modulated."""
    return {
        "hardsync": {"name": "sync"},
        "K-sync, K = workers / 2": {"name": "k-sync", "k": workers // 2},
        "Ringmaster, R = workers": {"name": "ringmaster", "delay_threshold": workers},
        "Rennala, K = workers": {"name": "rennala", "k": workers},
    }


def measure(settings: Mapping[str, Any], storage: Path, output: Path, processes: int) -> None:
    """Run what is missing, and write what was measured."""
    jobs = [job for task, own in settings.items() for job in jobs_of(task, own)]
    runs: pd.DataFrame = measured(jobs, storage, processes)
    runs.drop(columns="path").to_parquet(output / "runs.parquet", index=False)


def jobs_of(task: str, settings: Mapping[str, Any]) -> Iterator[Job]:
    """Yield the runs on one task; what is no n-softsync stands under n = 0."""
    for workers in settings["workers"]:
        asked = [n or workers for n in settings["n"]]
        for step_size in settings["step_sizes"]:
            for seed in range(settings["seeds"]):
                labels = {"task": task, "workers": workers, "step_size": step_size, "seed": seed}
                for name, gathering in other_gatherings(workers).items():
                    yield _job(settings, {**labels, "n": 0, "correction": name}, {"gathering": gathering})
                for n in sorted({n for n in asked if n <= workers}):
                    for label, correction in CORRECTIONS.items():
                        algorithm = {"gathering": {"name": "n-softsync", "n": n}, "correction": correction}
                        yield _job(settings, {**labels, "n": n, "correction": label}, algorithm)


def _job(settings: Mapping[str, Any], labels: Mapping[str, Any], algorithm: Mapping[str, Any]) -> Job:
    batch_size, workers = settings["config"]["batch_size"], labels["workers"]
    num_steps = max(1, round(settings["epochs"] * settings["samples"] / (batch_size * workers)))
    changes = {
        "algorithm": {"name": "server", **algorithm},
        "num_agents": workers,
        "num_steps": num_steps,
        "evaluate_every": num_steps,
        "step_size": labels["step_size"],
        "seed": labels["seed"],
    }
    return Job(labels, load_config(settings["config"], changes=changes))
