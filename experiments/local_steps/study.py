"""The runs of the study: tasks, lengths of rounds, delays, methods."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.running import Job, measured
from ray_pcasgd.runs.settings.loading import load_config
from ray_pcasgd.schedule.parquet import read_rows

HERE = Path(__file__).parent


def measure(settings: Mapping[str, Any], storage: Path, output: Path, processes: int) -> None:
    """Run what is missing, and write what it came to, with each run's virtual seconds and bytes."""
    runs = measured(jobs_of(settings), storage, processes)
    told = {path: _of_run(Path(path)) for path in runs["path"].unique()}
    figures = pd.DataFrame([told[path] for path in runs["path"]])
    pd.concat([runs, figures], axis=1).to_parquet(output / "results.parquet", index=False)


def _of_run(path: Path) -> dict[str, float]:
    """Return the virtual seconds of a run, and the megabytes that an agent has sent."""
    frame = pd.read_parquet(path / "metrics.parquet")
    if "agent" not in frame or not (path / "schedule.parquet").exists():
        return {"seconds": float("nan"), "megabytes": float("nan")}
    agents = frame[frame["agent"].notna()]
    last = agents[agents["step"] == agents["step"].max()]
    seconds = max(row.end for row in read_rows(path / "schedule.parquet")[0])
    return {"seconds": seconds, "megabytes": last["bytes_sent"].mean() / 1e6}


def jobs_of(settings: Mapping[str, Any]) -> Iterator[Job]:
    """Yield every method's run in every cell, with every seed, tested at the end alone.

    A step takes a second, and what comes from the other cluster so many rounds: who waits loses that time, who does
    not reads what is old.
    """
    for task, own in settings["tasks"].items():
        for shards, partition in own["shards"].items():
            for local_steps in settings["local_steps"]:
                for rounds in settings["rounds_late"]:
                    for method, changes in settings["methods"].items():
                        for seed in range(settings["seeds"]):
                            labels = {"task": task, "shards": shards, "H": local_steps, "rounds late": rounds}
                            links = [{"between": "clusters", "delay": f"{rounds * local_steps}s"}] if rounds else []
                            base = {**partition, "local_steps": local_steps, "links": links, "seed": seed}
                            config = load_config(own["config"], changes={**base, **changes})
                            config = load_config(config, changes={"evaluate_every": config.num_steps})
                            yield Job({**labels, "method": method, "seed": seed}, config)
