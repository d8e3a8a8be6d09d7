"""The files of a run's folder, read for the report.

The folder may come from anybody: what is returned was checked for what the report relies on, or ``ValueError`` is
raised.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as compute
from numpy.typing import NDArray

from ray_pcasgd.base.foreign_files import events_of, is_number, read_mapping
from ray_pcasgd.base.foreign_tables import read_table
from ray_pcasgd.base.text import one_line
from ray_pcasgd.records import RowKind
from ray_pcasgd.runs.settings.loading import SettingsError, read_yaml

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
    "bytes_sent",
    "gradients_per_update",
)
_LISTS = ("neighbors", "versions", "staleness")
_SCHEDULE = pa.schema(
    {
        **dict.fromkeys(("agent", "step"), pa.int32()),
        **dict.fromkeys(("start", "ready", "end"), pa.float64()),
        **dict.fromkeys(_LISTS, pa.list_(pa.int32())),
        "kind": pa.string(),
    }
)
_MOST_AGENTS = 100_000
_MOST_COLUMNS = 200
_MOST_EVENTS = 100_000
"""Number of events that are kept, the newest ones."""
_LATEST = 1e12
"""Seconds."""
_LONGEST_TEXT = 1000
_MOST_LINES = 10


def read_config(path: Path) -> dict[str, Any]:
    """Return the settings of a run's folder: the tree as it is written, with keys and texts in one line each."""
    try:
        config: dict[str, Any] = _tidy(read_yaml(path / "config.yaml"))
    except SettingsError as error:
        raise ValueError(str(error)) from None
    for setting in ("engine", "algorithm"):
        if not isinstance(config.get(setting, {}), Mapping):
            raise ValueError(f"config.yaml has no settings of the {setting}")
    for setting in ("gathering", "correction", "outer"):
        part = config.get("algorithm", {}).get(setting, {"name": ""})
        if not isinstance(part, Mapping) or "name" not in part:
            raise ValueError(f"config.yaml has no name of algorithm.{setting}")
    number = config.get("num_agents", 1)
    if not isinstance(number, int) or not 0 < number <= _MOST_AGENTS:
        raise ValueError(f"config.yaml has num_agents = {one_line(number, 40)}")
    return config


def _tidy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {one_line(key, _LONGEST_TEXT): _tidy(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_tidy(inner) for inner in value]
    return one_line(value, _LONGEST_TEXT) if isinstance(value, str) else value


def read_events(path: Path) -> tuple[tuple[dict[str, Any], ...], int]:
    """Return the newest events of a run's folder, those that are whole, and how many there are of all."""
    newest: deque[dict[str, Any]] = deque(maxlen=_MOST_EVENTS)
    number = 0
    for event in events_of(path / "events.jsonl"):
        newest.append(event)
        number += 1
    return tuple(newest), number


def read_result(path: Path) -> dict[str, Any]:
    """Return the summary of a run's folder; empty where it has none."""
    file = path / "result.json"
    if not file.exists():
        return {}
    try:
        found = read_mapping(file)
    except OSError as error:
        raise ValueError(f"{file.name}: {one_line(error, _LONGEST_TEXT)}") from None
    for key in ("wall_seconds", "agent_steps_per_second"):
        if not is_number(found.get(key)):
            found.pop(key, None)
    for key in ("screening", "gradients"):
        found[key] = _lines_in(found.get(key))
    found["step_size"] = _tidy(found.get("step_size"))
    for key in ("error", "schedule_hash"):
        if found.get(key) is not None:
            found[key] = one_line(found[key], _LONGEST_TEXT)
    return found


def read_metrics(path: Path) -> pd.DataFrame:
    """Return the metrics of a run's folder, all of them numbers; without rows where it has none."""
    file = path / "metrics.parquet"
    columns: dict[str, Numbers] = {}
    if file.exists():
        table = _table(file)
        for field in table.schema:
            if not pa.types.is_list(field.type) and len(columns) < _MOST_COLUMNS:
                values = table[field.name].cast(pa.float64(), safe=False).to_numpy()
                columns.setdefault(one_line(field.name, 100), values)
    absent = [column for column in _METRICS if column not in columns]
    frame = pd.DataFrame(columns).reindex(columns=[*columns, *absent]).astype(np.float64)
    agents, steps, seconds = frame["agent"].dropna(), frame["step"], frame["seconds"].dropna()
    if not (agents.between(0, _MOST_AGENTS) & (agents % 1 == 0)).all():
        raise ValueError(f"{file.name} has numbers of agents that are not valid")
    if not (steps.between(0, 2**31) & (steps % 1 == 0)).all() or not seconds.between(0, _LATEST).all():
        raise ValueError(f"{file.name} has steps or seconds that are not valid")
    return frame


def _table(file: Path, texts: tuple[str, ...] = ()) -> pa.Table:
    try:
        return read_table(file, texts)
    except ValueError as error:
        raise ValueError(f"{file.name}: {error}") from None


def read_schedule(path: Path) -> pa.Table:
    """Return the schedule of a run's folder; without rows where it has none."""
    file = path / "schedule.parquet"
    if not file.exists():
        return _SCHEDULE.empty_table()
    table = _table(file, texts=("kind",))
    if absent := [name for name in _SCHEDULE.names if name not in table.column_names]:
        raise ValueError(f"{file.name} has no column {absent[0]}")
    table = table.select(_SCHEDULE.names)
    if not all({*chunk.dictionary.to_pylist()} <= {*get_args(RowKind)} for chunk in table["kind"].chunks):
        raise ValueError(f"{file.name} has rows of an unknown kind")
    try:
        table = table.cast(_SCHEDULE)
    except pa.ArrowException as error:
        raise ValueError(f"{file.name}: {one_line(error, 200)}") from None
    for wrong in _wrong_in(table):
        raise ValueError(f"{file.name} has {wrong}")
    return table


def _lines_in(told: Any) -> list[str]:
    """Return what is said of screening, or of gradients, in a line each."""
    lines = told.get("lines") if isinstance(told, Mapping) else None
    return [one_line(line, _LONGEST_TEXT) for line in lines[:_MOST_LINES]] if isinstance(lines, list) else []


def _wrong_in(table: pa.Table) -> Iterator[str]:
    """Yield what a schedule's columns cannot be."""
    lists = [table[name].combine_chunks() for name in _LISTS]
    reads = [column.flatten() for column in lists]
    lengths = [compute.list_value_length(column) for column in lists]
    if any(column.null_count for column in (*table.columns, *reads)):
        yield "empty fields"
    if not all(length.equals(lengths[0]) for length in lengths):
        yield "reads that are incomplete"
    if any(len(column) and compute.min(column).as_py() < 0 for column in (table["agent"], table["step"], *reads)):
        yield "numbers below 0"
    if len(table) and compute.max(table["agent"]).as_py() > _MOST_AGENTS:
        yield f"agents beyond {_MOST_AGENTS:,}"
    if not all((np.abs(table[name].to_numpy()) <= _LATEST).all() for name in ("start", "ready", "end")):
        yield "times that are not valid"
    keys = table["agent"].to_numpy().astype(np.int64) * 2**32 + table["step"].to_numpy()
    if len(np.unique(keys)) < len(keys):
        yield "two rows of one agent and step"
