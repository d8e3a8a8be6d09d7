"""What a run folder holds, read for the report; whatever a failed run did not write is empty."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as compute
import pyarrow.parquet as pq
import yaml
from numpy.typing import NDArray

from ray_pcasgd.own_files import is_file
from ray_pcasgd.plain_json import read_mappings

Numbers = NDArray[np.float64]

_METRICS = (
    "agent",
    "step",
    "seconds",
    "train_loss",
    "consensus_distance",
    "staleness_mean",
    "predicting_share",
    "waited_seconds",
    "gradients_per_update",
)
_SCHEDULE = ("agent", "step", "start", "ready", "end", "neighbors", "versions", "staleness", "kind")


@dataclass(frozen=True)
class RunData:
    """One run, as its folder has it."""

    path: Path
    config: Mapping[str, Any]
    """The complete settings tree."""
    metrics: pd.DataFrame
    """One row per agent and evaluation, and one for the averaged model, whose ``agent`` is missing."""
    schedule: pa.Table
    """One row per agent and step."""
    events: tuple[Mapping[str, Any], ...]
    result: Mapping[str, Any]
    """The run's summary; empty where it was interrupted before it wrote one."""

    @property
    def seed(self) -> Any:
        """The seed; nothing where the settings have none."""
        return self.config.get("seed")

    @property
    def error(self) -> str | None:
        """What ended the run early, in one line; nothing if it is complete."""
        if not self.result:
            return "The run has no result.json: it is still going, or it was interrupted."
        error = self.result.get("error")
        return None if error is None else str(error)

    @property
    def schedule_hash(self) -> str | None:
        """The hash of who read which version; equal for runs under one schedule."""
        value = self.result.get("schedule_hash")
        return None if value is None else str(value)

    @cached_property
    def averaged(self) -> pd.DataFrame:
        """The averaged model's rows, by step."""
        return self.metrics[self.metrics["agent"].isna()].sort_values("step")

    @cached_property
    def agents(self) -> dict[int, pd.DataFrame]:
        """Each agent's rows, by step."""
        rows = self.metrics[self.metrics["agent"].notna()].sort_values(["agent", "step"])
        return {agent: rows[rows["agent"] == agent] for agent in sorted(set(rows["agent"].astype(int)))}

    @property
    def num_workers(self) -> int | None:
        """The workers of a run with servers, which are the agents after them; nothing between peers."""
        algorithm = self.config.get("algorithm")
        gathers = isinstance(algorithm, Mapping) and "gathering" in algorithm
        return int(self.config["num_agents"]) if gathers else None

    @cached_property
    def staleness(self) -> Numbers:
        """The staleness of every read between peers, of every gradient at a server, in steps."""
        readers = self.schedule
        if self.num_workers is not None:
            readers = readers.filter(compute.greater_equal(readers["agent"], self.num_workers))
        values = readers["staleness"].combine_chunks().flatten()
        return np.asarray(values.to_numpy(zero_copy_only=False), dtype=np.float64)

    def final(self, *keys: str) -> float | None:
        """Return a number of the final evaluation by its place there; nothing where it is missing or not a number."""
        value: Any = self.result.get("final")
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        return float(value) if isinstance(value, int | float) and np.isfinite(value) else None

    def predicting_share(self) -> float | None:
        """Return the share of predicting choices over the whole run; nothing where the rule makes none."""
        shares, steps = [], []
        for rows in self.agents.values():
            shares.append(rows["predicting_share"].to_numpy(np.float64))
            # Each row is the mean since the row before it, so it counts as many times as there are steps between.
            steps.append(np.diff(rows["step"].to_numpy(np.float64), prepend=0.0))
        share, weight = (np.concatenate([*parts, np.empty(0)]) for parts in (shares, steps))
        known = np.isfinite(share) & (weight > 0)
        return float(np.average(share[known], weights=weight[known])) if known.any() else None

    def waiting_shares(self) -> dict[int, float]:
        """Return each agent's share of the time, in [0, 1], that it waited for others."""
        last = {agent: rows.iloc[-1] for agent, rows in self.agents.items()}
        shares = {agent: float(row["waited_seconds"] / row["seconds"]) for agent, row in last.items() if row["seconds"]}
        # Servers do nothing but wait.
        return {
            agent: share
            for agent, share in shares.items()
            if np.isfinite(share) and (self.num_workers is None or agent < self.num_workers)
        }


def load_run(path: Path) -> RunData:
    """Return what a run folder holds.

    Raises:
        ValueError: the folder is no run folder, or one of its files cannot be read.

    """
    path = Path(path)
    if not (path / "config.yaml").is_file():
        raise ValueError(f"run = {str(path)!r}: is no run folder; allowed are folders with a config.yaml")
    try:
        config = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
        result = _optional(path / "result.json", json.loads, {})
        events = read_mappings(path / "events.jsonl")
        metrics = _metrics(path / "metrics.parquet")
        schedule = _schedule(path / "schedule.parquet")
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(f"run = {str(path)!r}: cannot be read ({' '.join(str(error).split())})") from error
    if not isinstance(config, dict) or not isinstance(result, dict):
        raise ValueError(f"run = {str(path)!r}: config.yaml and result.json must each hold one mapping")
    return RunData(path, config, metrics, schedule, tuple(events), result)


def _optional(path: Path, parse: Any, otherwise: Any) -> Any:
    return parse(path.read_text(encoding="utf-8")) if is_file(path) else otherwise


def _metrics(path: Path) -> pd.DataFrame:
    frame = pd.read_parquet(path) if path.exists() else pd.DataFrame()
    absent = [column for column in _METRICS if column not in frame.columns]
    return frame.reindex(columns=[*frame.columns, *absent])


def _schedule(path: Path) -> pa.Table:
    if path.exists():
        return pq.read_table(path, columns=list(_SCHEDULE))
    steps = pa.list_(pa.int32())
    types = (pa.int32(), pa.int32(), *[pa.float64()] * 3, *[steps] * 3, pa.string())
    return pa.table({name: pa.array([], kind) for name, kind in zip(_SCHEDULE, types, strict=True)})
