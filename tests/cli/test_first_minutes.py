"""The first minutes: a starter that runs as it is, the version, completion, and slips of the command line."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ray_pcasgd.cli.app import main
from ray_pcasgd.cli.settings_page import markdown
from ray_pcasgd.runs.settings.loading import load_config


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def ended(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    return int(caught.value.code or 0)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert ended(*arguments) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ")
    assert captured.out == ""
    return line.removeprefix("error: ")


def test_a_starter_runs_as_it_is_and_is_never_overwritten(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended("new", "my-first") == 0
    assert capsys.readouterr().out.splitlines() == [
        "my-first.yaml",
        "my_first_task.py",
        "run it: ray-pcasgd train my-first.yaml",
    ]
    assert ended("train", "my-first.yaml", "--name", "20240501") == 0
    shown = capsys.readouterr().out
    assert "test mae of the averaged model" in shown
    written = yaml.safe_load((folder / "runs" / "20240501" / "config.yaml").read_text())
    assert written["name"] == "20240501"
    assert (written["num_steps"], written["num_epochs"]) == (55, None)
    for gone in ("my-first.yaml", "my_first_task.py"):
        left = next(path for path in folder.iterdir() if path.suffix in (".yaml", ".py") and path.name != gone)
        before = left.read_bytes()
        (folder / gone).unlink()
        assert refused(capsys, "new", "my-first") == (
            f"new my-first: {left.name} exists; allowed is a name that is not in use"
        )
        assert not (folder / gone).exists()
        assert left.read_bytes() == before
        (folder / gone).write_text("")


def test_a_starter_s_settings_say_what_they_are(folder: Path) -> None:
    assert ended("new", "some") == 0
    sys.path.insert(0, str(folder))
    config = load_config(folder / "some.yaml")
    assert (config.num_agents, config.num_epochs, config.algorithm.name) == (4, 10, "pc-asgd")
    lines = (folder / "some.yaml").read_text().splitlines()
    assert max(map(len, lines)) <= 120
    assert sum("#" in line for line in lines) > 10


@pytest.mark.parametrize("name", ["../x", "a b", "1st", "", "a" * 200, "x.yaml", "-x"])
def test_a_starter_s_name_is_one_of_files_and_of_a_module(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused(capsys, "new", "--", name).startswith(f"new {name}: allowed are letters, digits, - and _")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("name", ["20240501", "1e3", "yes", "007", "null", "0x10", "1.5"])
def test_a_name_is_a_name(name: str, folder: Path) -> None:
    tiny = ["--engine", "local", "--set", "num_steps=1", "--set", "num_agents=1", "--set", "evaluate_every=1"]
    assert ended("train", *tiny, "--name", name) == 0
    assert load_config(folder / "runs" / name / "config.yaml").name == name


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended("--version") == 0
    assert re.fullmatch(r"ray-pcasgd \S+ \(Python 3\.\S+, ray 2\.\S+, torch \S+\)\n", capsys.readouterr().out)


def test_settings_are_told_and_the_page_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended("settings", "algorithm.theta") == 0
    assert capsys.readouterr().out.startswith("algorithm.theta: Share of the predicting step, in [0, 1]")
    assert ended("settings", "--markdown") == 0
    assert capsys.readouterr().out == markdown()
    assert refused(capsys, "settings", "lr") == "settings lr: no such setting; write step_size"


def test_the_shell_completes_commands_and_settings(tmp_path: Path) -> None:
    code = "import sys; sys.argv[0] = 'ray-pcasgd'; from ray_pcasgd.cli import main; main()"
    for words, expected in (("ray-pcasgd tr", "train"), ("ray-pcasgd train --set algorithm.the", "algorithm.theta=")):
        given = {"_RAY_PCASGD_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        environment = {"PATH": "", "PYTHONPATH": str(Path(__file__).parents[2]), "HOME": str(tmp_path), **given}
        shown = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
        )
        assert expected in shown.stdout.splitlines()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train", "--theta", "0.3"], "--theta: no such option; write --set algorithm.theta=0.3"),
        (["train", "--num-steps", "10"], "--num-steps: no such option; write --set num_steps=10"),
        (["train", "--num_steps=10"], "--num_steps: no such option; write --set num_steps=10"),
        (["train", "--algorithm.theta", "0.3"], "--algorithm.theta: no such option; write --set algorithm.theta=0.3"),
        (["train", "--lr", "0.1"], "--lr: no such option; write --set step_size=0.1"),
        (["train", "--epochs", "3"], "--epochs: no such option; write --set num_epochs=3"),
        (["train", "--workers", "4"], "--workers: no such option; write --set num_agents=4"),
        (["train", "--seed", "4"], "--seed: no such option; write --set seed=4"),
        (["train", "--topologie", "ring"], "--topologie: no such option; write --set topology=ring"),
        (
            ["train", "--config", "x.yaml"],
            "--config: no such option; write the file's path by itself: ray-pcasgd train",
        ),
        (["train", "--device", "cuda"], "--device: no such option; write --set engine.device=cuda"),
        (["train", "--xyzzy"], "--xyzzy: no such option; settings are changed by --set KEY=VALUE"),
        (["--theta", "0.3"], "--theta: no such option; write --set algorithm.theta=0.3"),
        (["train", "--set", "algorithm.theta", "0.3"], "--set algorithm.theta: allowed is key=value, for example"),
        (["train", "--set"], "Option '--set' requires an argument; ray-pcasgd"),
        (["train", "a.yaml", "b.yaml"], "Got unexpected extra argument"),
        (["compare", "--seeds", "x"], "Invalid value for '--seeds'"),
        (["train", "num_steps=10"], "num_steps=10: is no file of settings; write --set num_steps=10"),
        (["train", "pc-asgd"], "pc-asgd: is no file of settings; write --set algorithm=pc-asgd"),
        (["fit"], "fit: no such command; did you mean ray-pcasgd train?"),
        (["trian"], "trian: no such command; did you mean ray-pcasgd train?"),
        (["init"], "init: no such command; did you mean ray-pcasgd new?"),
        (["run.yaml"], "run.yaml: no such command; did you mean ray-pcasgd train run.yaml?"),
        (["xyzzy"], "xyzzy: no such command; allowed are train, replay, compare, "),
    ],
)
def test_a_slip_of_the_command_line_is_answered_with_what_to_write(
    arguments: list[str], expected: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused(capsys, *arguments).startswith(expected)
    assert list(folder.iterdir()) == []


def test_theory_works_with_the_defaults(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended("theory", "--updates", "100", "--output", "there") == 0
    assert "sync, K = 8" in capsys.readouterr().out
    assert {path.name for path in (folder / "there").iterdir()} == {"theory.parquet", "theory.svg"}
