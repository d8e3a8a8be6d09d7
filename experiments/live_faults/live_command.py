"""The live command of docs/commands.md, many times: its accuracy against that of the planned run of equal length."""

from pathlib import Path
from typing import Any

from experiments.live_faults.injecting import busy
from experiments.live_faults.scenarios import BUSY_LOOPS
from experiments.live_faults.truth import staleness_of
from ray_pcasgd.runs.trainer import Trainer
from ray_pcasgd.schedule.parquet import read_rows

COMMAND: dict[str, Any] = {"num_agents": 3, "num_steps": 60}


def measure(number: int, is_busy: bool, folder: Path) -> dict[str, Any]:
    """Return what one run of the command came to; number -1 stands for the planned run."""
    engine = {"name": "local"} if number < 0 else {"name": "ray", "mode": "live"}
    with busy(BUSY_LOOPS if is_busy else 0):
        result = Trainer({**COMMAND, "engine": engine, "storage_path": str(folder)}).fit()
    rows, _ = read_rows(Path(result.path) / "schedule.parquet")
    return {
        "number": number,
        "busy": is_busy,
        "accuracy": float(result.metrics["test_accuracy"]),
        "error": str(result.error or ""),
        **{f"staleness_{name}": value for name, value in staleness_of(rows)._asdict().items()},
    }
