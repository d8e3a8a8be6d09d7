"""Faults at random steps, each with every seed in both modes: ``python -m experiments.faults [--scale smoke|cpu]``."""

import itertools
import json
import os
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.faults.nodes import HEALTH_CHECKS
from experiments.faults.page import page
from experiments.faults.scenarios import FAULTS, Scenarios
from experiments.running import arguments_of, settings_of

HERE = Path(__file__).parent
MODES = ("planned", "live")


def measure(settings: dict[str, Any], storage: Path, output: Path) -> None:
    """Run what is not measured yet; what is lies, a line each, in ``measured.jsonl`` of the runs' folder."""
    notes = storage / "measured.jsonl"
    done = [json.loads(line) for line in notes.read_text().splitlines()] if notes.exists() else []
    known = {(row["algorithm"], row["fault"], row["mode"], row["seed"]) for row in done}
    cases = [
        case
        for algorithm, faults in FAULTS.items()
        for case in itertools.product([algorithm], faults, MODES, range(settings["seeds"][algorithm]))
        if case not in known
    ]
    if cases:
        os.environ |= HEALTH_CHECKS
        import ray
        from ray.cluster_utils import Cluster

        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        nodes = [cluster.add_node(num_cpus=2) for _ in range(2)]
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        scenarios = Scenarios(cluster, nodes, storage.resolve())
        for algorithm, fault, mode, seed in sorted(cases, key=lambda case: case[3]):
            row = scenarios.measure(algorithm, fault, mode, seed, settings["num_steps"])
            done.append(row)
            with notes.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)
        ray.shutdown()
        cluster.shutdown()
    pd.DataFrame(done).to_parquet(output / "results.parquet", index=False)


if __name__ == "__main__":
    arguments = arguments_of(HERE, __doc__)
    chosen = settings_of(HERE, arguments.scale)
    arguments.storage.mkdir(parents=True, exist_ok=True)
    if not arguments.page:
        measure(chosen, arguments.storage, arguments.output)
    text = page(pd.read_parquet(arguments.output / "results.parquet"), chosen, arguments.scale)
    (arguments.output / "RESULTS.md").write_text(text, encoding="utf-8")
