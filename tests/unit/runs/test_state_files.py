"""A run goes on from its newest state that is intact, and outlives a folder that cannot be written."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from ray_pcasgd.base.state import load_state
from ray_pcasgd.cli.app import app
from ray_pcasgd.config import CheckpointSettings
from ray_pcasgd.engines.base import Pause
from ray_pcasgd.runs.callbacks import Callback
from ray_pcasgd.runs.settings.loading import SettingsError
from ray_pcasgd.runs.storage.state_files import StateFiles
from ray_pcasgd.runs.trainer import Trainer, resume
from tests.unit.interrupted_runs import (
    SMALL,
    LeaveError,
    Noting,
    assert_as_undisturbed,
    command,
    interrupted,
    leave,
    newest_state,
    tree_of,
    write_state,
)

PAIRS = {"algorithm": "ad-psgd", "links": []}
SERVER = {"algorithm": {"name": "server", "gathering": "asgd"}}


@pytest.mark.parametrize("changes", [{}, PAIRS, SERVER], ids=str)
def test_an_interrupted_run_goes_on_to_the_bit(changes: dict[str, Any], tmp_path: Path) -> None:
    run = interrupted(tmp_path / "lost", **changes)
    assert_as_undisturbed(resume(run), **changes)
    assert not (run / "states").exists()


@pytest.mark.usefixtures("without_pictures")
def test_the_command_line_goes_on_with_an_interrupted_run_and_refuses_others(tmp_path: Path) -> None:
    run = interrupted(tmp_path)
    again = CliRunner().invoke(app, ["train", "--resume", str(run)])
    assert again.exit_code == 0, again.output
    with pytest.raises(SettingsError, match="the run is complete"):
        resume(run)
    with pytest.raises(SettingsError, match="is no run folder"):
        resume(tmp_path / "nothing")
    complete = CliRunner().invoke(app, ["train", "--resume", str(run), "--set", "seed=1"])
    assert isinstance(complete.exception, SettingsError)


@pytest.mark.parametrize("damage", ["cut short", "one bit", "no checksum", "unfinished"])
def test_a_damaged_state_gives_way_to_an_older_one(damage: str, tmp_path: Path) -> None:
    run = interrupted(tmp_path / "lost")
    newest = sorted((run / "states").iterdir())[-1]
    state = newest / "state.pt"
    if damage == "cut short":
        state.write_bytes(state.read_bytes()[:-100])
    elif damage == "one bit":
        content = bytearray(state.read_bytes())
        content[len(content) // 2] ^= 1
        state.write_bytes(content)
    elif damage == "no checksum":
        (newest / "checksum").unlink()
    else:
        newest.rename(newest.with_suffix(".unfinished"))
    callback = Noting(99, None)
    assert_as_undisturbed(resume(run, [callback]))
    skipped = [event.detail for event in callback.events if event.kind == "state_skipped"]
    assert len(skipped) == (damage != "unfinished")
    assert all(str(newest) in detail and "an older one is taken" in detail for detail in skipped)


def test_a_run_without_an_intact_state_begins_anew(tmp_path: Path) -> None:
    run = interrupted(tmp_path / "lost")
    for state in (run / "states").glob("*/state.pt"):
        state.write_bytes(b"")
    assert_as_undisturbed(resume(run))


@pytest.mark.parametrize("state_format", [None, 4, 6])
def test_states_of_another_version_are_refused_and_nothing_is_changed(
    state_format: int | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = interrupted(tmp_path)
    for folder in (run / "states").iterdir():
        write_state(folder, load_state(folder / "state.pt"), state_format)
    (newest_state(run) / "state.pt").write_bytes(b"damaged")
    before = tree_of(run)
    expected = f"{run}: its state has format {state_format or 1}; allowed is 5: go on with the version"
    with pytest.raises(SettingsError, match=re.escape(expected)):
        resume(run)
    status, _, lines = command(["train", "--resume", str(run)], capsys)
    assert status == 2
    assert [line for line in lines if expected in line] == lines
    assert len(lines) == 1
    assert tree_of(run) == before


def test_the_newest_states_are_kept_and_the_others_dropped(tmp_path: Path) -> None:
    files = StateFiles(tmp_path / "states", CheckpointSettings(state_seconds=0, states_to_keep=3))
    for number in range(5):
        files.write(lambda number=number: {"number": number})  # type: ignore[misc]
    assert [path.name for path in sorted((tmp_path / "states").iterdir())] == ["000003", "000004", "000005"]
    assert files.newest() == ({"number": 4}, [])


def test_a_state_that_cannot_be_written_leaves_the_older_ones(tmp_path: Path) -> None:
    files = StateFiles(tmp_path / "states", CheckpointSettings(state_seconds=0))
    files.write(lambda: {"number": 1})

    def full() -> dict[str, Any]:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        files.write(full)
    assert [path.name for path in (tmp_path / "states").iterdir()] == ["000001"]
    assert files.newest() == ({"number": 1}, [])


def test_states_are_kept_no_more_often_than_asked(tmp_path: Path) -> None:
    pauses: list[Pause] = []

    class Counting(Callback):
        def on_pause(self, pause: Pause, state: Any) -> None:
            pauses.append(pause)

    never = Trainer(
        SMALL | {"checkpoint": {"state_seconds": None}}, storage_path=str(tmp_path), callbacks=[Noting(15, leave)]
    )
    with pytest.raises(LeaveError):
        never.fit()
    assert not (tmp_path / "first" / "states").exists()
    rarely = SMALL | {"checkpoint": {"state_seconds": 3600}, "name": "rarely"}
    Trainer(rarely, storage_path=str(tmp_path), callbacks=[Counting()]).fit()
    assert len(pauses) >= 3
    assert not (tmp_path / "rarely" / "states").exists()


def test_a_run_outlives_its_folder_and_says_where_its_files_are(tmp_path: Path) -> None:
    folder = tmp_path / "lost" / "first"

    def take_away() -> None:
        shutil.rmtree(folder)
        folder.write_text("in the way")

    callback = Noting(10, take_away)
    result = Trainer(SMALL, storage_path=str(tmp_path / "lost"), callbacks=[callback]).fit()
    assert "could not be written" in str(result.error)
    assert result.path in str(result.error)
    assert {"storage_failed", "state_not_kept"} <= {event.kind for event in callback.events}
    whole = Trainer(SMALL, storage_path=str(tmp_path / "whole")).fit()
    assert result.checkpoint
    assert whole.checkpoint
    weights = whole.checkpoint.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in result.checkpoint.state_dict().items())
    assert (Path(result.path) / "schedule.parquet").exists()
    assert "state_not_kept" in (Path(result.path) / "events.jsonl").read_text()
