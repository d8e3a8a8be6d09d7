"""Faults done to live runs of every family: ``python -m experiments.live_faults [--scale smoke|cpu]``."""

import itertools
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.live_faults import live_command, scenarios
from experiments.live_faults.injecting import MARKS
from experiments.live_faults.page import page
from experiments.running import arguments_of, settings_of

HERE = Path(__file__).parent


def measure(settings: dict[str, Any], storage: Path, output: Path) -> None:
    """Run what is not measured yet, seed by seed; what is lies, a line each, in the runs' folder."""
    import ray

    with tempfile.TemporaryDirectory() as marks:
        os.environ[MARKS] = marks
        # Ray gives its workers a low priority: on a machine with other work they would hardly run at all.
        os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
        ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        algorithms = settings.get("algorithms", list(scenarios.ALGORITHMS))
        faults = settings.get("faults", list(scenarios.FAULTS))
        notes = Notes(storage / "measured.jsonl", ("algorithm", "fault", "seed"))
        for seed, algorithm, fault in itertools.product(range(settings["seeds"]), algorithms, faults):
            if not notes.has(algorithm, fault, seed):
                notes.add(scenarios.measure(algorithm, fault, seed, settings["num_steps"], storage.resolve()))
        commands = Notes(storage / "live_command.jsonl", ("number", "busy"))
        for number, is_busy in [(-1, False), *itertools.product(range(settings["live_command"]), (False, True))]:
            if not commands.has(number, is_busy):
                commands.add(live_command.measure(number, is_busy, storage.resolve()))
        ray.shutdown()
    pd.DataFrame(notes.rows).to_parquet(output / "results.parquet", index=False)
    pd.DataFrame(commands.rows).to_parquet(output / "live_command.parquet", index=False)


class Notes:
    """What was measured, kept as it comes."""

    def __init__(self, path: Path, key: tuple[str, ...]) -> None:
        self.path = path
        self.key = key
        self.rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def has(self, *key: Any) -> bool:
        """Return whether it is measured already."""
        return any(tuple(row[name] for name in self.key) == key for row in self.rows)

    def add(self, row: dict[str, Any]) -> None:
        """Keep a row, and show it."""
        self.rows.append(row)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, default=float) + "\n")
        print(json.dumps(row, default=float), flush=True)


if __name__ == "__main__":
    arguments = arguments_of(HERE, __doc__)
    chosen = settings_of(HERE, arguments.scale)
    arguments.storage.mkdir(parents=True, exist_ok=True)
    if not arguments.page:
        measure(chosen, arguments.storage, arguments.output)
    tables = (pd.read_parquet(arguments.output / f"{name}.parquet") for name in ("results", "live_command"))
    (arguments.output / "RESULTS.md").write_text(page(*tables, chosen, arguments.scale), encoding="utf-8")
