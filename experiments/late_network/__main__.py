"""Live runs on two hosts with a slow network, and their replays on one: ``python -m experiments.late_network``."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.cluster.cycle import ROOT
from experiments.late_network.page import page
from experiments.running import arguments_of, settings_of
from ray_pcasgd.runs.live_record import hosts_of
from ray_pcasgd.runs.settings.loading import load_config, read_yaml
from ray_pcasgd.runs.trainer import Trainer
from ray_pcasgd.schedule.parquet import read_rows

HERE = Path(__file__).parent
LABORATORY = ROOT.parent / "shared" / "lab"
DATA = ROOT.parent / "shared" / "data" / "cifar10"


def live_runs(chosen: dict[str, Any], delay_ms: int, storage: Path, runs_of: str) -> dict[str, Any]:
    """Return what the laboratory's operator has measured while a module's runs ran, with a delay of so much one way."""
    with tempfile.TemporaryDirectory() as tools:
        for name in ("netlab.sh", "delay_relay.c"):
            shutil.copy(LABORATORY / name, tools)
        subprocess.run(["gcc", "-O2", "-o", "delay_relay", "delay_relay.c"], cwd=tools, check=True)
        network = {"LINK": "tun", "DELAY_MS": str(delay_ms), "JITTER_MS": str(delay_ms / 5), "MBPS": "200"}
        command = [f"{tools}/netlab.sh", "2", sys.executable, "-m", "experiments.late_network.operator"]
        arguments = [json.dumps(chosen), str(DATA), str(storage), runs_of]
        result = subprocess.run(
            [*command, *arguments], env=os.environ | network, cwd=ROOT, capture_output=True, text=True, check=False
        )
    if result.returncode:
        raise RuntimeError(f"{result.stdout[-3000:]}\n{result.stderr[-3000:]}")
    measured: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return measured


def figures_of(path: Path, accuracy: float) -> dict[str, Any]:
    """Return a live run's figures: seconds to an accuracy, and the staleness between and within hosts."""
    frame = pd.read_parquet(path / "metrics.parquet")
    averaged = frame[frame["agent"].isna()]
    reached = averaged[averaged["test_accuracy"] >= accuracy]
    hosts = hosts_of(path)
    rows = read_rows(path / "schedule.parquet")[0]
    # Starting processes is no part of what is compared.
    began = min(row.start for row in rows)
    reads = [
        {"far": hosts[row.agent] != hosts[read.neighbor], "staleness": read.staleness, "age": read.age}
        for row in rows
        for read in row.reads
    ]
    table = pd.DataFrame(reads).groupby("far")["staleness"]
    return {
        "seconds": float(reached["wall_seconds"].iloc[0]) - began if len(reached) else float("nan"),
        "whole_seconds": float(averaged["wall_seconds"].iloc[-1]) - began,
        "accuracy": float(averaged["test_accuracy"].iloc[-1]),
        **{f"far_{name}": float(value) for name, value in _spread(table, True).items()},
        **{f"near_{name}": float(value) for name, value in _spread(table, False).items()},
    }


def _spread(table: Any, far: bool) -> dict[str, float]:
    if far not in table.groups:
        return {}
    group = table.get_group(far)
    return {"mean": group.mean(), "p95": group.quantile(0.95), "max": group.max()}


def replays(path: Path, thetas: list[float], storage: Path) -> list[dict[str, Any]]:
    """Return what a live PC-ASGD run's recorded schedule gives under other thetas, on this machine."""
    source = read_yaml(path / "config.yaml") | {"schedule": str(path / "schedule.parquet"), "name": None}
    rows = []
    for theta in thetas:
        changes = {"algorithm": {"theta": theta}, "storage_path": str(storage), "engine": {"name": "local"}}
        result = Trainer(load_config(source, changes=changes)).fit()
        rows.append({"theta": theta, "accuracy": result.metrics["test_accuracy"], "hash": result.schedule_hash})
    return rows


def measure(
    folder: Path,
    description: str | None,
    runs_of: str,
    figures: Callable[[dict[str, Any], dict[str, Any], Path], dict[str, Any]],
    page: Callable[[dict[str, Any], dict[str, Any], str], str],
    afterwards: Callable[[dict[str, Any], dict[str, Any], Path, int], dict[str, Any]] = lambda *_: {},
) -> None:
    """Run a module's runs in each network of a study's ``delays_ms``, and write the figures and the page.

    Args:
        folder: The study's, with its settings.
        description: Of the command.
        runs_of: The module.
        figures: Returns a run's figures, which has come to its end: given the run, what the study has chosen, and the
            folder of the network's runs.
        page: Returns the page.
        afterwards: Returns further figures of a network, measured without it: given those that are there, what the
            study has chosen, a folder for its own runs, and how many may run at a time.

    """
    arguments = arguments_of(folder, description)
    chosen = settings_of(folder, arguments.scale)
    output = arguments.output
    if not arguments.page:
        found: dict[str, Any] = {"networks": []}
        for delay_ms in chosen["delays_ms"]:
            storage = arguments.storage.resolve() / f"{delay_ms}ms"
            measured = live_runs(chosen, delay_ms, storage, runs_of)
            network = {"delay_ms": delay_ms, **measured}
            for run in measured["runs"]:
                if not run["error"]:
                    run |= figures(run, chosen, storage)
            network |= afterwards(network, chosen, storage / "afterwards", arguments.processes)
            for run in measured["runs"]:
                run.pop("path")
            found["networks"].append(network)
        (output / "results.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    found = json.loads((output / "results.json").read_text(encoding="utf-8"))
    (output / "RESULTS.md").write_text(page(found, chosen, arguments.scale), encoding="utf-8")


def _figures(run: dict[str, Any], chosen: dict[str, Any], storage: Path) -> dict[str, Any]:
    path = Path(run["path"])
    found = figures_of(path, chosen["accuracy"])
    if run["method"] == "pc-asgd":
        found["replays"] = replays(path, chosen["thetas"], storage / "replays")
    return found


if __name__ == "__main__":
    measure(HERE, __doc__, "experiments.late_network.runs", _figures, page)
