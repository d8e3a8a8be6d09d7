"""A run goes on in its own folder: nothing beside it is touched, and it has one driver at a time."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import yaml
from torch import nn
from torch.utils.data import TensorDataset

from ray_pcasgd.base.own_files import TemporaryFolder, remove_files
from ray_pcasgd.records import Update
from ray_pcasgd.rules.base import Rule, averaged_step
from ray_pcasgd.runs.callbacks import Callback
from ray_pcasgd.runs.settings.loading import SettingsError, load_config
from ray_pcasgd.runs.storage.names import clear_run
from ray_pcasgd.runs.trainer import Trainer, resume
from ray_pcasgd.sweep.packing import read_packs
from ray_pcasgd.sweep.trials import run_trial
from tests.engines import language
from tests.unit.interrupted_runs import (
    KEEPING,
    SMALL,
    LeaveError,
    Noting,
    assert_as_undisturbed,
    command,
    interrupted,
    killed,
    leave,
    tree_of,
    undisturbed,
)

SPELLINGS = {
    "runs/first": "",
    "runs/first/": "",
    "./runs/../runs/./first": "",
    "first": "runs",
    "../first": "runs/first",
    ".": "runs/first",
    "link": "",
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_copy_of_a_remote_run_goes_on_where_it_is_and_nothing_beside_it_is_touched(
    spelling: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = interrupted(f"file://{tmp_path}/storage")
    here = tmp_path / "here"
    shutil.copytree(remote, here / "runs" / "first")
    (here / "runs" / "another").mkdir()
    (here / "runs" / "another" / "result.json").write_text("precious")
    (here / "notes.txt").write_text("precious")
    (here / "link").symlink_to(here / "runs" / "first")
    before = tree_of(tmp_path)
    monkeypatch.chdir(here / SPELLINGS[spelling])
    callback = Noting()
    result = resume(spelling, [callback])
    assert_as_undisturbed(result)
    after = tree_of(tmp_path)
    own = "here/runs/first/"
    assert {name: after.get(name) for name in before if not name.startswith(own)} == {
        name: content for name, content in before.items() if not name.startswith(own)
    }
    assert (here / "runs" / "first" / "result.json").exists()
    assert Path(result.path).resolve() == here / "runs" / "first"
    (said,) = callback.said("not_published")
    assert f"is not copied to storage_path = 'file://{tmp_path}/storage'" in said


def test_a_remote_run_goes_on_where_it_is_and_keeps_what_others_put_there(tmp_path: Path) -> None:
    remote = interrupted(f"file://{tmp_path}/storage")
    kept = sorted(path.name for path in (remote / "states").iterdir())
    for foreign in ("states/000099", "states/mine", "checkpoints/step_00000001"):
        (remote / foreign).mkdir(parents=True)
        (remote / foreign / "notes.txt").write_text("precious")
    (remote / "states" / kept[0] / "notes.txt").write_text("precious")
    result = resume(f"file://{tmp_path}/storage/first/")
    assert result.path == f"file://{tmp_path}/storage/first"
    assert_as_undisturbed(result)
    left = {str(path.relative_to(remote)) for path in (remote / "states").rglob("*") if path.is_file()}
    assert left == {"states/000099/notes.txt", "states/mine/notes.txt", f"states/{kept[0]}/notes.txt"}
    assert (remote / "checkpoints" / "step_00000001" / "notes.txt").exists()


@pytest.mark.slow
def test_object_storage_is_gone_on_with_and_keeps_what_others_put_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import boto3
    from moto.server import ThreadedMotoServer

    for name, value in {"ACCESS_KEY_ID": "id", "SECRET_ACCESS_KEY": "key", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        client = boto3.client("s3", endpoint_url=f"http://{host}:{port}")
        client.create_bucket(Bucket="bucket")
        options = f"?region=us-east-1&scheme=http&endpoint_override={host}:{port}"
        with pytest.raises(SettingsError, match=r"^storage_path = 's3://none.*: cannot be written \(Bucket 'none' not"):
            Trainer(SMALL, storage_path=f"s3://none/runs{options}").fit()
        with pytest.raises(LeaveError):
            Trainer(SMALL, storage_path=f"s3://bucket/runs{options}", callbacks=[Noting(15, leave)]).fit()
        for foreign in ("runs/first/states/000099/notes.txt", "runs/another/result.json"):
            client.put_object(Bucket="bucket", Key=foreign, Body=b"precious")
        location = f"s3://bucket/runs/first{options}"
        callback = Noting()
        result = resume(location, [callback])
        assert result.path == location
        assert callback.said("run_resumed")
        assert_as_undisturbed(result)
        keys = {item["Key"] for item in client.list_objects_v2(Bucket="bucket")["Contents"]}
        files = {key for key in keys if not key.endswith("/")}
        names = (
            "config.yaml",
            "events.jsonl",
            "metrics.parquet",
            "schedule.parquet",
            "model.safetensors",
            "result.json",
        )
        own = {f"runs/first/{name}" for name in names}
        assert files == own | {"runs/first/states/000099/notes.txt", "runs/another/result.json"}
        with pytest.raises(SettingsError, match="the run is complete"):
            resume(location)
    finally:
        server.stop()


def test_only_a_temporary_folder_of_its_own_is_removed(tmp_path: Path) -> None:
    own, replaced, unmarked, linked = (TemporaryFolder() for _ in range(4))
    assert own.remove()
    assert not own.path.exists()
    shutil.rmtree(replaced.path)
    replaced.path.mkdir()
    (replaced.path / "notes.txt").write_text("precious")
    (unmarked.path / ".made-by-ray_pcasgd").write_text("of another")
    moved = linked.path.rename(tmp_path / "moved")
    linked.path.symlink_to(moved)
    for folder in (replaced, unmarked, linked):
        assert not folder.remove()
    assert (replaced.path / "notes.txt").exists()
    assert unmarked.path.exists()
    assert moved.exists()
    linked.path.unlink()
    for path in (replaced.path, unmarked.path):
        shutil.rmtree(path)


def test_files_of_other_names_are_never_removed(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    for name in ("state.pt", ".state.pt.0123abcd.unfinished", "notes.txt"):
        (tmp_path / "own" / name).write_text(name)
    (tmp_path / "own" / "checksum").symlink_to(tmp_path / "own" / "notes.txt")
    assert not remove_files(tmp_path / "own", ["state.pt", "checksum"])
    assert sorted(path.name for path in (tmp_path / "own").iterdir()) == ["checksum", "notes.txt"]
    (tmp_path / "link").symlink_to(tmp_path / "own")
    assert not remove_files(tmp_path / "link", ["notes.txt"])
    assert (tmp_path / "own" / "notes.txt").exists()
    assert remove_files(tmp_path / "nowhere", ["state.pt"])


def test_room_is_made_for_a_run_again_by_its_own_files_alone(tmp_path: Path) -> None:
    run = killed(tmp_path, **KEEPING)
    clear_run(run)
    assert not run.exists()
    clear_run(run)
    run = killed(tmp_path, **KEEPING)
    (run / "notes.txt").write_text("precious")
    (run / "checkpoints" / "step_00000005" / "notes.txt").write_text("precious")
    clear_run(run)
    assert not run.exists()
    aside = tmp_path / "first-before-1"
    assert {str(path.relative_to(aside)) for path in aside.rglob("*") if path.is_file()} == {
        "notes.txt",
        "checkpoints/step_00000005/notes.txt",
    }
    (tmp_path / "link").symlink_to(aside)
    for other in (tmp_path / "link", aside, tmp_path):
        with pytest.raises(ValueError, match="is no run folder"):
            clear_run(other)


def test_a_pack_s_names_lead_out_of_no_folder(tmp_path: Path) -> None:
    (tmp_path / "sweep").mkdir()
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "config.yaml").write_text("")
    (tmp_path / "sweep" / "packs.json").write_text(json.dumps([[["../../precious", {}, 0]]]))
    packs = read_packs(tmp_path / "sweep")
    assert packs is not None
    with pytest.raises(SettingsError, match=r"^name = '\.\./\.\./precious': allowed is text of the form"):
        run_trial({"pack": 0}, load_config(SMALL), str(tmp_path / "sweep" / "runs"), 60.0, str(tmp_path), packs=packs)
    assert (tmp_path / "precious" / "config.yaml").exists()


@pytest.mark.usefixtures("without_pictures")
def test_a_report_does_not_follow_a_link_in_a_run_folder_but_one_that_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = undisturbed(tmp_path)
    (tmp_path / "outside").write_text("precious")
    (run / "report.html").symlink_to(tmp_path / "outside")
    status, _, errors = command(["report", str(run)], capsys)
    assert (status, len(errors)) == (2, 1)
    assert "is a symbolic link, which is not followed for writing" in errors[0]
    assert (tmp_path / "outside").read_text() == "precious"
    (tmp_path / "page.html").symlink_to(tmp_path / "elsewhere.html")
    assert command(["report", str(run), "--output", str(tmp_path / "page.html")], capsys)[0] == 0
    assert (tmp_path / "page.html").is_symlink()
    assert "<html" in (tmp_path / "elsewhere.html").read_text()


# One driver at a time.


def test_a_second_driver_is_refused_while_the_first_one_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = killed(tmp_path)
    refused: list[Any] = []

    class Second(Callback):
        def on_step(self, report: Any) -> None:
            if not refused:
                refused.append(command(["train", "--resume", str(run)], capsys))

    assert resume(run, [Second()]).error is None
    line = f"error: {run}: another driver is running this run; allowed is one driver at a time"
    assert refused == [(2, [], [line])]


def test_a_new_run_is_locked_from_its_first_moment_and_free_once_it_has_ended(tmp_path: Path) -> None:
    refused: list[str] = []

    class Second(Callback):
        def on_start(self, plan: Any, path: Path) -> None:
            with pytest.raises(SettingsError) as error:
                resume(path)
            refused.append(str(error.value))

    result = Trainer(SMALL, storage_path=str(tmp_path), callbacks=[Second()], step_size=1e30).fit()
    assert result.error is not None
    assert "another driver" in refused[0]
    assert "loss" in str(resume(tmp_path / "first").error)  # it fails again, but nobody is in its way


def test_the_lock_of_a_killed_driver_holds_nobody_up_nor_does_its_child_that_outlives_it(tmp_path: Path) -> None:
    run, alone = killed(tmp_path / "with a child"), killed(tmp_path / "alone")
    # Two pipes: the child says that it is there, and ends when it is told to.
    code = (
        "import os, signal, sys; from ray_pcasgd.runs.storage.folder import RunFolder\n"
        "folder = RunFolder.reopen(sys.argv[1])\n"
        "if os.fork() == 0:\n    sys.stdout.write('here'); sys.stdout.flush(); sys.stdin.read(1); os._exit(0)\n"
        "other = RunFolder.reopen(sys.argv[2])\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    arguments = [sys.executable, "-c", code, str(run), str(alone)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as one:
        assert one.stdout is not None
        assert one.stdin is not None
        assert one.stdout.read(4) == b"here"
        assert one.wait() == -9
        assert resume(run).error is None
        assert resume(alone).error is None
        one.stdin.close()


# Folders that go away.


def test_a_folder_that_is_deleted_on_the_way_is_named_and_its_files_are_elsewhere(tmp_path: Path) -> None:
    run = tmp_path / "lost" / "first"
    callback = Noting(10, lambda: shutil.rmtree(run))
    result = Trainer(SMALL, **KEEPING, storage_path=str(tmp_path / "lost"), callbacks=[callback]).fit()
    assert str(run) in str(result.error)
    assert result.path in str(result.error)
    summary = json.loads((Path(result.path) / "result.json").read_text())
    assert summary["error"] == str(result.error)
    assert {"config.yaml", "events.jsonl", "metrics.parquet", "schedule.parquet", "model.safetensors"} <= {
        path.name for path in Path(result.path).iterdir()
    }
    assert "storage_failed" in {event.kind for event in callback.events}
    assert not run.exists()


def test_a_folder_in_the_place_of_a_deleted_one_is_not_written_to(tmp_path: Path) -> None:
    run = tmp_path / "lost" / "first"

    def another() -> None:
        shutil.rmtree(run)
        run.mkdir()
        (run / "config.yaml").write_text("of another run")

    result = Trainer(SMALL, storage_path=str(tmp_path / "lost"), callbacks=[Noting(10, another)]).fit()
    assert result.path in str(result.error)
    assert [path.name for path in run.iterdir()] == ["config.yaml"]
    assert Path(result.path) != run


# Objects of a script.


def objects() -> dict[str, Any]:
    images = torch.arange(40 * 64, dtype=torch.float32).reshape(40, 64).sin()
    labels = torch.arange(40) % 10
    data = (TensorDataset(images, labels), TensorDataset(images[:10], labels[:10]))
    return {"data": data, "model": lambda: nn.Linear(64, 10)}


def test_a_run_of_objects_of_a_script_goes_on_with_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes = {"task": objects(), "batch_size": 4}
    run = killed(tmp_path / "lost", **changes)
    for ask in (lambda: resume(run), lambda: resume(run, task={"data": objects()["data"]})):
        with pytest.raises(SettingsError, match=r"objects of a script.*go on from Python, with resume\(run, task="):
            ask()
    status, _, errors = command(["train", "--resume", str(run)], capsys)
    assert status == 2
    assert len(errors) == 1
    assert "task.data.train = '<torch.utils.data.dataset:TensorDataset>'" in errors[0]
    assert_as_undisturbed(resume(run, task=objects()), **changes)
    status, _, errors = command(["replay", str(run)], capsys)
    assert status == 2
    assert "replay it from Python, with Trainer(..., schedule=...)" in errors[0]


def test_a_run_of_a_script_s_own_rule_says_that_it_is_to_be_one_of_a_module(tmp_path: Path) -> None:
    class Hidden(Rule):
        name: Literal["hidden"] = "hidden"

        def step(self, state: Any, own: Any, reads: Any, probe: Any = None) -> Any:
            return state, Update(averaged_step(own.mixing, reads.mixing, own, reads), {})

    run = killed(tmp_path / "lost", algorithm=Hidden())
    with pytest.raises(SettingsError, match=r"algorithm.rule = .*Hidden.*; allowed are classes .* that a module has"):
        resume(run, task={})


def test_a_function_of_the_script_itself_is_no_import_path(tmp_path: Path) -> None:
    run = killed(tmp_path / "lost", task={"model": {"hidden": [8]}, "loss": torch.nn.functional.cross_entropy})
    tree = yaml.safe_load((run / "config.yaml").read_text())
    assert tree["task"]["loss"]["function"] == "torch.nn.functional:cross_entropy"
    tree["task"]["loss"]["function"] = "__main__:my_loss"
    (run / "config.yaml").write_text(yaml.safe_dump(tree))
    with pytest.raises(SettingsError, match=r"task\.loss\.function = '__main__:my_loss' was given as objects of a"):
        resume(run)
    assert resume(run, task={"loss": torch.nn.functional.cross_entropy}).error is None


STEPPED: dict[str, Any] = {"task": language.STEPPED, "optimizer": "adamw", "num_agents": 2, "batch_size": 4}


def test_a_run_with_a_step_of_ones_own_goes_on_as_undisturbed(tmp_path: Path) -> None:
    run = interrupted(tmp_path, at_step=10, **STEPPED)
    result = resume(run)
    assert any(json.loads(line)["kind"] == "run_resumed" for line in (run / "events.jsonl").read_text().splitlines())
    assert_as_undisturbed(result, **STEPPED)
