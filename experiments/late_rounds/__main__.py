"""Live local steps on two hosts with a slow network, on the laboratory: ``python -m experiments.late_rounds``."""

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.late_network.__main__ import live_runs
from experiments.late_rounds.page import page
from experiments.running import arguments_of, settings_of
from ray_pcasgd.schedule.parquet import read_rows

HERE = Path(__file__).parent


def figures_of(path: Path, loss: float) -> dict[str, Any]:
    """Return a live run's figures: seconds to a loss, seconds of waiting, bytes, and the staleness between hosts."""
    frame = pd.read_parquet(path / "metrics.parquet")
    averaged, agents = frame[frame["agent"].isna()], frame[frame["agent"].notna()]
    reached = averaged[averaged["test_loss"] <= loss]
    last = agents[agents["step"] == agents["step"].max()]
    hosts: dict[int, str] = {}
    for line in (path / "events.jsonl").read_text().splitlines():
        event = json.loads(line)
        if event["kind"] == "agent_started" and (found := re.search(r" on ([\d.]+)", event["detail"])):
            hosts[event["agent"]] = found[1]
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
        "far_mean": far.mean(),
        "far_p95": far.quantile(0.95),
        "far_max": far.max(),
    }


def main() -> None:
    """Measure, and write the page."""
    arguments = arguments_of(HERE, __doc__)
    chosen = settings_of(HERE, arguments.scale)
    output = arguments.output
    if not arguments.page:
        found: dict[str, Any] = {"networks": []}
        for trip_ms in chosen["round_trips_ms"]:
            storage = arguments.storage.resolve() / f"{trip_ms}ms"
            measured = live_runs(chosen, trip_ms // 2, storage, "experiments.late_rounds.runs")
            for run in measured["runs"]:
                if not run["error"]:
                    run |= figures_of(Path(run["path"]), chosen["loss"])
                run.pop("path")
            found["networks"].append({"asked_ms": trip_ms, **measured})
        (output / "results.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    found = json.loads((output / "results.json").read_text(encoding="utf-8"))
    (output / "RESULTS.md").write_text(page(found, chosen, arguments.scale), encoding="utf-8")


if __name__ == "__main__":
    main()
