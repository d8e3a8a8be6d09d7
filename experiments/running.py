"""Runs of a study: named after their settings, so that no run is repeated, and several at a time."""

import argparse
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pandas as pd
import yaml

from experiments.studies import ensure_run
from ray_pcasgd.config import Config
from ray_pcasgd.runs.settings.loading import load_config

SCALES = ("smoke", "cpu", "paper")
T = TypeVar("T")


class Job(NamedTuple):
    """One run, and what it stands for in the study."""

    labels: Mapping[str, Any]
    config: Config


def arguments_of(folder: Path, description: str | None) -> argparse.Namespace:
    """Return what a study's command line says: ``scale``, ``storage``, ``output``, ``processes``, ``page``."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--scale", choices=SCALES, default="cpu", help="smoke: seconds; cpu: on 2 cores; paper: on GPUs"
    )
    parser.add_argument("--storage", type=Path, help="folder of the runs; those that are there are not run again")
    parser.add_argument("--output", type=Path, help="folder of what is measured")
    parser.add_argument("--processes", type=int, help="runs at the same time; a core each, or one on GPUs")
    parser.add_argument("--page", action="store_true", help="only write the page anew, from what was measured")
    arguments = parser.parse_args()
    # On the ray engine, a run has all of the cluster that its agents ask for.
    arguments.processes = arguments.processes or (1 if arguments.scale == "paper" else os.cpu_count() or 1)
    own = Path("runs") / f"{folder.name}-{arguments.scale}"
    arguments.storage = arguments.storage or own
    # What the repository holds was measured at the cpu scale.
    arguments.output = arguments.output or (folder if arguments.scale == "cpu" else own)
    arguments.output.mkdir(parents=True, exist_ok=True)
    return arguments


def run_study(
    folder: Path, description: str | None, measure: Callable[..., None], write_page: Callable[..., None]
) -> None:
    """Do what a study's command line asks for: ``measure`` what is missing, then ``write_page`` from what is there."""
    arguments = arguments_of(folder, description)
    settings = settings_of(folder, arguments.scale)
    arguments.storage.mkdir(parents=True, exist_ok=True)
    if not arguments.page:
        measure(settings, arguments.storage, arguments.output, arguments.processes)
    write_page(settings, arguments.output, arguments.scale)


def settings_of(folder: Path, scale: str) -> dict[str, Any]:
    """Return a study's settings at a scale, from its study.yaml."""
    tree: dict[str, Any] = yaml.safe_load((folder / "study.yaml").read_text(encoding="utf-8"))["scales"][scale]
    return tree


def named(config: Config, storage: Path) -> Config:
    """Return the settings with a place and a name that follows from all others."""
    tree = config.model_dump(mode="json", exclude={"name", "storage_path"})
    digest = hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:12]
    return load_config(config, changes={"name": f"{config.algorithm.name}-{digest}", "storage_path": str(storage)})


class Here(Executor):
    """Does what is submitted at once, in this process: to start another takes longer than many a small run."""

    def submit(self, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Return the result; what ``function`` raises is raised here."""
        future: Future[T] = Future()
        future.set_result(function(*args, **kwargs))
        return future


def at_once(processes: int) -> Executor:
    """Return what makes so many runs at the same time: a process each, or this one for one after another."""
    return Here() if processes == 1 else ProcessPoolExecutor(processes, mp_context=get_context("spawn"))


def measured(jobs: Iterable[Job], storage: Path, processes: int) -> pd.DataFrame:
    """Return each job's labels with the final metrics of its run, and its ``path``; a diverged run has none."""
    jobs = [Job(job.labels, named(job.config, storage)) for job in jobs]
    unique = {job.config.name: job.config for job in jobs}
    finals: dict[str | None, dict[str, Any]] = {}
    # Longest first, so that none of them is left for the end.
    order = sorted(unique.values(), key=lambda config: -config.num_agents * config.num_steps)
    with at_once(processes) as pool:
        for config, final in zip(order, pool.map(ensure_run, order), strict=True):
            finals[config.name] = final
    rows = [
        {**job.labels, **finals[job.config.name], "run": job.config.name, "path": str(storage / str(job.config.name))}
        for job in jobs
    ]
    return pd.DataFrame(rows)


def evaluations(runs: pd.DataFrame, columns: Iterable[str]) -> pd.DataFrame:
    """Return the averaged model's evaluations of all runs, together with the labels in ``columns``."""
    columns = list(columns)
    frames = []
    for row in runs.to_dict("records"):
        frame = pd.read_parquet(Path(row["path"]) / "metrics.parquet")
        if frame.empty:
            continue
        kept = frame[frame["agent"].isna()].drop(columns="agent")
        frames.append(kept.assign(**{column: row[column] for column in columns}))
    return pd.concat(frames, ignore_index=True)
