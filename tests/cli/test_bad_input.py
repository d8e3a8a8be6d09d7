"""The command line answers bad settings with exit status 2 and a line for each error, and nothing is left behind."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ray_pcasgd.cli.app import main

TINY = ["--engine", "local", "--set", "num_steps=2", "--set", "evaluate_every=2", "--set", "num_agents=2"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert ended.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines
    assert all(line.startswith("error: ") for line in lines)
    return [line.removeprefix("error: ") for line in lines]


def test_every_wrong_setting_has_a_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = refused(capsys, "train", "--engine", "loca", "--set", "algorithm.theta=1.5", "--set", "num_agent=3")
    assert lines == [
        "algorithm.theta = 1.5: allowed are values in [0, 1], and staleness",
        "engine.name = 'loca': allowed are ray, local; did you mean local?",
        "num_agent = 3: no such setting; did you mean num_agents?",
    ]
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("command", ["train", "compare"])
def test_settings_that_do_not_fit_together_leave_nothing_behind(
    command: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = refused(capsys, command, *TINY, "--set", "topology={name: edges, edges: []}")
    assert len(lines) == 1
    assert "the graph is disconnected, there is no path from agent 0 to agent 1" in lines[0]
    assert list(folder.iterdir()) == []


def test_a_missing_file_and_a_bad_file_are_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, "train", "no.yaml")[0].startswith("no.yaml: cannot be read (")
    (folder / "list.yaml").write_text("- 1\n")
    assert refused(capsys, "train", "list.yaml") == ["list.yaml: holds a list; allowed is a mapping of settings"]
    assert refused(capsys, "replay", "nowhere") == ["nowhere: is no run folder; allowed are folders with a config.yaml"]
    assert refused(capsys, "report", "nowhere") == ["nowhere: is no run folder; allowed are folders with a config.yaml"]


def test_a_name_that_is_taken_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "runs" / "mine").mkdir(parents=True)
    for command in ("train", "compare"):
        (line,) = refused(capsys, command, *TINY, "--name", "mine")
        assert line.startswith("name = 'mine': ")
        assert line.endswith("exists; allowed is a name that is not in use")
    assert list((folder / "runs" / "mine").iterdir()) == []


def test_a_failed_run_ends_with_status_1_and_says_which_agent_failed(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["--set", "step_size=1e30", "--set", "num_steps=9", "--name", "mine"]
    with pytest.raises(SystemExit) as ended:
        main(["train", *TINY, *settings])
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith("error: agent 0 has loss ")
    assert (folder / "runs" / "mine" / "metrics.parquet").exists()


COMMANDS = """
import contextlib, io, json, os, sys
from ray_pcasgd.cli.app import main
for environment, command in json.loads(sys.argv[1]):
    os.environ |= environment
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            main(command)
        except SystemExit as ended:
            print(json.dumps([ended.code, said.getvalue()]))
"""


def test_a_ray_that_does_not_answer_or_start_ends_with_status_1_and_leaves_nothing_behind(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    (folder / "sweep.yaml").write_text("config: {engine: ray, num_agents: 2}\nspace: {step_size: [0.1, 0.2]}\n")
    named = ["train", *TINY[2:], "--name", "mine"]
    long = str(tmp_path_factory.mktemp("ray") / ("long" * 40))
    commands = [
        ({"RAY_ADDRESS": address}, ["train", *TINY[2:]]),
        ({}, [*named, "--set", f"engine.address={address}"]),
        ({}, ["compare", *TINY[2:], "--engine", "ray", "--seeds", "1"]),
        ({}, ["sweep", "sweep.yaml"]),
        ({"RAY_ADDRESS": "", "RAY_TMPDIR": long}, named),
        ({"RAY_TMPDIR": "/dev/null"}, named),
    ]
    process = subprocess.run(
        [sys.executable, "-c", COMMANDS, json.dumps(commands)], cwd=folder, capture_output=True, text=True, check=True
    )
    assert process.stderr == ""
    ended = [json.loads(line) for line in process.stdout.splitlines()]
    assert [status for status, _ in ended] == [1] * len(commands)
    lines = [line for _, line in ended]
    assert all(line.count("\n") == 1 for line in lines)
    said = f"'{address}': no Ray cluster answers there (connection refused)\n"
    by_environment, by_setting = (f"error: {subject} = {said}" for subject in ("RAY_ADDRESS", "engine.address"))
    assert lines[:4] == [by_environment, by_setting, by_environment, by_environment]
    assert all(line.startswith("error: Ray does not start: ") for line in lines[4:])
    assert "AF_UNIX path length cannot exceed" in lines[4]
    assert "Not a directory" in lines[5]
    assert [path.name for path in folder.iterdir()] == ["sweep.yaml"]


def test_a_process_of_its_own_ends_with_status_2_and_no_traceback(tmp_path: Path) -> None:
    code = "from ray_pcasgd.cli import main; main(['train', '--set', 'foo'])"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert ended.returncode == 2
    assert ended.stderr == "error: --set foo: allowed is key=value, for example algorithm.theta=0.3\n"
    assert ended.stdout == ""
