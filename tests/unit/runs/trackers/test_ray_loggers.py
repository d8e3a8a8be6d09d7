"""Ray Tune's own loggers, as Ray's ``RunConfig`` hands them over, write what they write of a trial."""

import csv
import json
import math
import warnings
from pathlib import Path
from typing import Any

import pytest

from ray_pcasgd import SettingsError, Trainer
from ray_pcasgd.runs.result import Result
from tests.unit.runs.trackers.tracked import SETTINGS

with warnings.catch_warnings():
    # Of what Tune imports.
    warnings.simplefilter("ignore")
    import ray.train
    import ray.tune
    from ray.air.integrations.mlflow import MLflowLoggerCallback
    from ray.air.integrations.wandb import WandbLoggerCallback
    from ray.tune.logger import CSVLoggerCallback, JsonLoggerCallback, LoggerCallback, TBXLoggerCallback


def run(path: Path, *loggers: Any, **settings: Any) -> Result:
    config = ray.tune.RunConfig(storage_path=str(path), callbacks=list(loggers))
    given = SETTINGS | {"checkpoint": {"every_evaluations": 1}} | settings
    return Trainer(given, run_config=config).fit()


def averaged(result: Result) -> list[dict[str, Any]]:
    frame = result.metrics_dataframe
    return list(frame[frame["agent"].isna()].to_dict("records"))


def test_the_json_logger_writes_settings_and_results(tmp_path: Path) -> None:
    result = run(tmp_path, JsonLoggerCallback())
    folder = tmp_path / "first" / "ray_loggers"
    lines = [json.loads(line) for line in (folder / "result.json").read_text().splitlines()]
    assert [(line["training_iteration"], line["timesteps_total"]) for line in lines] == [(1, 3), (2, 6)]
    assert [line["test_loss"] for line in lines] == [row["test_loss"] for row in averaged(result)]
    frame = result.metrics_dataframe
    of_agent = frame[frame["agent"] == 1]["train_loss"].tolist()
    assert [line["agents"]["1"]["train_loss"] for line in lines] == of_agent
    assert json.loads((folder / "params.json").read_text())["algorithm"]["name"] == "pc-asgd"
    assert json.loads((tmp_path / "first" / "result.json").read_text())["status"] == "finished"


def test_the_csv_logger_writes_a_table(tmp_path: Path) -> None:
    result = run(tmp_path, CSVLoggerCallback())
    with (tmp_path / "first" / "ray_loggers" / "progress.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["test_accuracy"]) for row in rows] == [row["test_accuracy"] for row in averaged(result)]
    assert [int(row["step"]) for row in rows] == [3, 6]
    assert all(math.isfinite(float(row["agents/0/test_loss"])) for row in rows)


def test_the_tensorboard_logger_writes_curves(tmp_path: Path) -> None:
    from tests.unit.runs.trackers.test_tensorboard import read

    result = run(tmp_path, TBXLoggerCallback())
    found = read(tmp_path / "first" / "ray_loggers")
    curve = [(event.step, event.value) for event in found.Scalars("ray/tune/test_loss")]
    assert curve == [(row["step"], pytest.approx(row["test_loss"], rel=1e-6)) for row in averaged(result)]


def test_the_mlflow_logger_writes_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    # Of the library's own dependencies.
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    store = f"file://{tmp_path}/store"
    result = run(tmp_path, MLflowLoggerCallback(tracking_uri=store, experiment_name="mine"))
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=store)
    (found,) = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
    curve = client.get_metric_history(found.info.run_id, "test_loss")
    assert [(metric.step, metric.value) for metric in curve] == [
        (row["step"], row["test_loss"]) for row in averaged(result)
    ]
    assert found.data.params["algorithm/name"] == "pc-asgd"
    assert found.info.status == "FINISHED"


class Recording(LoggerCallback):
    def __init__(self) -> None:
        self.calls: list[Any] = []

    def log_trial_start(self, trial: Any) -> None:
        self.calls.append(("start", str(trial), trial.config["num_steps"]))

    def log_trial_save(self, trial: Any) -> None:
        self.calls.append(("save", sorted(path.name for path in Path(trial.checkpoint.path).iterdir())))

    def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
        self.calls.append(("result", iteration, result["step"]))

    def log_trial_end(self, trial: Any, failed: bool = False) -> None:
        self.calls.append(("end", failed))

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        self.calls.append("experiment end")


def test_loggers_are_called_in_tunes_order(tmp_path: Path) -> None:
    run(tmp_path, recording := Recording())
    saved = ("save", ["metrics.json", "model.safetensors"])
    assert recording.calls == [
        ("start", "first", 6),
        *(("result", 1, 3), saved, ("result", 2, 6), saved),
        ("end", False),
        "experiment end",
    ]


def test_a_run_with_an_error_is_a_trial_that_failed(tmp_path: Path) -> None:
    recording = Recording()
    assert run(tmp_path, recording, step_size=1e30).error is not None
    assert recording.calls[-2:] == [("end", True), "experiment end"]


class Stepping(LoggerCallback):
    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None: ...


class OfTrain(ray.train.UserCallback):
    pass


@pytest.mark.parametrize(
    ("callback", "config", "told"),
    [
        (Stepping(), ray.tune.RunConfig, "on_step_begin would not be called; allowed are on_trial_start"),
        (ray.tune.Callback(), ray.tune.RunConfig, "no hook of it would be called; allowed are objects of classes"),
        (OfTrain(), ray.train.RunConfig, "no hook of it would be called; allowed are objects of classes"),
        (WandbLoggerCallback(), ray.tune.RunConfig, "it logs through Ray actors, which end together with"),
    ],
)
def test_what_no_run_can_do_for_a_callback_is_refused(callback: Any, config: Any, told: str) -> None:
    with pytest.raises(SettingsError) as refused:
        Trainer(SETTINGS, run_config=config(callbacks=[callback]))
    kind = type(callback)
    assert str(refused.value).startswith(f"run_config.callbacks.0 = <{kind.__module__}:{kind.__qualname__}>: {told}")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("field", "value"), [("stop", {"test_loss": 1}), ("log_to_file", True)])
def test_fields_of_tunes_run_configuration_without_a_meaning_are_refused(field: str, value: Any) -> None:
    with pytest.raises(SettingsError, match=f"run_config.{field} = .*: has no meaning here"):
        Trainer(SETTINGS, run_config=ray.tune.RunConfig(**{field: value}))
