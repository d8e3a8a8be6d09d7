"""Ctrl-C: a state is kept, the command that goes on is printed, and no file is lost."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ray_pcasgd.runs.interrupting import RunInterrupted
from ray_pcasgd.runs.result import Result
from ray_pcasgd.runs.trainer import Trainer, resume
from ray_pcasgd.schedule.parquet import read_rows
from tests.comparing import assert_same_metrics, assert_same_to_the_bit
from tests.unit.ending_runs import FAMILIES, SMALL, assert_all_there, fit, summary_of
from tests.unit.interrupted_runs import Noting, command


class Interrupting(Noting):
    """Interrupts at a step, once or as often as it is told anything."""

    def __init__(self, at_step: int, interrupt: Any, times: int = 1) -> None:
        super().__init__()
        self.at_step = at_step
        self.interrupt = interrupt
        self.times = times

    def on_step(self, report: Any) -> None:
        if report.row.step >= self.at_step and self.times:
            self.times -= 1
            self.interrupt()

    def on_evaluation(self, rows: Any) -> None:
        if self.times > 1:
            self.interrupt()

    def on_end(self, result: Result) -> None:
        if self.times > 1:
            self.interrupt()


def press() -> None:
    signal.raise_signal(signal.SIGINT)


def raise_it() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("interrupt", [press, raise_it])
@pytest.mark.parametrize("changes", [{}, FAMILIES["server"]], ids=["peers", "server"])
def test_ctrl_c_keeps_a_state_from_which_the_run_goes_on_to_the_bit(
    interrupt: Any, changes: dict[str, Any], tmp_path: Path
) -> None:
    callback = Interrupting(6, interrupt)
    with pytest.raises(KeyboardInterrupt) as stopped:
        fit(tmp_path / "lost", callback, **changes)
    run = tmp_path / "lost" / "first"
    assert isinstance(stopped.value, RunInterrupted)
    assert str(stopped.value) == f"interrupted; go on with: ray-pcasgd train --resume {run}"
    assert len(callback.said("interrupted")) == 1
    summary = summary_of(stopped.value.result)
    assert (summary["status"], summary["error"]) == ("interrupted", "interrupted")
    assert (run / "schedule.parquet").exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    callback = Interrupting(99, interrupt)
    again, whole = resume(run, [callback]), fit(tmp_path / "whole", **changes)
    (resumed,) = callback.said("run_resumed")
    assert changes or resumed in [f"going on from the state of step {step}" for step in (5, 6, 7)]
    assert_same_to_the_bit(again, whole)
    assert_same_metrics(again, whole)


def test_pressing_again_and_again_loses_no_file(tmp_path: Path) -> None:
    with pytest.raises(RunInterrupted) as stopped:
        fit(tmp_path, Interrupting(6, press, times=10**6), checkpoint={"state_seconds": 0})
    result = stopped.value.result
    assert_all_there(result)
    assert stopped.value.has_state


@pytest.mark.parametrize(
    "changes",
    [FAMILIES["pairs"], {"checkpoint": {"state_seconds": None}}],
    ids=["a family without states", "no states are wanted"],
)
def test_ctrl_c_says_where_there_is_no_state_to_go_on_from(changes: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(RunInterrupted) as stopped:
        fit(tmp_path, Interrupting(6, press), **changes)
    assert str(stopped.value) == (
        f"interrupted; no state was kept, so this begins anew: ray-pcasgd train --resume {tmp_path}/first"
    )
    assert summary_of(stopped.value.result)["status"] == "interrupted"
    assert read_rows(tmp_path / "first" / "schedule.parquet")[0]


def test_a_remote_run_that_is_interrupted_goes_on_from_its_remote_folder(tmp_path: Path) -> None:
    storage = f"file://{tmp_path}/storage"
    with pytest.raises(RunInterrupted) as stopped:
        Trainer(SMALL, storage_path=storage, callbacks=[Interrupting(6, press)]).fit()
    assert str(stopped.value) == f"interrupted; go on with: ray-pcasgd train --resume {storage}/first"
    callback = Noting()
    assert resume(f"{storage}/first", [callback]).error is None
    assert callback.said("run_resumed")


def test_a_program_s_own_handler_stays_in_place_and_one_that_tune_has_left_gives_way(tmp_path: Path) -> None:
    handled: list[int] = []

    def own(number: int, frame: Any) -> None:
        handled.append(number)

    def left_by_tune(number: int, frame: Any) -> None:
        handled.append(number)

    left_by_tune.__module__ = "ray.tune.tune"
    try:
        signal.signal(signal.SIGINT, own)
        assert fit(tmp_path / "own", Interrupting(6, press)).error is None
        assert handled == [signal.SIGINT]
        assert signal.getsignal(signal.SIGINT) is own
        signal.signal(signal.SIGINT, left_by_tune)
        with pytest.raises(RunInterrupted):
            fit(tmp_path / "left", Interrupting(6, press))
        assert handled == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


CTRL_C = """
import os, signal, sys
from ray_pcasgd.runs import run
from ray_pcasgd.cli.app import main

def take_step(self, report, take=run.Run.take_step):
    take(self, report)
    if len(self.rows) == 20:
        os.kill(os.getpid(), signal.SIGINT)

run.Run.take_step = take_step
main(sys.argv[1:])
"""


@pytest.mark.usefixtures("without_pictures")
def test_the_command_that_goes_on_is_printed_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["train", "--engine", "local", "--name", "first"]
    arguments += ["--set", "num_agents=3", "--set", "num_steps=20", "--set", "evaluate_every=10"]
    process = subprocess.run([sys.executable, "-c", CTRL_C, *arguments], capture_output=True, text=True, cwd=tmp_path)
    assert process.returncode == 130
    last = process.stderr.splitlines()[-1]
    assert last == "interrupted; go on with: ray-pcasgd train --resume runs/first"
    assert "Traceback" not in process.stderr + process.stdout
    status, lines, errors = command(last.partition("ray-pcasgd ")[2].split(), capsys)
    assert (status, errors) == (0, [])
    assert any(line.startswith("run resumed: going on from the state of step") for line in lines)
