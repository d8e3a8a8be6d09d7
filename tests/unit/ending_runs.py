"""Small runs of every family that end in some way, and what each of them must leave."""

import json
from pathlib import Path
from typing import Any

from ray_pcasgd.runs.callbacks import Callback
from ray_pcasgd.runs.result import Result
from ray_pcasgd.runs.trainer import Trainer
from ray_pcasgd.schedule.parquet import read_rows

SMALL: dict[str, Any] = {
    "engine": "local",
    "name": "first",
    "num_agents": 3,
    "num_steps": 12,
    "evaluate_every": 4,
    "task": {"model": {"hidden": [8]}},
}


def fit(folder: Path, callback: Callback | None = None, **changes: Any) -> Result:
    return Trainer(SMALL | changes, storage_path=str(folder), callbacks=[callback or Callback()]).fit()


def summary_of(result: Result) -> dict[str, Any]:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    text = (Path(result.path) / "result.json").read_text(encoding="utf-8")
    summary: dict[str, Any] = json.loads(text, parse_constant=refuse)
    return summary


def names_in(folder: str | Path) -> set[str]:
    return {path.name for path in Path(folder).iterdir()}


def assert_all_there(result: Result) -> None:
    assert {"config.yaml", "metrics.parquet", "schedule.parquet", "result.json"} <= names_in(result.path)
    assert read_rows(Path(result.path) / "schedule.parquet")[0]
    assert result.checkpoint is not None
    assert result.checkpoint.state_dict()


FAMILIES: dict[str, dict[str, Any]] = {
    "peers": {},
    "peers, stacked": {"engine": {"name": "local", "batched": "always"}},
    "pairs": {"algorithm": "ad-psgd", "links": []},
    "server": {"algorithm": {"name": "server", "gathering": "asgd"}},
    "server, stacked": {"algorithm": "server", "engine": {"name": "local", "batched": "always"}},
    "elastic averaging": {"algorithm": "elastic-averaging"},
    "diloco": {"algorithm": "diloco", "local_steps": 4},
    "fedasync": {"algorithm": "fedasync", "local_steps": 4},
    "fedglomo": {"algorithm": "fedglomo", "local_steps": 4},
    "svrg": {"algorithm": {"name": "svrg", "gathering": {"name": "epochs", "updates": 9}}},
}
