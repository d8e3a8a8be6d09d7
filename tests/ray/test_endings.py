"""Runs on real actors that raise, are interrupted, or go on from states that are damaged."""

import json
import shutil
import signal
from collections.abc import Collection
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
from tests.ray.failing import FailingLater, FailingWhenEvaluated
from tests.ray.leaving import ENDLESS, LeftError, Watch, as_far_as, assert_same_as_far_as_it_came, evaluated_after
from tests.unit.interrupted_runs import Noting, newest_state, write_state

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
    """Interrupts at the first step that it is told of."""

    is_due = True

    def on_step(self, report: Any) -> None:
        if self.is_due:
            self.is_due = False
            signal.raise_signal(signal.SIGINT)


def go_on(run: Path, agents: Collection[int]) -> tuple[Noting, Watch]:
    """Go on with a run until agents were evaluated again; return its events and its rows."""
    noting, watch = Noting(), Watch(evaluated_after(lambda: True, agents))
    with pytest.raises(LeftError):
        resume(run, [noting, watch])
    assert noting.said("run_resumed")
    assert not noting.said("run_begins_anew")
    return noting, watch


def add_wrong_state(run: Path) -> tuple[Path, Path]:
    """Put a state of wrong content behind the newest one of a run; return the folders of both."""
    older = newest_state(run)
    newest = older.with_name("999999")
    shutil.copytree(older, newest)
    state = load_state(newest / "state.pt")
    own = next(one for one in state["engine"]["agents"] if "weights" in one)
    own["weights"] = torch.ones(3)
    write_state(newest, state)
    return older, newest


def assert_gave_way(wrong: Path, older: Path, noting: Noting) -> None:
    (skipped,) = noting.said("state_skipped")
    assert str(wrong) in skipped
    assert str(older) not in skipped
    assert "weights is torch.float32 of shape (3,)" in skipped


def test_ctrl_c_keeps_a_state_of_a_planned_run_which_goes_on_to_the_bit_past_one_of_wrong_content(
    tmp_path: Path,
) -> None:
    endless = ENDLESS | {"evaluate_every": 50}
    with pytest.raises(RunInterrupted) as stopped:
        fit(tmp_path / "lost", Interrupting(), **endless)
    assert stopped.value.has_state
    assert str(stopped.value).endswith(f"ray-pcasgd train --resume {tmp_path}/lost/first")
    older, wrong = add_wrong_state(tmp_path / "lost" / "first")
    noting, watch = go_on(tmp_path / "lost" / "first", range(2))
    assert_gave_way(wrong, older, noting)
    whole = Watch(as_far_as(watch))
    with pytest.raises(LeftError):
        fit(tmp_path / "whole", whole, engine={"name": "local", "batched": "never"}, **endless)
    assert_same_as_far_as_it_came(watch, whole)


@pytest.mark.slow
def test_ctrl_c_in_a_live_run_without_a_state_ends_it_at_once_with_its_files(tmp_path: Path) -> None:
    with pytest.raises(RunInterrupted) as stopped:
        fit(tmp_path, Interrupting(), **ENDLESS, **LIVE)
    assert not stopped.value.has_state
    assert read_rows(tmp_path / "first" / "schedule.parquet")[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "evaluated"),
    [
        ({"algorithm": {"name": "server", "gathering": "asgd"}}, (2,)),
        (LIVE | {"compute": {"stragglers": {0: 0.01}}}, (0, 1)),
    ],
    ids=["server", "live"],
)
def test_a_state_of_wrong_content_gives_way_to_an_older_one(
    changes: dict[str, Any], evaluated: tuple[int, ...], tmp_path: Path
) -> None:
    run = tmp_path / "first"
    has_state = Watch(lambda watch: (run / "states" / "000001").exists())
    with pytest.raises(LeftError):
        fit(tmp_path, has_state, checkpoint={"state_seconds": 0}, **changes, **ENDLESS)
    older, wrong = add_wrong_state(run)
    noting, _ = go_on(run, evaluated)
    assert_gave_way(wrong, older, noting)
