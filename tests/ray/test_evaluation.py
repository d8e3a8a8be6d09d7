"""The averaged model is evaluated beside the driver, which meanwhile goes on."""

import os
from pathlib import Path
from typing import Any

import pytest
import ray

from ray_pcasgd.records import StepReport
from ray_pcasgd.runs import averaged
from ray_pcasgd.runs.callbacks import Callback
from ray_pcasgd.runs.result import Result
from ray_pcasgd.runs.trainer import Trainer

pytestmark = pytest.mark.usefixtures("ray_cluster")


class Watcher(Callback):
    """Notes what comes when, and does something at the last step of agent 0."""

    def __init__(self, act: Any = lambda: None) -> None:
        self.act = act
        self.seen: list[Any] = []
        self.kinds: list[str] = []

    def on_step(self, report: StepReport) -> None:
        if report.row.agent == 0:
            self.seen.append(report.row.step)
            if report.row.step == 59:
                self.act()

    def on_evaluation(self, rows: list[dict[str, Any]]) -> None:
        self.seen += ["evaluation"] if rows else []

    def on_event(self, event: Any) -> None:
        self.kinds.append(event.kind)


def fit(folder: Path, watcher: Watcher, gate: Path, **settings: Any) -> Result:
    metric = {"name": "custom", "function": "tests.ray.evaluating:gated_accuracy", "arguments": {"gate": str(gate)}}
    base: dict[str, Any] = {
        "num_agents": 2,
        "num_steps": 60,
        "evaluate_every": 20,
        "links": [],
        "task": {"metrics": [metric]},
        "engine": {"name": "ray"},
        "storage_path": str(folder),
    }
    return Trainer(base | settings, callbacks=[watcher]).fit()


@pytest.fixture
def gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(averaged, "QUICK_SECONDS", -1.0)
    pipe = tmp_path / "gate"
    os.mkfifo(pipe)
    return pipe


def test_a_driver_goes_on_while_its_model_is_evaluated(gate: Path, tmp_path: Path) -> None:
    def open_gate() -> None:
        # It opens once the other process waits at it, and is gone for all evaluations after that.
        writer = os.open(gate, os.O_WRONLY)
        gate.unlink()
        os.close(writer)

    watcher = Watcher(open_gate)
    result = fit(tmp_path, watcher, gate)
    assert result.error is None
    assert watcher.seen == [*range(60), *["evaluation"] * 3]
    alone = fit(tmp_path, Watcher(), gate, engine={"name": "local", "batched": "never"})
    frames = [one.metrics_dataframe.drop(columns="wall_seconds") for one in (result, alone)]
    assert frames[0].equals(frames[1])
    assert result.metrics["test_gated_accuracy"] > 0


def test_where_the_process_that_evaluates_is_lost_nothing_of_its_work_is(gate: Path, tmp_path: Path) -> None:
    def kill() -> None:
        (name,) = [one for one in ray.util.list_named_actors(all_namespaces=True) if one["name"].endswith("evaluation")]
        ray.kill(ray.get_actor(**name))

    watcher = Watcher(kill)
    result = fit(tmp_path, watcher, gate)
    assert result.error is None
    assert watcher.kinds.count("evaluator_lost") == 1
    assert len(result.metrics_dataframe) == 3 * 3
    assert result.metrics_dataframe["test_gated_accuracy"].notna().all()
