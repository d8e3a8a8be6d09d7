"""What MLflow's own client finds in stores of this machine."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from ray_pcasgd import MLflow
from ray_pcasgd.runs.interrupting import RunInterrupted
from tests.unit.runs.trackers.tracked import LOST, MEASURED, Interrupting, expected, tracked


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # of MLflow's, which keeps it for those who ask
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    # Of the library's own dependencies, when it is imported and when it makes a store.
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)


def found(uri: str) -> tuple[Any, Any]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    (run,) = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
    return client, run


@pytest.mark.parametrize("kind", ["folder", pytest.param("database", marks=pytest.mark.slow)])
def test_everything_of_a_run_can_be_read_back(kind: str, tmp_path: Path) -> None:
    uri = str(tmp_path / "store") if kind == "folder" else f"sqlite:///{tmp_path}/mlflow.db"
    result = tracked(MLflow(uri, experiment="mine"), tmp_path)
    client, run = found(uri)
    for name in MEASURED:
        for key, values in expected(result, name).items():
            read_back = [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, key)]
            assert read_back == values, key
    assert run.info.run_name == "first"
    assert (run.data.params["algorithm.name"], run.data.params["num_steps"]) == ("pc-asgd", "6")
    assert (run.info.status, run.data.tags.get("error")) == ("FINISHED", None)
    events = Path(client.download_artifacts(run.info.run_id, "events.jsonl", str(tmp_path))).read_text()
    assert LOST._asdict() in [json.loads(line) for line in events.splitlines()]


def test_the_end_of_an_interrupted_run_is_said(tmp_path: Path) -> None:
    with pytest.raises(RunInterrupted):
        tracked(MLflow(tmp_path / "store", experiment="mine"), tmp_path, Interrupting())
    _, run = found(str(tmp_path / "store"))
    assert (run.info.status, run.data.tags["error"]) == ("KILLED", "interrupted")
