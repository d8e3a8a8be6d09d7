"""No door takes a location that holds a key, and none shows it: neither in its error nor in a file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ray_pcasgd import Trainer, evaluate, resume
from ray_pcasgd.base.errors import SettingsError
from ray_pcasgd.cli.app import app, run_command
from ray_pcasgd.config import Config
from ray_pcasgd.report.data import load_run
from ray_pcasgd.runs.comparison import compare
from ray_pcasgd.runs.settings.loading import load_config
from ray_pcasgd.runs.storage.checkpoints import Checkpoint
from ray_pcasgd.sweep import running as sweeping
from ray_pcasgd.sweep.settings import load_sweep
from tests.unit.interrupted_runs import SMALL

SECRET = "wJalrXUtnFEMI/K7MDENG"
PLACE = f"s3://ID:{SECRET}@bucket/runs"
TOLD = (
    "s3://***@bucket/runs{}: holds a key, which would stand in files and messages; set AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY in the environment instead"
)
SWEEP: dict[str, Any] = {"config": SMALL, "space": {"step_size": [0.1, 0.2]}}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "subject"),
    [
        (["train", "--engine", "local", "--set", f"storage_path={PLACE}"], "storage_path"),
        (["train", "--set", f"schedule={PLACE}/schedule.parquet"], "schedule"),
        (["train", "--resume", f"{PLACE}/first"], ""),
        (["compare", "--set", f"storage_path={PLACE}"], "storage_path"),
        (["replay", f"{PLACE}/first"], ""),
        (["report", f"{PLACE}/first"], ""),
        (["evaluate", f"{PLACE}/first"], ""),
        (["watch", f"{PLACE}/first"], ""),
        (["status", f"{PLACE}/first"], ""),
        (["leave", f"{PLACE}/first", "--agent", "1"], ""),
        (["sweep", f"{PLACE}/first", "--resume"], ""),
        (["theory", "--set", f"storage_path={PLACE}"], "storage_path"),
    ],
)
def test_a_command_refuses_it_in_one_line(
    arguments: list[str], subject: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(lambda: app(arguments, standalone_mode=False)) == 2
    shown = capsys.readouterr()
    end = "/schedule.parquet" if subject == "schedule" else "/first" if not subject else ""
    told = TOLD.format(f"{end}'" if subject else end)
    named = f"{subject} = '" if subject else ""
    assert shown.err == f"error: {named}{told}\n"
    assert shown.out == ""
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", f"{PLACE}/settings.yaml"],
        ["train", "--set", f"storage_pat={PLACE}"],
        ["train", "--set", f"storage_path: {PLACE}"],
        ["train", "--storage-path", PLACE],
        ["sweep", f"{PLACE}/sweep.yaml"],
        ["report", "runs", "--output", f"{PLACE}/report.html"],
        ["report", "runs", "--figures", PLACE],
        [PLACE],
    ],
)
def test_a_misplaced_one_is_not_shown_either(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(lambda: app(arguments, standalone_mode=False)) == 2
    shown = capsys.readouterr()
    assert "s3:/" in shown.err + "s3:/" * (arguments[-1] == PLACE)
    assert SECRET[:9] not in shown.out + shown.err
    assert SECRET[-6:] not in shown.out + shown.err
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    "enter",
    [
        lambda: Trainer(SMALL, storage_path=PLACE),
        lambda: Trainer(Config(storage_path=PLACE)),
        lambda: Trainer(SMALL, task={"data": {"name": "image-parquet", "train": PLACE, "test": PLACE}}),
        lambda: load_config({"task": {"data": {"name": "custom", "train": {"dataset": [{"url": PLACE}]}}}}),
        lambda: resume(PLACE),
        lambda: evaluate(PLACE),
        lambda: evaluate(Path(PLACE)),
        lambda: Checkpoint(PLACE).state_dict(),
        lambda: compare(Config(storage_path=PLACE), [], 1),
        lambda: load_sweep({**SWEEP, "storage_path": PLACE}),
        lambda: load_sweep({**SWEEP, "config": {"storage_path": PLACE}}),
        lambda: load_sweep({**SWEEP, "space": {"schedule": [PLACE]}}),
        lambda: sweeping.sweep({"space": SWEEP["space"]}, f"{PLACE}/schedule.parquet"),
        lambda: sweeping.resume(PLACE),
    ],
)
def test_so_do_python_s_doors(enter: Callable[[], Any], tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"s3:/.*\*\*\*@bucket.*: holds a key, which would stand in") as raised:
        enter()
    assert SECRET[-6:] not in str(raised.value)
    assert not [*tmp_path.iterdir()]


def test_a_report_of_an_older_run_does_not_show_it(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(
        f"storage_path: {PLACE}\nengine: {{name: local}}\nalgorithm: {{name: d-psgd}}\n"
    )
    (tmp_path / "events.jsonl").write_text(f'{{"kind": "finished", "detail": "published at {PLACE}"}}\n')
    run = load_run(tmp_path)
    assert run.config["storage_path"] == "s3://***@bucket/runs"
    assert run.events[0]["detail"] == "published at s3://***@bucket/runs"
