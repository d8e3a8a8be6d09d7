"""Whatever is damaged in the folder of a run that goes on is passed over, and said."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console

from ray_pcasgd.base.own_files import remove_whole
from ray_pcasgd.base.state import State, load_state
from ray_pcasgd.cli.terminal import Terminal
from ray_pcasgd.records import Row
from ray_pcasgd.runs.trainer import resume
from ray_pcasgd.schedule.row_block import packed
from tests.unit.interrupted_runs import (
    KEEPING,
    SERVER,
    SMALL,
    Noting,
    assert_as_undisturbed,
    command,
    kept_steps,
    killed,
    newest_state,
    tree_of,
    undisturbed,
    write_state,
)


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
    assert_as_undisturbed(resume(run, [Terminal(Console(file=output, width=1000))]))
    lines = output.getvalue().splitlines()
    (skipped,) = (line for line in lines if line.startswith("state skipped: "))
    assert str(newest) in skipped
    assert any(line.startswith("run resumed: going on from the state of step 5") for line in lines)
    written = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    assert [event["kind"] for event in written[-2:]] == ["state_skipped", "run_resumed"]


@pytest.mark.usefixtures("without_pictures")
def test_the_command_line_goes_on_from_an_older_state(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = killed(tmp_path)
    cut_short(newest_state(run))
    status, lines, errors = command(["train", "--resume", str(run)], capsys)
    assert (status, errors) == (0, [])
    assert any(line.startswith("state skipped: ") for line in lines)
    assert any(line.startswith("run resumed: going on from the state of step 5") for line in lines)


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


def block_of(row: Row) -> list[Any]:
    block = packed([row])
    return [*block.sizes, torch.frombuffer(bytearray(block.encoded()), dtype=torch.uint8)]


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
    "no loss": without("engine", "agents", 0, "loss"),
    "a part too many": changed("engine", "more", to=1),
    "rows that are none": changed("run", "rows", to=[(0, 0)]),
    "a row of agent 99": changed("run", "rows", 0, to=block_of(Row(99, 0, 0.0, 0.0, 0.0, ()))),
    "a row of a negative step": changed("run", "rows", 0, to=block_of(Row(0, -1, 0.0, 0.0, 0.0, ()))),
    "rows that are cut short": changed("run", "rows", 0, 3, to=lambda data: data[:-1]),
    "rows of more reads than there are": changed("run", "rows", 0, 1, to=lambda number: number + 1),
    "rows in a text": changed("run", "rows", 0, 3, to="rows"),
    "more rows drawn than there are": changed("engine", "drawn", to=10**6),
    "a monitor that is none": changed("run", "monitor", to=[]),
    "a tally with a part too many": changed("run", "monitor", "tallies", 0, "take", to=5),
    "metrics that are none": changed("run", "monitor", "rows", to=[1, 2]),
    "metrics of no step": changed("run", "monitor", "rows", 0, "names", 1, to="five"),
    "metrics of agent 99": changed("run", "monitor", "rows", 0, "figures", to=lambda figures: figures + 90),
    "metrics that are text": changed("run", "monitor", "rows", 0, "figures", to="1"),
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
    callback = Noting()
    assert_as_undisturbed(resume(run, [callback]))
    (skipped,) = callback.said("state_skipped")
    assert str(newest) in skipped
    assert "\n" not in skipped
    assert not Path("made-by-a-state").exists()


@pytest.mark.parametrize(
    "wrong",
    [
        without("engine", "versions"),
        changed("engine", "agents", 3, "weights", to=torch.ones(2)),
        changed("engine", "versions", "last_read", to={"a": 1}),
        changed("engine", "versions", "published", 0, to={1: {"weights": torch.ones(2)}}),
        changed("engine", "window", to=[3]),
    ],
)
def test_a_server_s_state_of_wrong_content_gives_way_to_an_older_one(wrong: Any, tmp_path: Path) -> None:
    run = killed(tmp_path / "lost", **SERVER)
    newest = newest_state(run)
    write_state(newest, wrong(load_state(newest / "state.pt")))
    callback = Noting()
    assert_as_undisturbed(resume(run, [callback]), **SERVER)
    assert len(callback.said("state_skipped")) == 1


@pytest.mark.usefixtures("without_pictures")
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
    callback = Noting()
    assert_as_undisturbed(resume(run, [callback]), checkpoint={"state_seconds": 3600})
    assert callback.said("run_begins_anew") == [f"{run} has no state from which it could go on"]


# Models that are kept on the way.


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
    callback = Noting()
    result = resume(run, [callback])
    assert result.error is None
    assert [Path(one.path).name for one, _ in result.best_checkpoints] == [
        f"step_000000{step}" for step in (10, 15, 20)
    ]
    (skipped,) = callback.said("model_skipped")
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
from ray_pcasgd.runs.storage import folder as run_folder
from ray_pcasgd.runs.trainer import Trainer

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
    assert_as_undisturbed(result, **KEEPING)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [
        f"step_{step:08d}" for step in (5, 10, 15, 20)
    ]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_driver_that_is_killed_at_any_operation_on_files_is_resumed_to_the_bit(tmp_path: Path) -> None:
    killing = [sys.executable, "-m", "tests.unit.killing", str(tmp_path), "6", "20"]
    process = subprocess.run(killing, capture_output=True, text=True, check=True)
    (line,) = process.stdout.splitlines()
    assert line.endswith(" cases")


def test_what_is_dropped_has_lost_its_name_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tmp_path / "step_00000003"
    whole.mkdir()
    for name in ("metrics.json", "model.safetensors"):
        (whole / name).write_text("")
    seen: list[bool] = []
    unlink = Path.unlink

    def looking(path: Path, missing_ok: bool = False) -> None:
        seen.append(whole.exists())
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", looking)
    remove_whole(whole, ["metrics.json", "model.safetensors"])
    assert seen == [False, False]
    assert list(tmp_path.iterdir()) == []


def test_no_more_models_are_kept_than_asked_for_after_a_kill_between_two_of_them(tmp_path: Path) -> None:
    keeping = {"checkpoint": {"state_seconds": 0, "every_evaluations": 1, "num_to_keep": 2}}
    run = killed(tmp_path, **keeping)
    # As if it had been killed before the older ones were dropped.
    for step in (1, 2, 3):
        shutil.copytree(run / "checkpoints" / "step_00000010", run / "checkpoints" / f"step_{step:08d}")
    result = resume(run)
    assert kept_steps(result) == [15, 20]
    assert len(list((run / "checkpoints").iterdir())) == 2


# The events' file.


@pytest.mark.usefixtures("without_pictures")
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


NO_EVENTS = ["[1, 2]", "3", '"text"', "null", "\x00\xff", "[" * 100_000, '{"kind": 3}', "{}"]


def test_lines_that_are_no_events_do_not_keep_a_report_from_being_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each in a run of its own, all on one page: a page takes a second to draw."""
    runs = [undisturbed(tmp_path / str(number)) for number in range(len(NO_EVENTS))]
    for run, line in zip(runs, NO_EVENTS, strict=True):
        (run / "events.jsonl").write_bytes(line.encode("latin-1") + b"\n")
    status, _, errors = command(["report", *map(str, runs), "--output", str(tmp_path / "page.html")], capsys)
    assert (status, errors) == (0, [])
    assert (tmp_path / "page.html").stat().st_size > 0
