"""What all trackers share: libraries that are missing, libraries that fail, and names of settings."""

import importlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from ray_pcasgd import MLflow, SettingsError, TensorBoard, Trainer, WandB
from ray_pcasgd.cli.app import run_command
from ray_pcasgd.records import Event
from ray_pcasgd.runs.plan.plan import Plan
from ray_pcasgd.runs.settings.loading import load_config
from ray_pcasgd.runs.trackers.base import Tracker, flattened, settings_of
from tests.unit.runs.trackers.tracked import SETTINGS, tracked


@pytest.mark.parametrize(
    ("name", "library", "extra"),
    [
        ("TensorBoard", "torch.utils.tensorboard", "tensorboard"),
        ("WandB", "wandb", "wandb"),
        ("MLflow", "mlflow", "mlflow"),
    ],
)
def test_a_missing_library_is_one_line_that_names_the_extra(
    name: str,
    library: str,
    extra: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    usual = importlib.import_module

    def without(module: str, package: str | None = None) -> Any:
        if module == library:
            raise ModuleNotFoundError(f"No module named '{library}'")
        return usual(module, package)

    monkeypatch.setattr(importlib, "import_module", without)
    settings = SETTINGS | {"storage_path": str(tmp_path / "runs"), "callbacks": [f"ray_pcasgd:{name}"]}
    assert run_command(lambda: Trainer(settings).fit()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"error: callbacks.0 = 'ray_pcasgd:{name}': {name} needs a library that is not installed (No module named "
        f"'{library}'): pip install 'ray-pcasgd[{extra}]'"
    )
    assert not (tmp_path / "runs").exists()


class Breaking(Tracker):
    def __init__(self, method: str) -> None:
        super().__init__()
        self.method = method
        self.calls: list[str] = []

    def call(self, method: str) -> None:
        self.calls.append(method)
        if method == self.method:
            raise ConnectionError("no answer")

    def open(self, plan: Plan, path: Path, settings: Mapping[str, Any]) -> None:
        self.call("open")

    def figures(self, values: Mapping[str, float], step: int) -> None:
        self.call("figures")

    def event(self, event: Event) -> None:
        self.call("event")

    def close(self, status: str, error: str) -> None:
        self.call("close")


def test_a_tracker_that_fails_later_costs_the_run_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tracker = Breaking("figures")
    with caplog.at_level(logging.WARNING, "ray_pcasgd"):
        assert tracked(tracker, tmp_path).error is None
    assert [record.getMessage() for record in caplog.records] == [
        "Breaking tracks no more of the run: ConnectionError: no answer (tests/unit/runs/trackers/test_base.py:"
        f"{Breaking.call.__code__.co_firstlineno + 3})"
    ]
    assert tracker.calls.count("figures") == 1
    assert tracker.calls[-1] == "figures"


def test_a_tracker_that_cannot_begin_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(ConnectionError, match="no answer"):
        tracked(Breaking("open"), tmp_path)


def test_settings_in_one_level_have_the_names_that_follow_set() -> None:
    flat = flattened(settings_of(load_config(SETTINGS | {"links": [{"between": "clusters", "delay": 3}]})))
    for name, value in flat.items():
        if not isinstance(value, str | None):
            changed = load_config(SETTINGS | {"links": [{"between": "clusters", "delay": 3}]}, [f"{name}={value}"])
            assert flattened(settings_of(changed))[name] == value
    assert flat["links.0.delay.value"] == 3.0
    assert flat["task.model.hidden"] == "[64, 64]"


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: TensorBoard(3), "TensorBoard.folder = 3: allowed is a folder"),  # type: ignore[arg-type]
        (lambda: TensorBoard(""), "TensorBoard.folder = '': allowed is a folder"),
        (lambda: MLflow(uri=3), "MLflow.uri = 3: allowed is a folder"),  # type: ignore[arg-type]
        (lambda: MLflow(experiment=None), "MLflow.experiment = None: allowed is a text"),  # type: ignore[arg-type]
        (lambda: WandB(mode="onlin"), "WandB.mode = 'onlin': allowed are online, offline and disabled"),
        (lambda: WandB(project=3), "WandB.project = 3: allowed is a text"),  # type: ignore[arg-type]
        (lambda: WandB(folder=3), "WandB.folder = 3: allowed is a folder"),  # type: ignore[arg-type]
    ],
)
def test_what_no_tracker_can_use_is_refused_in_one_line(make: Callable[[], Any], told: str) -> None:
    with pytest.raises(SettingsError) as caught:
        make()
    assert str(caught.value) == told


def test_a_mode_of_the_environment_that_there_is_not_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "onlin")
    with pytest.raises(SettingsError, match=r"^WANDB_MODE = 'onlin': allowed are online"):
        WandB()
    assert WandB(mode="offline") is not None
