"""A sweep that was refused takes back what it wrote, and nothing else."""

from pathlib import Path

import pytest

from ray_pcasgd.base.errors import SettingsError
from ray_pcasgd.sweep.folder import BASE_FILE, DIRECTORY_FILE, SWEEP_FILE, SweepFolder

FILES = {SWEEP_FILE: "a: 1", BASE_FILE: "b: 2", DIRECTORY_FILE: "/"}


@pytest.mark.parametrize("scheme", ["", "file://"])
@pytest.mark.parametrize("foreign", [(), ("notes.txt",)])
def test_a_refused_sweep_removes_its_own_files_alone(scheme: str, foreign: tuple[str, ...], tmp_path: Path) -> None:
    folder = SweepFolder.create(f"{scheme}{tmp_path}", "first", FILES)
    there = tmp_path / "first"
    for name in ("tuner.pkl", *foreign):
        (there / name).write_text("x")
    folder.discard()
    folder.close()
    assert sorted(there.iterdir() if there.exists() else ()) == [there / name for name in foreign]


def test_a_sweep_that_has_trials_is_left(tmp_path: Path) -> None:
    folder = SweepFolder.create(str(tmp_path), "first", FILES)
    (folder.path / "trial_1").mkdir()
    folder.discard()
    assert {one.name for one in folder.path.iterdir()} == {*FILES, "trial_1"}


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_sweep_has_one_driver_at_a_time(scheme: str, tmp_path: Path) -> None:
    folder = SweepFolder.create(f"{scheme}{tmp_path}", "first", FILES)
    with pytest.raises(SettingsError, match=r"first: is running; allowed is to go on with a sweep that has ended$"):
        SweepFolder.reopen(folder.location)
    folder.close()
    again = SweepFolder.reopen(folder.location)
    with pytest.raises(SettingsError, match="is running"):
        SweepFolder.reopen(folder.location)
    again.close()


def test_a_sweep_on_storage_without_locks_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("ray_pcasgd.runs.storage.lock.fcntl", None)
    SweepFolder.create(str(tmp_path), "first", FILES).close()
    assert "no second driver is kept away from this sweep: this system has no file locks" in caplog.text
