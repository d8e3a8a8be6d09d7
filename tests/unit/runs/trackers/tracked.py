"""A small run with all that a tracker is told of: two evaluations, an event, and an end."""

from pathlib import Path
from typing import Any

import pandas as pd

from ray_pcasgd import Callback, Trainer
from ray_pcasgd.records import Event
from ray_pcasgd.runs.result import Result

SETTINGS = {"num_agents": 2, "num_steps": 6, "evaluate_every": 3, "engine": "local", "name": "first", "links": []}
LOST = Event("noticed", 1, 2, "something | noticed")


class Telling(Callback):
    """Lets another callback hear of an event, which a run this small has none of."""

    def __init__(self, other: Callback) -> None:
        self._other = other

    def on_step(self, report: Any) -> None:
        if report.row[:2] == (1, 2):
            self._other.on_event(LOST)


class Interrupting(Callback):
    """Ends the run."""

    def on_step(self, report: Any) -> None:
        if report.row.step == 4:
            raise KeyboardInterrupt


def tracked(tracker: Callback, path: Path, *more: Callback, **settings: Any) -> Result:
    return Trainer(
        SETTINGS | {"storage_path": str(path)} | settings, callbacks=[tracker, Telling(tracker), *more]
    ).fit()


def expected(result: Result, name: str) -> dict[str, list[tuple[int, float]]]:
    """Return steps and values of one column of the run's own table, under the names that trackers have."""
    frame = result.metrics_dataframe
    found: dict[str, list[tuple[int, float]]] = {}
    for _, row in frame.iterrows():
        who = "averaged" if pd.isna(row["agent"]) else f"agent_{row['agent']}"
        found.setdefault(f"{who}/{name}", []).append((int(row["step"]), float(row[name])))
    return found


MEASURED = ("test_loss", "test_accuracy", "consensus_distance", "staleness_mean", "train_loss")
