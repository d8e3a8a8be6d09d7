"""Runs on real actors that raise, are interrupted, or go on from states that are damaged."""

import fcntl
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from ray_pcasgd.base.state import load_state
from ray_pcasgd.engines.base import RunError
from ray_pcasgd.engines.failures import StepError
from ray_pcasgd.runs.callbacks import Callback
from ray_pcasgd.runs.interrupting import RunInterrupted
from ray_pcasgd.runs.result import Result
from ray_pcasgd.runs.trainer import Trainer, resume
from ray_pcasgd.schedule.parquet import read_rows
from tests.comparing import assert_same_to_the_bit
from tests.ray.failing import FailingLater, FailingWhenEvaluated, Gated
from tests.unit.interrupted_runs import Noting, write_state

pytestmark = pytest.mark.usefixtures("ray_cluster")
SMALL: dict[str, Any] = {
    "name": "first",
    "num_agents": 2,
    "num_steps": 40,
    "evaluate_every": 20,
    "links": [],
    "engine": {"name": "ray"},
}
LIVE = {"engine": {"name": "ray", "mode": "live"}}
PLACE = f"failing.py:{FailingLater.forward.__code__.co_firstlineno + 4})"


def fit(folder: Path, callback: Callback | None = None, **changes: Any) -> Result:
    return Trainer(SMALL | changes, storage_path=str(folder), callbacks=[callback or Callback()]).fit()


FAMILIES: dict[str, dict[str, Any]] = {
    "peers": {},
    "peers, live": LIVE,
    "pairs": {"algorithm": "ad-psgd"},
    "pairs, live": {"algorithm": "ad-psgd"} | LIVE,
    "server": {"algorithm": {"name": "server", "gathering": "asgd"}},
    "server, live": {"algorithm": {"name": "server", "gathering": "asgd"}} | LIVE,
}


CENTRAL = ("peers", "server, live")


@pytest.mark.parametrize(
    "family", [name if name in CENTRAL else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
def test_a_model_that_raises_in_an_agent_s_process_is_named(family: str, tmp_path: Path) -> None:
    result = fit(tmp_path, task={"model": FailingLater}, **FAMILIES[family])
    assert isinstance(result.error, StepError)
    assert result.error.agent in (0, 1)
    assert str(result.error).startswith(f"agent {result.error.agent} at step 5: OwnError: no more (")
    assert str(result.error).endswith(PLACE)
    summary = json.loads((Path(result.path) / "result.json").read_text())
    assert (summary["status"], summary["error"]) == ("failed", str(result.error))
    assert "in forward" in summary["traceback"]
    assert read_rows(Path(result.path) / "schedule.parquet")[0]


@pytest.mark.parametrize("family", ["peers", pytest.param("pairs, live", marks=pytest.mark.slow)])
def test_an_evaluation_that_raises_in_an_agent_s_process_costs_no_training(family: str, tmp_path: Path) -> None:
    result = fit(tmp_path, task={"model": FailingWhenEvaluated}, **FAMILIES[family])
    assert isinstance(result.error, StepError)
    assert str(result.error).startswith("evaluation of ")
    assert "at step 20: KeyError: 'evaluated' (" in str(result.error)
    assert "failing.py:" in str(result.error)
    assert result.metrics["step"] == 40
    assert result.checkpoint is not None
    assert result.checkpoint.state_dict()


def test_a_model_that_cannot_be_built_in_an_agent_s_process_is_named(tmp_path: Path) -> None:
    result = fit(tmp_path, task={"model": {"name": "custom", "factory": "tests.ray.failing:FailingElsewhere"}})
    assert isinstance(result.error, RunError)
    assert "agent 0 could not be built: " in str(result.error)
    assert "fails (LookupError: not here) (" in str(result.error)
    assert "failing.py:" in str(result.error)
    assert "\n" not in str(result.error)


class Interrupting(Noting):
    """Interrupts at the first step that it is told of; before that, no agent takes its 100th one."""

    def __init__(self, gate: Path) -> None:
        super().__init__()
        gate.write_text("")
        self.gate = gate
        self.task = {"model": {"name": "custom", "factory": Gated, "arguments": {"file": str(gate)}}}

    def on_start(self, plan: Any, path: Path) -> None:
        self.file = self.gate.open()
        fcntl.flock(self.file, fcntl.LOCK_EX)

    def on_step(self, report: Any) -> None:
        if not self.file.closed:
            signal.raise_signal(signal.SIGINT)
            self.file.close()


def test_ctrl_c_keeps_a_state_of_a_planned_run_which_goes_on_to_the_bit(tmp_path: Path) -> None:
    interrupting = Interrupting(tmp_path / "gate")
    settings = {"num_steps": 600, "evaluate_every": 300, "task": interrupting.task}
    with pytest.raises(RunInterrupted) as stopped:
        fit(tmp_path / "lost", interrupting, **settings)
    assert stopped.value.has_state
    assert str(stopped.value).endswith(f"ray-pcasgd train --resume {tmp_path}/lost/first")
    callback = Noting()
    again = resume(tmp_path / "lost" / "first", [callback])
    assert callback.said("run_resumed")
    assert not callback.said("run_begins_anew")
    whole = fit(tmp_path / "whole", engine={"name": "local", "batched": "never"}, **settings)
    assert_same_to_the_bit(again, whole)


@pytest.mark.slow
def test_ctrl_c_in_a_live_run_without_a_state_ends_it_at_once_with_its_files(tmp_path: Path) -> None:
    interrupting = Interrupting(tmp_path / "gate")
    with pytest.raises(RunInterrupted) as stopped:
        fit(tmp_path, interrupting, num_steps=600, task=interrupting.task, **LIVE)
    assert not stopped.value.has_state
    assert read_rows(tmp_path / "first" / "schedule.parquet")[0]


class LeaveError(Exception):
    pass


class Leaving(Callback):
    """Leaves the run once a state of it is kept."""

    def on_start(self, plan: Any, path: Path) -> None:
        self.states = path / "states"

    def on_step(self, report: Any) -> None:
        if (self.states / "000001").exists():
            raise LeaveError


@pytest.mark.parametrize(
    "changes",
    [
        {},
        pytest.param({"algorithm": {"name": "server", "gathering": "asgd"}}, marks=pytest.mark.slow),
        pytest.param(LIVE | {"compute": {"stragglers": {0: 0.01}}}, marks=pytest.mark.slow),
    ],
    ids=["peers", "server", "live"],
)
def test_a_state_of_wrong_content_gives_way_to_an_older_one(changes: dict[str, Any], tmp_path: Path) -> None:
    settings = {"num_steps": 400, "evaluate_every": 200, "checkpoint": {"state_seconds": 0}} | changes
    with pytest.raises(LeaveError):
        fit(tmp_path, Leaving(), **settings)
    run = tmp_path / "first"
    older = sorted((run / "states").iterdir())[-1]
    newest = older.with_name("000099")
    shutil.copytree(older, newest)
    state = load_state(newest / "state.pt")
    own = next(one for one in state["engine"]["agents"] if "weights" in one)
    own["weights"] = torch.ones(3)
    write_state(newest, state)
    callback = Noting()
    result = resume(run, [callback])
    assert result.error is None
    (skipped,) = callback.said("state_skipped")
    assert str(newest) in skipped
    assert not any(str(older) in line for line in callback.said("state_skipped"))
    assert "weights is torch.float32 of shape (3,)" in skipped
    assert callback.said("run_resumed")
