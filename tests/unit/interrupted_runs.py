"""Runs that were interrupted, for tests of how they go on: what they are made by, and what is compared."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ray_pcasgd.base.state import FORMAT
from ray_pcasgd.cli.app import main
from ray_pcasgd.records import Event
from ray_pcasgd.runs.callbacks import Callback
from ray_pcasgd.runs.result import Result
from ray_pcasgd.runs.trainer import Trainer
from tests.comparing import assert_same_metrics, assert_same_to_the_bit
from tests.unit.recorded_runs import once, placed

SMALL: dict[str, Any] = {
    "engine": "local",
    "name": "first",
    "num_agents": 3,
    "num_steps": 20,
    "evaluate_every": 5,
    "task": {"model": {"hidden": [8]}},
    "checkpoint": {"state_seconds": 0},
}
KEEPING = {"checkpoint": {"state_seconds": 0, "every_evaluations": 1}}
SERVER = {"algorithm": {"name": "server", "gathering": "asgd", "correction": "dc-asgd-a"}}


class LeaveError(Exception):
    """The driver is gone."""


class Noting(Callback):
    """Notes events, and does something at the first evaluation from a step on."""

    def __init__(self, step: int = 99, act: Callable[[], Any] | None = None) -> None:
        self.step = step
        self.act = act
        self.events: list[Event] = []

    def on_evaluation(self, rows: Any) -> None:
        if rows and rows[-1]["step"] >= self.step and self.act is not None:
            act, self.act = self.act, None
            act()

    def on_event(self, event: Event) -> None:
        self.events.append(event)

    def said(self, kind: str) -> list[str]:
        return [event.detail for event in self.events if event.kind == kind]


def leave() -> None:
    raise LeaveError


def interrupted(storage: Path | str, at_step: int = 15, **changes: Any) -> Path:
    """Return the folder of a run whose driver was lost at a step."""
    scheme = "file://" if str(storage).startswith("file://") else ""

    def lose(folder: Path) -> None:
        with pytest.raises(LeaveError):
            Trainer(SMALL | changes, storage_path=f"{scheme}{folder}", callbacks=[Noting(at_step, leave)]).fit()

    recorded, _ = once(lose, f"{scheme} interrupted at {at_step}", changes)
    return placed(recorded, Path(str(storage).removeprefix("file://")))


def killed(storage: Path, at_step: int = 15, **changes: Any) -> Path:
    """Return the folder as a driver leaves it that is killed: without any of the files that are written at the end."""
    run = interrupted(storage, at_step, **changes)
    for name in ("result.json", "metrics.parquet", "schedule.parquet", "model.safetensors"):
        (run / name).unlink(missing_ok=True)
    return run


def _whole(changes: dict[str, Any]) -> tuple[Path, Result]:
    return once(lambda folder: Trainer(SMALL | changes, storage_path=str(folder)).fit(), "undisturbed", changes)


def undisturbed(storage: Path, **changes: Any) -> Path:
    """Return the folder of a run that nobody has disturbed."""
    return placed(_whole(changes)[0], storage)


def assert_as_undisturbed(result: Result, **changes: Any) -> None:
    _, whole = _whole(changes)
    assert_same_to_the_bit(result, whole)
    assert_same_metrics(result, whole)


def tree_of(folder: Path) -> dict[str, str]:
    """Return all files below a folder, and what they hold."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def command(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str], list[str]]:
    """Return the exit status of a command, and its lines on standard output and standard error."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    captured = capsys.readouterr()
    assert "Traceback" not in captured.out + captured.err
    return int(str(ended.value.code)), captured.out.splitlines(), captured.err.splitlines()


def newest_state(run: Path) -> Path:
    return sorted((run / "states").iterdir())[-1]


def write_state(folder: Path, state: Any, state_format: int | None = FORMAT) -> None:
    """Write what is to be a state, under a right checksum; ``None``: as the version that knew no format."""
    if isinstance(state, dict) and state_format is not None:
        state = {"format": state_format, **state}
    torch.save(state, folder / "state.pt")
    (folder / "checksum").write_text(hashlib.blake2b((folder / "state.pt").read_bytes()).hexdigest())


def kept_steps(result: Result) -> list[int]:
    return [int(Path(one.path).name.removeprefix("step_")) for one, _ in result.best_checkpoints]
