"""What cannot be written at the end is tried before the first step, or falls back without loss."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ray_pcasgd.records import StepReport
from ray_pcasgd.runs.callbacks import Callback
from ray_pcasgd.runs.settings.errors import yaml_value
from ray_pcasgd.runs.settings.loading import SettingsError
from ray_pcasgd.runs.storage.checkpoints import Checkpoint
from ray_pcasgd.runs.storage.model_file import encode, read_model
from ray_pcasgd.runs.trainer import Trainer
from tests.unit.ending_runs import SMALL, assert_all_there, fit, names_in, summary_of
from tests.unit.interrupted_runs import Noting, command

# Models of unusual state.


class Unusual(nn.Module):
    """A linear model with something in its state that files may not hold."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 10)
        self.kind = kind
        if kind == "tied":
            self.other = nn.Linear(64, 10)
            self.other.weight = self.linear.weight
        if kind == "not contiguous":
            self.register_buffer("table", torch.arange(6).view(2, 3).t())
        if kind == "frozen, not contiguous":
            self.frozen = nn.Parameter(torch.arange(6.0).view(2, 3).t(), requires_grad=False)
        if kind == "empty":
            self.register_buffer("nothing", torch.zeros(0, 3))
            self.none = nn.Parameter(torch.zeros(0, 5))
            self.frozen = nn.Parameter(torch.zeros(0, 7), requires_grad=False)
        if kind == "complex":
            self.register_buffer("phases", torch.tensor([1 + 2j]).conj())
        if kind == "bool":
            self.register_buffer("flags", torch.tensor([True, False]))
        if kind == "metadata":
            self.register_buffer("__metadata__", torch.arange(3))

    def get_extra_state(self) -> Any:
        return {
            "a mapping": {"calls": 3, "names": ["a", "b"]},
            "a tensor": torch.arange(3),
            "an array": np.arange(3),
            "an object": Path("here"),
            "text": "text",
        }.get(self.kind)

    def set_extra_state(self, state: Any) -> None:
        pass

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.linear(inputs)
        return outputs


class Plain(Unusual):
    get_extra_state = nn.Module.get_extra_state
    set_extra_state = nn.Module.set_extra_state


class Raising(Unusual):
    def get_extra_state(self) -> Any:
        raise RuntimeError("it has none today")


@pytest.mark.parametrize(
    ("factory", "kind", "file", "absent"),
    [
        (Plain, "plain", "model.safetensors", []),
        (Plain, "tied", "model.safetensors", []),
        (Plain, "not contiguous", "model.safetensors", []),
        (Plain, "frozen, not contiguous", "model.safetensors", []),
        (Plain, "empty", "model.safetensors", []),
        (Plain, "complex", "model.safetensors", []),
        (Plain, "bool", "model.safetensors", []),
        (Plain, "metadata", "model.pt", []),
        (Unusual, "a mapping", "model.pt", []),
        (Unusual, "a tensor", "model.safetensors", []),
        (Unusual, "text", "model.pt", []),
        (Unusual, "an array", "model.pt", ["_extra_state"]),
        (Unusual, "an object", "model.pt", ["_extra_state"]),
        (Raising, "raising", "model.safetensors", []),
    ],
)
def test_there_is_always_a_model_s_file_that_runs_no_code(
    factory: Any, kind: str, file: str, absent: list[str], tmp_path: Path
) -> None:
    callback = Noting()
    kept = {"every_evaluations": 1, "num_to_keep": 1}
    result = fit(tmp_path, callback, task={"model": lambda: factory(kind)}, checkpoint=kept)
    assert result.error is None
    assert_all_there(result)
    folder = Path(result.path)
    assert [path.name for path in folder.glob("model.*")] == [file]
    formats = callback.said("model_format")
    assert len(formats) == (file != "model.safetensors" or kind == "raising")
    if absent:
        assert "left out, because no file holds it without running code: _extra_state" in formats[0]
    assert result.checkpoint
    for one in (result.checkpoint, result.best_checkpoints[0][0]):
        state = one.state_dict()
        own = factory(kind)
        expected = dict(own.named_parameters()) if kind == "raising" else own.state_dict()
        assert set(state) == {name for name in expected if name not in absent}
        for name, value in state.items():
            if isinstance(value, Tensor):
                assert value.shape == expected[name].shape
        if kind != "raising" and not absent:
            own.load_state_dict(state)
    if kind == "complex":
        assert state["phases"].tolist() == [1 - 2j]
    if kind == "not contiguous":
        assert state["table"].tolist() == [[0, 3], [1, 4], [2, 5]]
    if kind == "tied":
        assert torch.equal(state["linear.weight"], state["other.weight"])


def test_a_model_file_of_another_format_takes_the_place_of_the_first(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(encode({"a": torch.ones(1)}, {})[1])
    assert Checkpoint(str(tmp_path)).state_dict()["a"].tolist() == [1.0]
    with pytest.raises(FileNotFoundError):
        read_model(lambda name: None)


def test_a_model_file_that_would_call_something_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "made"),)

    torch.save({"a": Evil()}, tmp_path / "model.pt")
    with pytest.raises(Exception, match="Weights only load failed"):
        Checkpoint(str(tmp_path)).state_dict()
    assert not (tmp_path / "made").exists()


# Storage.


@pytest.mark.parametrize(
    ("storage", "expected"),
    [
        ("s3://", "cannot be reached (it names no bucket)"),
        ("gs://", "cannot be reached (it names no bucket)"),
        ("s3:///runs", "cannot be reached (Missing bucket name in S3 URI)"),
        ("nowhere://x", "cannot be reached ("),
        ("file://runs", "cannot be reached ("),
        ("file:///dev/null/runs", "cannot be written ("),
        ("FILE/runs", "cannot be written ("),
        ("/proc/runs", "cannot be written ("),
        ("x" * 300, "cannot be written ("),
        ("a\0b", "cannot be written ("),
        ("hf://datasets/x/y", "cannot be reached ("),
    ],
)
def test_storage_that_takes_nothing_is_refused_before_the_first_step(
    storage: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").write_text("")
    steps: list[Any] = []

    class Steps(Callback):
        def on_start(self, plan: Any, path: Path) -> None:
            steps.append(path)

    with pytest.raises(SettingsError) as error:
        Trainer(SMALL, storage_path=storage, callbacks=[Steps()]).fit()
    assert str(error.value).startswith(f"storage_path = {yaml_value(storage)}: {expected}")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 800
    assert steps == []
    assert names_in(tmp_path) == {"FILE"}


def test_a_remote_folder_has_the_settings_before_the_first_step(tmp_path: Path) -> None:
    seen: list[set[str]] = []

    class Looking(Callback):
        def on_start(self, plan: Any, path: Path) -> None:
            seen.append(names_in(tmp_path / "storage" / "first"))

    storage = f"file://{tmp_path}/storage"
    assert Trainer(SMALL, storage_path=storage, callbacks=[Looking()]).fit().error is None
    assert seen == [{"config.yaml"}]


def test_storage_that_is_lost_at_the_end_leaves_the_files_here(tmp_path: Path) -> None:
    storage = tmp_path / "storage"

    class TakingAway(Callback):
        def on_step(self, report: StepReport) -> None:
            if report.row[:2] != (0, SMALL["num_steps"] - 1):
                return
            (storage / "first" / "config.yaml").unlink()
            (storage / "first").rmdir()
            (storage / "first").write_text("in the way")

    result = Trainer(SMALL, storage_path=f"file://{storage}", callbacks=[TakingAway()]).fit()
    assert f"storage_path = 'file://{storage}': cannot be written (" in str(result.error)
    assert f"the run's files are in {result.path}" in str(result.error)
    assert_all_there(result)
    assert summary_of(result)["error"] == str(result.error)


@pytest.mark.parametrize("name", ["metrics.parquet", "schedule.parquet", "model.safetensors", "result.json"])
def test_one_file_that_cannot_be_written_keeps_no_other_from_it(name: str, tmp_path: Path) -> None:
    class InTheWay(Callback):
        def on_start(self, plan: Any, path: Path) -> None:
            (path / name).mkdir()

    result = fit(tmp_path, InTheWay())
    assert f"the run's files are in {result.path}" in str(result.error)
    assert Path(result.path) != tmp_path / "first"
    assert_all_there(result)
    assert summary_of(result)["error"] == str(result.error)
    assert json.loads((Path(result.path) / "events.jsonl").read_text().splitlines()[-1])["kind"] == "storage_failed"


def test_a_file_that_fails_for_another_reason_is_named_and_the_others_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pandas as pd

    def fails(*_: Any, **__: Any) -> None:
        raise TypeError("of a kind that no table has")

    monkeypatch.setattr(pd.DataFrame, "to_parquet", fails)
    result = fit(tmp_path)
    assert "metrics.parquet could not be written: TypeError: of a kind that no table has" in str(result.error)
    assert Path(result.path) == tmp_path / "first"
    assert {"schedule.parquet", "model.safetensors", "result.json"} <= names_in(result.path)
    assert summary_of(result)["status"] == "failed"


def test_a_file_s_size_that_is_limited_for_a_moment_costs_a_model_and_not_the_run(tmp_path: Path) -> None:
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    class Full(Noting):
        def on_step(self, report: Any) -> None:
            if report.row[:2] == (0, 5):
                resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
            if report.row[:2] == (0, 9):
                resource.setrlimit(resource.RLIMIT_FSIZE, before)

    callback = Full()
    try:
        result = fit(tmp_path, callback, checkpoint={"every_evaluations": 1, "state_seconds": 0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert result.error is None
    assert len(callback.said("model_not_kept")) == 1
    assert len(callback.said("state_not_kept")) == 1
    assert [Path(one.path).name for one, _ in result.best_checkpoints] == ["step_00000004", "step_00000012"]
    assert names_in(Path(result.path) / "checkpoints") == {"step_00000004", "step_00000012"}
    whole = fit(tmp_path / "whole")
    assert result.checkpoint
    assert whole.checkpoint
    weights = whole.checkpoint.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in result.checkpoint.state_dict().items())


@pytest.mark.parametrize("storage", ["s3:/x", "file:/x", "file:x", "S3:runs", "gs:x"])
def test_a_location_without_its_slashes_is_refused(storage: str) -> None:
    with pytest.raises(SettingsError, match=r"storage_path = .*: allowed are a folder, and a location such as s3://"):
        Trainer(SMALL, storage_path=storage)


def test_a_folder_may_have_a_colon_in_its_name(tmp_path: Path) -> None:
    result = Trainer(SMALL, storage_path=str(tmp_path / "a:b")).fit()
    assert result.error is None
    assert {"schedule.parquet", "metrics.parquet"} <= {path.name for path in Path(result.path).iterdir()}


def test_agents_that_take_several_steps_in_a_row_are_counted_by_their_steps(tmp_path: Path) -> None:
    elastic = {"name": "elastic-averaging", "period": 4}
    result = Trainer(SMALL, storage_path=str(tmp_path), algorithm=elastic).fit()
    assert result.error is None
    summary = json.loads((Path(result.path) / "result.json").read_text(encoding="utf-8"))
    assert summary["agent_steps"] == SMALL["num_agents"] * SMALL["num_steps"]


class Accuracy:
    """A metric that takes in batches, and is no function."""

    def reset(self) -> None:
        self.right, self.number = 0, 0

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self.right += int((outputs.argmax(1) == targets).sum())
        self.number += len(targets)

    def compute(self) -> float:
        return self.right / self.number


@pytest.mark.parametrize("metric", [Accuracy, Accuracy()], ids=["class", "object"])
def test_a_metric_need_not_be_a_function(metric: Any, tmp_path: Path) -> None:
    own = {"name": "custom", "function": metric, "label": "own"}
    task = {"model": {"hidden": [8]}, "metrics": ["accuracy", own]}
    result = Trainer(SMALL, storage_path=str(tmp_path), task=task).fit()
    assert result.error is None
    assert result.metrics["test_own"] == pytest.approx(result.metrics["test_accuracy"])


def test_a_run_on_remote_storage_has_its_page_and_the_whole_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = ["num_agents=3", "num_steps=6", "evaluate_every=6", f"storage_path=file://{tmp_path}/store"]
    arguments = [part for setting in settings for part in ("--set", setting)]
    status, lines, errors = command(["train", "--engine", "local", "--name", "first", *arguments], capsys)
    assert (status, errors) == (0, [])
    assert any("mean staleness" in line for line in lines)
    assert f"report file://{tmp_path}/store/first/report.html" in lines
    assert (tmp_path / "store" / "first" / "report.html").exists()


@pytest.mark.parametrize(("tree", "path"), [({None: 2}, "settings"), ({"task": {None: 1}}, "task")])
def test_a_key_that_is_null_is_told(tree: Any, path: str) -> None:
    with pytest.raises(SettingsError, match=f"^{path}: has the key null; allowed are names of settings$"):
        Trainer(tree)
