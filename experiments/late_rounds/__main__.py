"""Live local steps on two hosts with a slow network, on the laboratory: ``python -m experiments.late_rounds``."""

from pathlib import Path
from typing import Any

import pandas as pd

from experiments.late_network.__main__ import measure
from experiments.late_rounds.page import page
from experiments.running import Job, measured
from ray_pcasgd.runs.live_record import hosts_of
from ray_pcasgd.runs.settings.loading import load_config, read_yaml
from ray_pcasgd.schedule.parquet import read_rows

HERE = Path(__file__).parent


def figures_of(run: dict[str, Any], chosen: dict[str, Any], storage: Path) -> dict[str, Any]:
    """Return a live run's figures: seconds to a loss, seconds of waiting, bytes, and the staleness between hosts."""
    path = Path(run["path"])
    frame = pd.read_parquet(path / "metrics.parquet")
    averaged, agents = frame[frame["agent"].isna()], frame[frame["agent"].notna()]
    reached = averaged[averaged["test_loss"] <= chosen["loss"]]
    last = agents[agents["step"] == agents["step"].max()]
    hosts = hosts_of(path)
    rows = read_rows(path / "schedule.parquet")[0]
    # Starting processes is no part of what is compared.
    began = min(row.start for row in rows)
    far = pd.Series([r.staleness for row in rows for r in row.reads if hosts[row.agent] != hosts[r.neighbor]])
    return {
        "seconds": float(reached["wall_seconds"].iloc[0]) - began if len(reached) else float("nan"),
        "whole_seconds": float(averaged["wall_seconds"].iloc[-1]) - began,
        "loss": float(averaged["test_loss"].iloc[-1]),
        "waited": float(last["waited_seconds"].mean()),
        "megabytes": float(last["bytes_sent"].mean()) / 1e6,
        "far_mean": float(far.mean()),
        "far_p95": float(far.quantile(0.95)),
        "far_max": float(far.max()),
    }


def replayed(network: dict[str, Any], chosen: dict[str, Any], storage: Path, processes: int) -> dict[str, Any]:
    """Return what the recorded schedules of a network come to with other seeds: other models, shards and batches."""
    if network["delay_ms"] not in chosen["replayed_ms"]:
        return {}
    jobs = []
    for run in network["runs"]:
        if run["error"]:
            continue
        path = Path(run["path"])
        source = read_yaml(path / "config.yaml") | {"schedule": str(path / "schedule.parquet")}
        for seed in chosen["replayed_seeds"]:
            changes = {"seed": seed, "engine": {"name": "local", "threads": 1}}
            jobs.append(Job({"method": run["method"], "seed": seed}, load_config(source, changes=changes)))
    storage.mkdir(parents=True, exist_ok=True)
    table = measured(jobs, storage, processes)
    return {"replays": table[["method", "seed", "test_loss"]].to_dict("records")}


if __name__ == "__main__":
    measure(HERE, __doc__, "experiments.late_rounds.runs", figures_of, page, replayed)
