"""The runs of the study: tasks, shards, delays, and ways to choose theta and reach."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.running import Job, measured
from ray_pcasgd.runs.settings.loading import load_config

HERE = Path(__file__).parent
UNDELAYED = "without delay"
CONSTANT = "theta "
"""What the names of the constant thetas begin with."""


def measure(settings: Mapping[str, Any], storage: Path, output: Path, processes: int) -> None:
    """Run what is missing, and write what was measured."""
    # A text that every copy of the repository has, since none can be downloaded everywhere. It changes with the
    # package, so a run is named after its content too.
    content = "\n".join(path.read_text(encoding="utf-8") for path in _texts())
    text = storage / f"text-{hashlib.sha256(content.encode()).hexdigest()[:12]}.txt"
    text.write_text(content, encoding="utf-8")
    jobs = [job for task, own in settings.items() for job in jobs_of(task, own, text)]
    runs: pd.DataFrame = measured(jobs, storage, processes)
    runs.drop(columns="path").to_parquet(output / "runs.parquet", index=False)


def _texts() -> list[Path]:
    root = HERE.parent.parent
    return sorted((root / "ray_pcasgd").rglob("*.py"))


def jobs_of(task: str, settings: Mapping[str, Any], text: Path) -> Iterator[Job]:
    """Yield the runs on one task: each method in each cell, and a run without delays for each kind of shards."""
    changes_of = settings["methods"]
    for partition, dealt in settings["partitions"].items():
        for delay in [0, *settings["delays"]]:
            methods = changes_of if delay else {UNDELAYED: {"algorithm": "d-asgd"}}
            for method, changes in methods.items():
                for seed in range(settings["seeds"]):
                    labels = {"task": task, "partition": partition, "delay": delay, "method": method, "seed": seed}
                    # One law for all links between the clusters; the study's settings may have another one.
                    links = [{"between": "clusters", "delay": _law(settings, delay)}] if delay else []
                    given: dict[str, Any] = {"links": links, "seed": seed, **dealt, **changes}
                    if task.startswith("text"):
                        given["task"] = {"data": {"name": "text", "path": str(text), "context": 32}}
                    yield Job(labels, load_config(settings["config"], changes=given))


def _law(settings: Mapping[str, Any], delay: int) -> Any:
    law = settings.get("law", "constant")
    return delay if law == "constant" else {"name": law, "mean": delay}
