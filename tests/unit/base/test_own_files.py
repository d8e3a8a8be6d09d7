"""What a run writes, replaces and claims is its own: no link is followed, no name taken twice."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ray_pcasgd.base.own_files import append, claim_folder, write_whole
from ray_pcasgd.runs.settings.loading import SettingsError, load_config
from ray_pcasgd.runs.storage.folder import RunFolder
from ray_pcasgd.runs.trainer import Trainer, resume
from tests.unit.interrupted_runs import KEEPING, SMALL, Noting, command, killed, tree_of


@pytest.mark.parametrize(
    "name",
    ["events.jsonl", "result.json", "metrics.parquet", "schedule.parquet", "model.safetensors", "report.html"],
)
@pytest.mark.usefixtures("without_pictures")
def test_a_link_among_a_run_s_files_is_not_followed_for_writing(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = killed(tmp_path / "lost")
    outside = tmp_path / "outside"
    outside.write_text("precious\n")
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(outside)
    status, lines, errors = command(["train", "--resume", str(run)], capsys)
    assert outside.read_text() == "precious\n"
    assert (run / name).is_symlink()
    assert status == 1
    (error,) = errors
    assert f"{name} is a symbolic link, which is not followed for writing" in error
    kept = Path(error.rpartition("the run's files are in ")[2])
    assert {"config.yaml", "events.jsonl", "result.json", "schedule.parquet", "model.safetensors"} <= {
        path.name for path in kept.iterdir()
    }
    assert any(line.startswith(f"run folder {kept}") for line in lines)
    assert any(line.startswith("run resumed: going on from the state of step 10") for line in lines)


@pytest.mark.parametrize("name", ["states", "checkpoints"])
def test_a_linked_folder_within_a_run_is_not_written_to(name: str, tmp_path: Path) -> None:
    run = killed(tmp_path / "lost", **KEEPING)
    outside = tmp_path / "outside"
    (run / name).rename(outside)
    (run / name).symlink_to(outside)
    before = tree_of(outside)
    callback = Noting()
    result = resume(run, [callback])
    assert tree_of(outside) == before
    assert f"{name} is a symbolic link" in str(result.error)
    assert callback.said("run_resumed")
    assert (Path(result.path) / "model.safetensors").exists()


def test_a_link_in_place_of_a_state_is_not_removed_through(tmp_path: Path) -> None:
    run = killed(tmp_path / "lost")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "state.pt").write_text("precious")
    (run / "states" / "000000").symlink_to(outside)
    assert resume(run).error is None
    assert (outside / "state.pt").read_text() == "precious"


def test_a_file_that_has_another_name_elsewhere_is_not_changed_there(tmp_path: Path) -> None:
    run = killed(tmp_path / "lost")
    events = run / "events.jsonl"
    events.unlink(missing_ok=True)
    (tmp_path / "outside").write_text("precious\n")
    os.link(tmp_path / "outside", events)
    assert resume(run).error is None
    assert (tmp_path / "outside").read_text() == "precious\n"
    assert events.read_text().startswith("precious\n{")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    run = killed(tmp_path / "lost")
    for name in ("events.jsonl", "result.json"):
        (run / name).unlink(missing_ok=True)
        os.mkfifo(run / name)
    result = resume(run)
    assert "is no file" in str(result.error)
    assert (Path(result.path) / "model.safetensors").exists()
    assert all((run / name).is_fifo() for name in ("events.jsonl", "result.json"))


def test_a_written_file_has_the_rights_of_any_other_and_leaves_nothing_aside(tmp_path: Path) -> None:
    write_whole(tmp_path / "own", "text")
    (tmp_path / "other").write_text("text")
    assert (tmp_path / "own").stat().st_mode == (tmp_path / "other").stat().st_mode

    def full(unfinished: Path) -> None:
        unfinished.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_whole(tmp_path / "own", full)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "own"]
    assert (tmp_path / "own").read_text() == "text"
    os.mkfifo(tmp_path / "pipe")
    for write in (write_whole, append):
        with pytest.raises(OSError, match="is no file"):
            write(tmp_path / "pipe", "text")  # type: ignore[operator]
    assert (tmp_path / "pipe").is_fifo()
    append(tmp_path / "lines", "one\n")
    append(tmp_path / "lines", "two\n")
    assert (tmp_path / "lines").read_text() == "one\ntwo\n"


# Names.


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_eight_runs_that_start_at_once_get_eight_names(scheme: str, tmp_path: Path) -> None:
    config = load_config({"storage_path": f"{scheme}{tmp_path}/runs", "engine": "local"})
    together = threading.Barrier(8)

    def start(_: int) -> str:
        together.wait()
        return RunFolder.create(config).name

    with ThreadPoolExecutor(8) as pool:
        names = list(pool.map(start, range(8)))
    assert sorted(names) == [f"pc-asgd-{number}" for number in range(1, 9)]


def test_a_name_that_another_one_takes_in_that_moment_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, others = Path.mkdir, [tmp_path / "runs" / "pc-asgd-1"]

    def another_is_first(path: Path, *arguments: Any, **options: Any) -> None:
        if path in others:
            make(others.pop())
        make(path, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", another_is_first)
    result = Trainer(SMALL, name=None, num_steps=1, storage_path=str(tmp_path / "runs")).fit()
    assert Path(result.path).name == "pc-asgd-2"


def test_a_name_is_claimed_by_making_its_folder(tmp_path: Path) -> None:
    assert [claim_folder(tmp_path, None, "sweep").name for _ in range(2)] == ["sweep-1", "sweep-2"]
    assert claim_folder(tmp_path / "deep" / "er", "mine", "sweep").is_dir()
    with pytest.raises(FileExistsError):
        claim_folder(tmp_path, "sweep-1", "sweep")
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        claim_folder(tmp_path / "file", None, "sweep")


def test_a_trainer_that_fits_twice_says_that_its_name_is_taken(tmp_path: Path) -> None:
    trainer = Trainer(SMALL, num_steps=1, storage_path=str(tmp_path))
    assert trainer.fit().error is None
    with pytest.raises(SettingsError, match=r"^name = 'first': the run folder .*first exists; allowed is a"):
        trainer.fit()
    unnamed = Trainer(SMALL, name=None, num_steps=1, storage_path=str(tmp_path))
    assert [Path(unnamed.fit().path).name for _ in range(2)] == ["pc-asgd-1", "pc-asgd-2"]
