"""The averaged model is evaluated beside the driver, which meanwhile goes on."""

import os
import threading
from collections.abc import Callable
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
    """Notes what comes when, and does something after each step until that says that it is done."""

    def __init__(self, act: Callable[[StepReport], bool] = lambda _: True) -> None:
        self.act: Callable[[StepReport], bool] | None = act
        self.seen: list[Any] = []
        self.kinds: list[str] = []

    def on_step(self, report: StepReport) -> None:
        if report.row.agent == 0:
            self.seen.append(report.row.step)
        if self.act is not None and self.act(report):
            self.act = None

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

    def open_at_the_end(report: StepReport) -> bool:
        is_last = report.row[:2] == (0, 59)
        if is_last:
            threading.Thread(target=open_gate, daemon=True).start()
        return is_last

    watcher = Watcher(open_at_the_end)
    result = fit(tmp_path, watcher, gate)
    assert result.error is None
    assert watcher.seen == [*range(60), *["evaluation"] * 3]
    alone = fit(tmp_path, Watcher(), gate, engine={"name": "local", "batched": "never"})
    frames = [one.metrics_dataframe.drop(columns="wall_seconds") for one in (result, alone)]
    assert frames[0].equals(frames[1])
    assert result.metrics["test_gated_accuracy"] > 0


def test_where_the_process_that_evaluates_is_lost_nothing_of_its_work_is(gate: Path, tmp_path: Path) -> None:
    def kill(report: StepReport) -> bool:
        actors = ray.util.list_named_actors(all_namespaces=True)
        names = [one for one in actors if str(tmp_path) in one["namespace"] and one["name"].endswith(" evaluation")]
        if names:
            gate.unlink()  # the first process waits at it, another one finds none
            ray.kill(ray.get_actor(**names[0]))
        return bool(names)

    watcher = Watcher(kill)
    result = fit(tmp_path, watcher, gate)
    assert result.error is None
    assert watcher.kinds.count("evaluator_lost") == 1
    assert len(result.metrics_dataframe) == 3 * 3
    assert result.metrics_dataframe["test_gated_accuracy"].notna().all()
