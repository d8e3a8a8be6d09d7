"""A run goes on in its own folder: nothing beside it is touched, and whatever is damaged in it is passed over."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console
from torch import nn
from torch.utils.data import TensorDataset

from ray_pcasgd.cli import main
from ray_pcasgd.loading import SettingsError, load_config
from ray_pcasgd.own_files import TemporaryFolder, append, claim_folder, remove_files, write_whole
from ray_pcasgd.records import Event, Read, Row
from ray_pcasgd.result import Result
from ray_pcasgd.run_files import clear_run
from ray_pcasgd.run_folder import RunFolder
from ray_pcasgd.run_state import State, load_state
from ray_pcasgd.sweep_packs import read_packs, run_pack
from ray_pcasgd.terminal import Terminal
from ray_pcasgd.trainer import Trainer, resume
from ray_pcasgd.watching import Watcher

SMALL: dict[str, Any] = {
    "engine": "local",
    "name": "first",
    "num_agents": 3,
    "num_steps": 20,
    "evaluate_every": 5,
    "task": {"model": {"hidden": [8]}},
    "checkpoint": {"state_seconds": 0},
}
SERVER = {"algorithm": {"name": "server", "gathering": "asgd", "correction": "dc-asgd-a"}}


class LeaveError(Exception):
    """The driver is gone."""


class Noting(Watcher):
    """Notes events, and does something at the first evaluation from a step on."""

    def __init__(self, step: int = 99, act: Callable[[], Any] | None = None) -> None:
        self.step = step
        self.act = act
        self.events: list[Event] = []

    def evaluated(self, rows: Any) -> None:
        if rows and rows[-1]["step"] >= self.step and self.act is not None:
            act, self.act = self.act, None
            act()

    def happened(self, event: Event) -> None:
        self.events.append(event)

    def said(self, kind: str) -> list[str]:
        return [event.detail for event in self.events if event.kind == kind]


def leave() -> None:
    raise LeaveError


def interrupted(storage: Path | str, at_step: int = 15, **changes: Any) -> Path:
    """Return the folder of a run whose driver was lost at a step."""
    with pytest.raises(LeaveError):
        Trainer(SMALL | changes, storage_path=str(storage), watcher=Noting(at_step, leave)).fit()
    return Path(str(storage).removeprefix("file://")) / "first"


def killed(storage: Path, at_step: int = 15, **changes: Any) -> Path:
    """Return the folder as a driver leaves it that is killed: without any of the files that are written at the end."""
    run = interrupted(storage, at_step, **changes)
    for name in ("result.json", "metrics.parquet", "schedule.parquet", "model.safetensors"):
        (run / name).unlink(missing_ok=True)
    return run


def assert_as_undisturbed(result: Result, storage: Path, **changes: Any) -> None:
    whole = Trainer(SMALL | changes, storage_path=str(storage)).fit()
    assert result.error is None
    assert result.schedule_hash == whole.schedule_hash
    assert result.checkpoint
    assert whole.checkpoint
    weights = whole.checkpoint.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in result.checkpoint.state_dict().items())
    frames = [one.metrics_dataframe.drop(columns="wall_seconds") for one in (result, whole)]
    assert frames[0].equals(frames[1])


def tree_of(folder: Path) -> dict[str, str]:
    """Return all files below a folder, and what they hold."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def command(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str], list[str]]:
    """Return the exit status of a command, and its lines on standard output and standard error."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    captured = capsys.readouterr()
    assert "Traceback" not in captured.out + captured.err
    return int(str(ended.value.code)), captured.out.splitlines(), captured.err.splitlines()


# Nothing that a run did not make is removed.


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
    watcher = Noting()
    result = resume(spelling, watcher)
    assert_as_undisturbed(result, tmp_path / "whole")
    after = tree_of(tmp_path)
    own = "here/runs/first/"
    assert {name: after.get(name) for name in before if not name.startswith(own)} == {
        name: content for name, content in before.items() if not name.startswith(own)
    }
    assert (here / "runs" / "first" / "result.json").exists()
    assert Path(result.path).resolve() == here / "runs" / "first"
    (said,) = watcher.said("not_published")
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
    assert_as_undisturbed(result, tmp_path / "whole")
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
            Trainer(SMALL, storage_path=f"s3://bucket/runs{options}", watcher=Noting(15, leave)).fit()
        for foreign in ("runs/first/states/000099/notes.txt", "runs/another/result.json"):
            client.put_object(Bucket="bucket", Key=foreign, Body=b"precious")
        location = f"s3://bucket/runs/first{options}"
        watcher = Noting()
        result = resume(location, watcher)
        assert result.path == location
        assert watcher.said("run_resumed")
        assert_as_undisturbed(result, tmp_path / "whole")
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
        run_pack({"pack": 0}, packs, load_config(SMALL), str(tmp_path / "sweep" / "runs"), 60.0, str(tmp_path))
    assert (tmp_path / "precious" / "config.yaml").exists()


def test_a_report_does_not_follow_a_link_in_a_run_folder_but_one_that_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = Trainer(SMALL, storage_path=str(tmp_path)).fit()
    (tmp_path / "outside").write_text("precious")
    (Path(result.path) / "report.html").symlink_to(tmp_path / "outside")
    status, _, errors = command(["report", result.path], capsys)
    assert (status, len(errors)) == (2, 1)
    assert "is a symbolic link, which is not followed for writing" in errors[0]
    assert (tmp_path / "outside").read_text() == "precious"
    (tmp_path / "page.html").symlink_to(tmp_path / "elsewhere.html")
    assert command(["report", result.path, "--output", str(tmp_path / "page.html")], capsys)[0] == 0
    assert (tmp_path / "page.html").is_symlink()
    assert "<html" in (tmp_path / "elsewhere.html").read_text()


# Damaged states.


def newest_state(run: Path) -> Path:
    return sorted((run / "states").iterdir())[-1]


def write_state(folder: Path, state: Any) -> None:
    torch.save(state, folder / "state.pt")
    (folder / "checksum").write_text(hashlib.blake2b((folder / "state.pt").read_bytes()).hexdigest())


def cut_short(folder: Path) -> None:
    content = (folder / "state.pt").read_bytes()
    (folder / "state.pt").write_bytes(content[:-100])


def one_bit(folder: Path) -> None:
    content = bytearray((folder / "state.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "state.pt").write_bytes(content)


def pipe(folder: Path) -> None:
    (folder / "checksum").unlink()
    os.mkfifo(folder / "checksum")


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "cut short": cut_short,
    "one bit": one_bit,
    "no checksum": lambda folder: (folder / "checksum").unlink(),
    "no state": lambda folder: (folder / "state.pt").unlink(),
    "empty": lambda folder: (folder / "state.pt").write_bytes(b""),
    "a pipe": pipe,
    "a link to nowhere": lambda folder: (
        (folder / "state.pt").unlink(),
        (folder / "state.pt").symlink_to("nowhere"),
    ),
    "900 levels": lambda folder: nest(folder, 900),
    "100,000 levels": lambda folder: nest(folder, 100_000),
    "another checksum": lambda folder: (folder / "checksum").write_text("ä" * 2000),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_terminal_shows_that_a_damaged_state_gives_way_to_an_older_one(damage: str, tmp_path: Path) -> None:
    run = killed(tmp_path / "lost")
    newest = newest_state(run)
    DAMAGES[damage](newest)
    output = StringIO()
    assert_as_undisturbed(resume(run, Terminal(Console(file=output, width=1000))), tmp_path / "whole")
    lines = output.getvalue().splitlines()
    (skipped,) = (line for line in lines if line.startswith("state skipped: "))
    assert str(newest) in skipped
    assert any(line.startswith("run resumed: on from the state of step 5") for line in lines)
    written = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    assert [event["kind"] for event in written[-2:]] == ["state_skipped", "run_resumed"]


def test_the_command_line_goes_on_from_an_older_state(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = killed(tmp_path)
    cut_short(newest_state(run))
    status, lines, errors = command(["train", "--resume", str(run)], capsys)
    assert (status, errors) == (0, [])
    assert any(line.startswith("state skipped: ") for line in lines)
    assert any(line.startswith("run resumed: on from the state of step 5") for line in lines)


class Other:
    def __reduce__(self) -> Any:
        return Path.mkdir, (Path("made-by-a-state"),)


def nest(folder: Path, levels: int) -> None:
    """Put lists within lists in the place of a state."""
    pickled = b"\x80\x02" + b"]" * levels + b"a" * (levels - 1) + b"."
    with zipfile.ZipFile(folder / "state.pt", "w") as file:
        file.writestr("state/data.pkl", pickled)
        file.writestr("state/version", "3\n")
    (folder / "checksum").write_text(hashlib.blake2b((folder / "state.pt").read_bytes()).hexdigest())


def changed(*keys: Any, to: Any) -> Callable[[State], Any]:
    """Return what puts something else into one place of a state."""

    def change(state: State) -> Any:
        place: Any = state
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = to(place[keys[-1]]) if callable(to) else to
        return state

    return change


def without(*keys: Any) -> Callable[[State], Any]:
    def change(state: State) -> Any:
        place: Any = state
        for key in keys[:-1]:
            place = place[key]
        del place[keys[-1]]
        return state

    return change


WRONG: dict[str, Callable[[State], Any]] = {
    "a number": lambda state: 3,
    "a list": lambda state: [1, 2],
    "an empty mapping": lambda state: {},
    "the engine's part alone": without("run"),
    "no engine's part": changed("engine", to=None),
    "one agent less": changed("engine", "agents", to=lambda agents: agents[:-1]),
    "an agent that is none": changed("engine", "agents", 1, to="agent"),
    "weights of another size": changed("engine", "agents", 0, "weights", to=lambda weights: weights[:-1]),
    "weights that would be broadcast": changed("engine", "agents", 0, "weights", to=torch.ones(1)),
    "weights of another kind": changed("engine", "agents", 2, "weights", to=lambda weights: weights.double()),
    "a version that is text": changed("engine", "agents", 0, "version", to="10"),
    "no losses": without("engine", "losses"),
    "a part too many": changed("engine", "more", to=1),
    "rows that are none": changed("run", "rows", to=[(0, 0)]),
    "a row of agent 99": changed("run", "rows", 0, to=Row(99, 0, 0.0, 0.0, 0.0, ())),
    "a row of a negative step": changed("run", "rows", 0, to=Row(0, -1, 0.0, 0.0, 0.0, ())),
    "a row that reads text": changed("run", "rows", 0, to=Row(0, 0, 0.0, 0.0, 0.0, (Read(1, "0", 0, 0),))),  # type: ignore[arg-type]
    "more rows drawn than there are": changed("engine", "drawn", to=10**6),
    "a monitor that is none": changed("run", "monitor", to=[]),
    "a tally with a part too many": changed("run", "monitor", "tallies", 0, "take", to=5),
    "metrics that are none": changed("run", "monitor", "rows", to=[1, 2]),
    "metrics of no step": changed("run", "monitor", "rows", 0, "step", to="five"),
    "seconds that are text": changed("run", "seconds", to="1"),
    "lost agents that are none": changed("run", "lost", to=["agent 1"]),
    "something that is called": lambda state: {"engine": Other(), "run": state["run"]},
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_state_of_wrong_content_under_a_right_checksum_gives_way_to_an_older_one(
    wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = killed(tmp_path / "lost")
    newest = newest_state(run)
    write_state(newest, WRONG[wrong](load_state(newest / "state.pt")))
    watcher = Noting()
    assert_as_undisturbed(resume(run, watcher), tmp_path / "whole")
    (skipped,) = watcher.said("state_skipped")
    assert str(newest) in skipped
    assert "\n" not in skipped
    assert not Path("made-by-a-state").exists()


@pytest.mark.parametrize(
    "wrong",
    [
        without("engine", "messages"),
        changed("engine", "agents", 3, "weights", to=torch.ones(2)),
        changed("engine", "last_read", to={"a": 1}),
        changed("engine", "messages", 0, to={1: {"vector": torch.ones(2)}}),
        changed("engine", "window", to=[3]),
    ],
)
def test_a_server_s_state_of_wrong_content_gives_way_to_an_older_one(wrong: Any, tmp_path: Path) -> None:
    run = killed(tmp_path / "lost", **SERVER)
    newest = newest_state(run)
    write_state(newest, wrong(load_state(newest / "state.pt")))
    watcher = Noting()
    assert_as_undisturbed(resume(run, watcher), tmp_path / "whole", **SERVER)
    assert len(watcher.said("state_skipped")) == 1


def test_a_run_that_begins_anew_says_so_and_puts_the_models_aside_that_were_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keeping = {"checkpoint": {"state_seconds": 0, "every_evaluations": 1, "num_to_keep": 2}}
    run = killed(tmp_path / "lost", **keeping)
    for state in (run / "states").iterdir():
        (state / "checksum").write_text("none")
    before = tree_of(run / "checkpoints")
    assert len(before) == 4
    status, lines, errors = command(["train", "--resume", str(run)], capsys)
    assert (status, errors) == (0, [])
    assert len([line for line in lines if line.startswith("state skipped: ")]) == 2
    (anew,) = (line for line in lines if line.startswith("run begins anew: "))
    assert anew.endswith(f"the models that were kept before are in {run}/checkpoints-before-1")
    assert tree_of(run / "checkpoints-before-1") == before
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step_00000015", "step_00000020"]
    assert not any("could not be kept" in line for line in lines)


def test_a_run_that_never_kept_a_state_begins_anew_and_says_so(tmp_path: Path) -> None:
    run = killed(tmp_path / "lost", checkpoint={"state_seconds": 3600})
    watcher = Noting()
    assert_as_undisturbed(resume(run, watcher), tmp_path / "whole", checkpoint={"state_seconds": 3600})
    assert watcher.said("run_begins_anew") == [f"{run} has no state from which it could go on: the run begins anew"]


# Models that are kept on the way.


def kept_steps(result: Result) -> list[int]:
    return [int(Path(one.path).name.removeprefix("step_")) for one, _ in result.best_checkpoints]


KEEPING = {"checkpoint": {"state_seconds": 0, "every_evaluations": 1}}


@pytest.mark.parametrize("torn", ["no metrics", "no model", "metrics that are no JSON", "empty"])
def test_a_torn_model_is_passed_over_and_left(torn: str, tmp_path: Path) -> None:
    run = killed(tmp_path, **KEEPING)
    model = run / "checkpoints" / "step_00000005"
    if torn in ("no metrics", "empty"):
        (model / "metrics.json").unlink()
    if torn in ("no model", "empty"):
        (model / "model.safetensors").unlink()
    if torn == "metrics that are no JSON":
        (model / "metrics.json").write_text('{"loss": 0.')
    watcher = Noting()
    result = resume(run, watcher)
    assert result.error is None
    assert [Path(one.path).name for one, _ in result.best_checkpoints] == [
        f"step_000000{step}" for step in (10, 15, 20)
    ]
    (skipped,) = watcher.said("model_skipped")
    assert str(model) in skipped
    assert model.is_dir()


def test_stray_names_among_the_kept_models_are_left_alone(tmp_path: Path) -> None:
    run = killed(tmp_path, **KEEPING)
    models = run / "checkpoints"
    (models / "step_abc").mkdir()
    (models / "step_abc" / "notes.txt").write_text("precious")
    (models / "step_00000099").write_text("a file")
    (models / "step_99").mkdir()
    (models / f"step_{'9' * 30}").mkdir()
    (models / "step_00000016").mkdir()
    (models / "step_00000016" / "notes.txt").write_text("precious")
    result = resume(run)
    assert result.error is None
    assert kept_steps(result) == [5, 10, 15, 20]
    assert (models / "step_abc" / "notes.txt").exists()
    assert (models / "step_00000099").read_text() == "a file"
    assert (models / "step_00000016" / "notes.txt").exists()


KILLED_WHILE_KEEPING = """
import os, signal, sys
from ray_pcasgd import run_folder
from ray_pcasgd.trainer import Trainer

def whole(path, content, write=run_folder.write_whole):
    if path.name == "metrics.json" and "step_00000015" in str(path):
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, content)

run_folder.write_whole = whole
Trainer(sys.argv[1]).fit()
"""


def test_a_driver_that_is_killed_while_it_keeps_a_model_can_be_resumed(tmp_path: Path) -> None:
    settings = tmp_path / "settings.yaml"
    settings.write_text(yaml.safe_dump(SMALL | KEEPING | {"storage_path": str(tmp_path / "lost")}))
    process = subprocess.run([sys.executable, "-c", KILLED_WHILE_KEEPING, str(settings)], capture_output=True)
    assert process.returncode == -9, process.stderr
    run = tmp_path / "lost" / "first"
    assert sorted(path.name for path in (run / "checkpoints").iterdir())[-1] == "step_00000015.unfinished"
    result = resume(run)
    assert_as_undisturbed(result, tmp_path / "whole", **KEEPING)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [
        f"step_{step:08d}" for step in (5, 10, 15, 20)
    ]


def test_no_more_models_are_kept_than_asked_for_after_a_kill_between_two_of_them(tmp_path: Path) -> None:
    keeping = {"checkpoint": {"state_seconds": 0, "every_evaluations": 1, "num_to_keep": 2}}
    run = killed(tmp_path, **keeping)
    # As if it had been killed before the older ones were dropped.
    for step in (1, 2, 3):
        shutil.copytree(run / "checkpoints" / "step_00000010", run / "checkpoints" / f"step_{step:08d}")
    result = resume(run)
    assert kept_steps(result) == [15, 20]
    assert len(list((run / "checkpoints").iterdir())) == 2


# One driver at a time.


def test_a_second_driver_is_refused_while_the_first_one_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = killed(tmp_path)
    refused: list[Any] = []

    class Second(Watcher):
        def stepped(self, report: Any) -> None:
            if not refused:
                refused.append(command(["train", "--resume", str(run)], capsys))

    assert resume(run, Second()).error is None
    line = f"error: {run}: another driver is running this run; allowed is one driver at a time"
    assert refused == [(2, [], [line])]


def test_a_new_run_is_locked_from_its_first_moment_and_free_once_it_has_ended(tmp_path: Path) -> None:
    refused: list[str] = []

    class Second(Watcher):
        def started(self, plan: Any, path: Path) -> None:
            with pytest.raises(SettingsError) as error:
                resume(path)
            refused.append(str(error.value))

    result = Trainer(SMALL, storage_path=str(tmp_path), watcher=Second(), step_size=1e30).fit()
    assert result.error is not None
    assert "another driver" in refused[0]
    assert "loss" in str(resume(tmp_path / "first").error)  # it fails again, but nobody is in its way


def test_the_lock_of_a_killed_driver_holds_nobody_up(tmp_path: Path) -> None:
    run = killed(tmp_path)
    code = (
        "import os, signal, sys; from ray_pcasgd.run_folder import RunFolder\n"
        "folder = RunFolder.reopen(sys.argv[1]); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(run)]).returncode == -9
    assert resume(run).error is None


def test_a_forked_child_that_outlives_its_driver_does_not_hold_the_lock(tmp_path: Path) -> None:
    run = killed(tmp_path)
    # Two pipes: the child says that it is there, and ends when it is told to.
    code = (
        "import os, sys; from ray_pcasgd.run_folder import RunFolder\n"
        "folder = RunFolder.reopen(sys.argv[1])\n"
        "if os.fork() == 0:\n    sys.stdout.write('here'); sys.stdout.flush(); sys.stdin.read(1)\n"
        "os._exit(0)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(run)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as one:
        assert one.stdout is not None
        assert one.stdin is not None
        assert one.stdout.read(4) == b"here"
        assert one.wait() == 0
        assert resume(run).error is None
        one.stdin.close()


# The events' file.


def test_a_torn_last_line_of_events_is_ended_and_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = killed(tmp_path)
    (run / "events.jsonl").write_text('{"kind": "first", "agent": -1, "step": 0, "detail": "one"}\n{"kind": "tor')
    status, lines, errors = command(["train", "--resume", str(run)], capsys)
    assert (status, errors) == (0, [])
    assert any(line.startswith("report ") for line in lines)
    written = (run / "events.jsonl").read_text().splitlines()
    assert written[1] == '{"kind": "tor'
    assert json.loads(written[2])["kind"] == "run_resumed"
    status, _, errors = command(["report", str(run)], capsys)
    assert (status, errors) == (0, [])


@pytest.mark.parametrize("line", ["[1, 2]", "3", '"text"', "null", "\x00\xff", "[" * 100_000, '{"kind": 3}', "{}"])
def test_lines_that_are_no_events_do_not_keep_a_report_from_being_drawn(
    line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = Trainer(SMALL, storage_path=str(tmp_path)).fit()
    Path(result.path, "events.jsonl").write_bytes(line.encode("latin-1") + b"\n")
    status, _, errors = command(["report", result.path], capsys)
    assert (status, errors) == (0, [])


# Symbolic links.


@pytest.mark.parametrize(
    "name",
    ["events.jsonl", "result.json", "metrics.parquet", "schedule.parquet", "model.safetensors", "report.html"],
)
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


@pytest.mark.parametrize("name", ["states", "checkpoints"])
def test_a_linked_folder_within_a_run_is_not_written_to(name: str, tmp_path: Path) -> None:
    run = killed(tmp_path / "lost", **KEEPING)
    outside = tmp_path / "outside"
    (run / name).rename(outside)
    (run / name).symlink_to(outside)
    before = tree_of(outside)
    result = resume(run)
    assert tree_of(outside) == before
    assert f"{name} is a symbolic link" in str(result.error)
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


# Folders that go away.


def test_a_folder_that_is_deleted_on_the_way_is_named_and_its_files_are_elsewhere(tmp_path: Path) -> None:
    run = tmp_path / "lost" / "first"
    watcher = Noting(10, lambda: shutil.rmtree(run))
    result = Trainer(SMALL, **KEEPING, storage_path=str(tmp_path / "lost"), watcher=watcher).fit()
    assert str(run) in str(result.error)
    assert result.path in str(result.error)
    summary = json.loads((Path(result.path) / "result.json").read_text())
    assert summary["error"] == str(result.error)
    assert {"config.yaml", "events.jsonl", "metrics.parquet", "schedule.parquet", "model.safetensors"} <= {
        path.name for path in Path(result.path).iterdir()
    }
    assert "storage_failed" in {event.kind for event in watcher.events}
    assert not run.exists()


def test_a_folder_in_the_place_of_a_deleted_one_is_not_written_to(tmp_path: Path) -> None:
    run = tmp_path / "lost" / "first"

    def another() -> None:
        shutil.rmtree(run)
        run.mkdir()
        (run / "config.yaml").write_text("of another run")

    result = Trainer(SMALL, storage_path=str(tmp_path / "lost"), watcher=Noting(10, another)).fit()
    assert result.path in str(result.error)
    assert [path.name for path in run.iterdir()] == ["config.yaml"]
    assert Path(result.path) != run


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
    assert_as_undisturbed(resume(run, task=objects()), tmp_path / "whole", **changes)
    status, _, errors = command(["replay", str(run)], capsys)
    assert status == 2
    assert "replay it from Python, with Trainer(..., schedule=...)" in errors[0]


def test_a_function_of_the_script_itself_is_no_import_path(tmp_path: Path) -> None:
    run = killed(tmp_path / "lost", task={"model": {"hidden": [8]}, "loss": torch.nn.functional.cross_entropy})
    tree = yaml.safe_load((run / "config.yaml").read_text())
    assert tree["task"]["loss"]["function"] == "torch.nn.functional:cross_entropy"
    tree["task"]["loss"]["function"] = "__main__:my_loss"
    (run / "config.yaml").write_text(yaml.safe_dump(tree))
    with pytest.raises(SettingsError, match=r"task\.loss\.function = '__main__:my_loss' was given as objects of a"):
        resume(run)
    assert resume(run, task={"loss": torch.nn.functional.cross_entropy}).error is None
