"""Models of runs, tested again: the run's own figures to all digits, other data, and what cannot be."""

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from ray_pcasgd import Callback, SettingsError, Trainer, evaluate
from ray_pcasgd.cli.app import main
from ray_pcasgd.runs.result import Result
from ray_pcasgd.tasks.objective import CrossEntropy
from ray_pcasgd.tasks.objective import evaluate as evaluated
from ray_pcasgd.tasks.samples import Samples
from tests.unit.recorded_runs import once

SETTINGS = {
    **{"num_agents": 3, "num_steps": 12, "evaluate_every": 4, "engine": "local", "name": "first"},
    "checkpoint": {"every_evaluations": 1},
}


def run(path: Path, **settings: Any) -> Result:
    result = Trainer(SETTINGS | {"storage_path": str(path)} | settings).fit()
    assert result.error is None
    return result


def untouched() -> Result:
    """Return a run that many tests ask something of, none of which may change it."""
    return once(lambda folder: run(folder), "evaluated", {})[1]


def measured(result: Result) -> dict[int, dict[str, float]]:
    """Return what the run itself has measured of its averaged model, by step."""
    frame = result.metrics_dataframe[result.metrics_dataframe["agent"].isna()]
    tested = [name for name in frame.columns if name.startswith("test_")]
    return {int(row["step"]): {name: float(row[name]) for name in tested} for _, row in frame.iterrows()}


ALGORITHMS = [{}, {"algorithm": {"name": "server", "shards": 2}}, {"algorithm": "ad-psgd", "links": []}]


@pytest.mark.parametrize("settings", ALGORITHMS, ids=["peers", "servers", "pairs"])
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_every_kept_model_gives_the_runs_own_figures_to_the_last_digit(
    settings: dict[str, Any], scheme: str, tmp_path: Path
) -> None:
    result = run(tmp_path, **settings | {"storage_path": f"{scheme}{tmp_path}/runs"})
    own = measured(result)
    assert sorted(own) == [4, 8, 12]
    for step, figures in own.items():
        found = evaluate(result.path, step)
        assert (found.step, found.metrics) == (step, figures)
        assert result.evaluate(step).metrics == figures
    assert evaluate(result.path) == evaluate(result.path, 12) == evaluate(result.path, "last")
    assert not list(tmp_path.glob("ray_pcasgd_*"))


class Counting(nn.Module):
    """Batch norm, a buffer that the first batch makes, one that is no part of the file, and one that counts."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(8)
        self.layer = nn.Linear(8, 3)
        self.register_buffer("center", None)
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))
        self.register_buffer("shift", torch.full((), 0.5), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.passes += 1
            mean = inputs.mean(0).detach()
            self.center = mean if self.center is None else 0.9 * self.center + 0.1 * mean
        center = 0.0 if self.center is None else self.center
        return self.layer(self.norm(inputs - center)) + self.shift  # type: ignore[no-any-return]


def numbers(first: int, number: int) -> TensorDataset:
    inputs = torch.arange(first * 8, (first + number) * 8).reshape(number, 8).double().mul(0.7).sin().float()
    return TensorDataset(inputs, (inputs[:, 0] > 0).long() + (inputs[:, 1] > 0).long())


def test_objects_of_a_script_are_at_hand_in_the_result_and_elsewhere_are_given_again(tmp_path: Path) -> None:
    task: dict[str, Any] = {"data": (numbers(0, 60), numbers(60, 20)), "model": lambda: Counting()}
    result = run(tmp_path, task=task)
    for step, figures in measured(result).items():
        assert result.evaluate(step).metrics == figures
        assert evaluate(result.path, step, task=task).metrics == figures
    with pytest.raises(SettingsError, match=r"task.data.train = .*given as an object of a script.*Result.evaluate"):
        evaluate(result.path)


def test_other_data_are_tested_as_plain_pytorch_does(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 3))
    task = {"data": (numbers(0, 60), numbers(60, 20)), "model": model}
    result = run(tmp_path, task=task)
    other = numbers(200, 30)
    found = result.evaluate(task={"data": (numbers(0, 60), other), "model": model})
    assert result.checkpoint is not None
    model.load_state_dict(result.checkpoint.state_dict())
    inputs, targets = other.tensors
    with torch.no_grad():
        outputs = model(inputs)
    accuracy = (outputs.argmax(1) == targets).double().mean().item()
    assert found.metrics["test_accuracy"] == accuracy
    assert found.metrics["test_loss"] == pytest.approx(nn.functional.cross_entropy(outputs, targets).item(), rel=1e-6)
    assert found.metrics["test_loss"] == evaluated(model, Samples(inputs, targets), CrossEntropy())["loss"]


def ended(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    return int(caught.value.code or 0)


def test_the_command_prints_the_figures_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert ended("evaluate", result.path) == 0
    first, loss, accuracy = capsys.readouterr().out.splitlines()
    assert first == f"{result.path}, step 12: averaged model"
    assert loss == f"test loss {result.metrics['test_loss']:.4g}"
    assert accuracy == f"test accuracy {100 * result.metrics['test_accuracy']:.1f} %"
    assert ended("evaluate", result.path, "--checkpoint", "4", "--json", "--set", "task.data.test_share=0.5") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["step"], told["model"]) == (4, f"{result.path}/checkpoints/step_00000004")
    half = Trainer(SETTINGS, task={"data": {"test_share": 0.5}}).config.task
    assert told["metrics"] == result.evaluate(4, task={"data": half.data}).metrics
    assert told["metrics"] != measured(result)[4]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--checkpoint", "5"], "has no model of that step; allowed are last and steps, here 4, 8, 12"),
        (["--checkpoint", "newest"], "checkpoint = newest: "),
        (["--set", "seed=1"], "--set seed: allowed are settings of the task"),
        (["--set", "task"], "--set task: allowed is key=value"),
        (["--set", "task.dat.test_share=0.5"], "did you mean task.data"),
        (["--set", "task.model.hidden=[3]"], "its model does not fit the settings of the task (Error(s) in loading"),
        (["--set", "task.data=text"], "task.data.path"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_in_one_line(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended("evaluate", untouched().path, *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert told in line


@pytest.mark.parametrize("place", ["{}/nothing", "file://{}/nothing", "{}"])
def test_what_is_no_run_is_refused(place: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"is no run folder; allowed are folders with a config\.yaml"):
        evaluate(place.format(tmp_path))


def test_a_run_without_a_model_and_a_damaged_model_are_refused(tmp_path: Path) -> None:
    result = run(tmp_path)
    file = Path(result.path) / "model.safetensors"
    file.write_bytes(b"no model")
    with pytest.raises(SettingsError, match="its model cannot be read"):
        evaluate(result.path)
    file.unlink()
    with pytest.raises(SettingsError, match=r"its model cannot be read \(neither model.safetensors nor model.pt\)"):
        evaluate(result.path)
    shutil.rmtree(Path(result.path) / "checkpoints")
    (Path(result.path) / "result.json").unlink()
    with pytest.raises(SettingsError, match="here none"):
        evaluate(result.path, 12)


class Marking:
    """A data set's import path that would leave a mark."""

    made = 0

    def __new__(cls) -> Any:
        cls.made += 1
        return numbers(0, 30)


def test_a_strangers_run_runs_no_code_unless_it_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = dict.fromkeys(("train", "test"), f"{__name__}:Marking")
    settings = {"data": {"name": "custom", **paths, "num_classes": 3}, "model": {"name": "mlp", "hidden": [4]}}
    result = run(tmp_path, task=settings)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "strange"))
    made = Marking.made
    with pytest.raises(SettingsError, match="it names code"):
        evaluate(result.path)
    assert Marking.made == made
    assert evaluate(result.path, trust=True).metrics == measured(result)[12]
    assert Marking.made > made


class Ending(Callback):
    def on_step(self, report: Any) -> None:
        if report.row.step == 9:
            raise ZeroDivisionError


def test_a_run_that_failed_has_a_model_to_evaluate(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        Trainer(SETTINGS, storage_path=str(tmp_path), callbacks=[Ending()]).fit()
    frame = pd.read_parquet(tmp_path / "first" / "metrics.parquet")
    own = frame[frame["agent"].isna()].iloc[-1]
    found = evaluate(tmp_path / "first")
    assert (found.step, found.metrics["test_loss"]) == (8, own["test_loss"])


@pytest.mark.parametrize("task", ["", 3, []])
def test_parts_of_a_task_that_are_no_mapping_are_refused(task: Any) -> None:
    result = untouched()
    for attempt in (lambda: evaluate(result.path, task=task), lambda: result.evaluate(task=task)):
        with pytest.raises(SettingsError, match=r"^task = .*: allowed is a mapping of settings"):
            attempt()
