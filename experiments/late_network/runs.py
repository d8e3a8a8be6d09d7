"""The live runs, one after another, on the cluster that this process joins: every method with every seed."""

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from experiments.studies import has_ended
from ray_pcasgd.runs.storage.names import clear_run
from ray_pcasgd.runs.trainer import Trainer

METHODS: dict[str, Any] = {
    "pc-asgd": {"name": "pc-asgd", "theta": 0.3, "bounded": False},
    "d-asgd": {"name": "d-asgd"},
    "k-async, k = 2": {"name": "server", "gathering": {"name": "k-async", "k": 2}},
    "sync SGD": {"name": "server", "gathering": "sync"},
}
AGENTS = 4


def settings_of(chosen: dict[str, Any], method: str, seed: int, data: Path, storage: Path) -> dict[str, Any]:
    """Return a run's settings: CIFAR-10 on four agents, two on each host."""
    return {
        "name": f"{method.split(',')[0].replace(' ', '-')}-seed{seed}",
        "storage_path": str(storage),
        "seed": seed,
        "num_agents": AGENTS,
        "num_steps": chosen["num_steps"],
        "evaluate_every": chosen["evaluate_every"],
        "batch_size": 32,
        "step_size": 0.05,
        "algorithm": METHODS[method],
        "links": [],  # the network's own delays, none injected
        "task": {
            "data": {
                "name": "image-parquet",
                "train": str(data / "train.parquet"),
                "test": str(data / "test.parquet"),
                "limit": chosen["limit"],
                "test_limit": 1000,
            },
            "model": {"name": "small-cnn"},
        },
        "engine": {"name": "ray", "mode": "live", "cpus_per_agent": 0.5, "placement_strategy": "SPREAD"},
    }


def run_all(methods: Iterable[str], settings_of: Callable[..., dict[str, Any]]) -> None:
    """Run each method with every seed that the command line says; one line of JSON for each on standard output."""
    chosen, data, storage = json.loads(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
    for seed in range(chosen["seeds"]):
        for method in methods:
            settings = settings_of(chosen, method, seed, data, storage)
            path = storage / settings["name"]
            if not has_ended(path):  # else it was run before the study was interrupted
                clear_run(path)
                Trainer(settings).fit()
            error = json.loads((path / "result.json").read_text())["error"]
            print(json.dumps({"method": method, "seed": seed, "path": str(path), "error": error or ""}))
            sys.stdout.flush()


if __name__ == "__main__":
    run_all(METHODS, settings_of)
