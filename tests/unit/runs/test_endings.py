"""Whatever raises on the way, or cannot be written at the end: a model, a schedule and a result are somewhere."""

import json
import math
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from ray_pcasgd.agents.learner import NonFiniteLossError
from ray_pcasgd.base.plain_json import dumps, read_mapping
from ray_pcasgd.engines.failures import StepError, described, described_text
from ray_pcasgd.records import Event, StepReport
from ray_pcasgd.runs.callbacks import Watcher
from ray_pcasgd.runs.interrupting import RunInterrupted
from ray_pcasgd.runs.result import Result
from ray_pcasgd.runs.settings.loading import load_config
from ray_pcasgd.runs.trainer import Trainer, fit_together, resume
from ray_pcasgd.schedule.trace import read_rows
from tests.unit.interrupted_runs import command

SMALL: dict[str, Any] = {
    "engine": "local",
    "name": "first",
    "num_agents": 3,
    "num_steps": 12,
    "evaluate_every": 4,
    "task": {"model": {"hidden": [8]}},
}
HERE = Path(__file__).name


class Events(Watcher):
    def __init__(self) -> None:
        self.events: list[Event] = []

    def happened(self, event: Event) -> None:
        self.events.append(event)

    def said(self, kind: str) -> list[str]:
        return [event.detail for event in self.events if event.kind == kind]


def fit(folder: Path, watcher: Watcher | None = None, **changes: Any) -> Result:
    return Trainer(SMALL | changes, storage_path=str(folder), watcher=watcher).fit()


def summary_of(result: Result) -> dict[str, Any]:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    text = (Path(result.path) / "result.json").read_text(encoding="utf-8")
    summary: dict[str, Any] = json.loads(text, parse_constant=refuse)
    return summary


def names_in(folder: str | Path) -> set[str]:
    return {path.name for path in Path(folder).iterdir()}


def assert_all_there(result: Result) -> None:
    assert {"config.yaml", "metrics.parquet", "schedule.parquet", "result.json"} <= names_in(result.path)
    assert read_rows(Path(result.path) / "schedule.parquet")[0]
    assert result.checkpoint is not None
    assert result.checkpoint.state_dict()


# The user's own code raises.

STEPS = 5


class FailingLater(nn.Module):
    """Raises in its training mode from a forward pass on."""

    def __init__(self, passes: int = STEPS) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 10)
        self.left = passes

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.left -= 1
        if self.left < 0:
            raise ValueError("no more\nforward passes")
        outputs: Tensor = self.linear(inputs)
        return outputs


class FailingWhenEvaluated(nn.Module):
    """Raises in its evaluation mode, with other weights than those it was made with."""

    def __init__(self, raises: bool = True) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 10)
        self.raises = raises
        self.first = self.linear.weight.detach().clone()

    def forward(self, inputs: Tensor) -> Tensor:
        if self.raises and not self.training and not torch.equal(self.linear.weight, self.first):
            raise KeyError("evaluated")
        outputs: Tensor = self.linear(inputs)
        return outputs


class Failing:
    """A loss or a metric that raises from a call on."""

    def __init__(self, calls: int) -> None:
        self.left = calls
        self.__name__ = "failing"

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        self.left -= 1
        if self.left < 0:
            raise ZeroDivisionError("no more calls")
        return functional.cross_entropy(outputs, targets)


class FailingData(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Data that raise at one sample, once they are asked for often enough."""

    def __init__(self, asked: int) -> None:
        self.left = asked

    def __len__(self) -> int:
        return 60

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.left -= 1
        if self.left < 0:
            raise OSError("the disk is gone")
        return torch.full((64,), float(index)).sin(), index % 10


FAMILIES: dict[str, dict[str, Any]] = {
    "peers": {},
    "peers, stacked": {"engine": {"name": "local", "batched": "always"}},
    "pairs": {"algorithm": "ad-psgd", "links": []},
    "server": {"algorithm": {"name": "server", "gathering": "asgd"}},
    "server, stacked": {"algorithm": "server", "engine": {"name": "local", "batched": "always"}},
    "elastic averaging": {"algorithm": "elastic-averaging"},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_that_raises_is_named_with_agent_step_file_and_line(family: str, tmp_path: Path) -> None:
    result = fit(tmp_path, task={"model": FailingLater}, **FAMILIES[family])
    assert isinstance(result.error, StepError)
    line = FailingLater.forward.__code__.co_firstlineno + 4
    said = str(result.error)
    assert "ValueError: no more forward passes (" in said
    assert said.endswith(f"{HERE}:{line})")
    assert "agent" in said.partition("step")[0]
    assert "\n" not in said
    assert result.error.step >= 0
    if "stacked" not in family:
        assert said.startswith(f"agent {result.error.agent} at step {result.error.step}: ")
        assert result.error.step == (4 if family == "elastic averaging" else STEPS)
    summary = summary_of(result)
    assert (summary["status"], summary["error"]) == ("failed", said)
    assert "forward" in summary["traceback"]
    assert read_rows(Path(result.path) / "schedule.parquet")[0]


class SpeechlessError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("nothing to say")


@pytest.mark.parametrize(
    "raised", [StopIteration(3), MemoryError(), SpeechlessError(), ExceptionGroup("g", [OSError()])]
)
def test_whatever_is_raised_is_named(raised: Exception, tmp_path: Path) -> None:
    class Raising(FailingLater):
        def forward(self, inputs: Tensor) -> Tensor:
            try:
                return super().forward(inputs)
            except ValueError:
                raise raised from None

    error = fit(tmp_path, task={"model": Raising}).error
    assert str(error).startswith(f"agent 0 at step 5: {type(raised).__name__}")
    assert HERE in str(error)


def test_what_was_raised_is_the_cause_of_the_error(tmp_path: Path) -> None:
    error = fit(tmp_path, task={"model": FailingLater}).error
    assert isinstance(error, StepError)
    assert isinstance(error.__cause__, ValueError)


def test_a_loss_that_raises_leaves_the_last_evaluation_s_model(tmp_path: Path) -> None:
    # 3 agents' steps, 1 evaluation of 3 agents and the averaged model in 3 batches each, and what is tried before.
    result = fit(tmp_path, task={"model": {"hidden": [8]}, "loss": Failing(40)})
    assert "ZeroDivisionError: no more calls" in str(result.error)
    assert_all_there(result)
    assert result.metrics["step"] in (4, 8)


def test_data_that_raise_are_named(tmp_path: Path) -> None:
    data = (FailingData(10**9), FailingData(10**9))
    custom = {"name": "custom", "train": data[0], "test": data[1], "in_memory": False, "num_classes": 10}
    task = {"data": custom, "model": {"hidden": [8]}}
    data[0].left = 150
    result = fit(tmp_path, task=task, batch_size=4)
    line = FailingData.__getitem__.__code__.co_firstlineno + 3
    assert "OSError: the disk is gone" in str(result.error)
    assert f"{HERE}:{line}" in str(result.error)
    assert str(result.error).startswith("agent ")


@pytest.mark.parametrize("family", ["peers", "peers, stacked", "pairs", "server"])
def test_an_evaluation_that_raises_costs_no_training(family: str, tmp_path: Path) -> None:
    watcher = Events()
    result = fit(tmp_path, watcher, task={"model": FailingWhenEvaluated}, **FAMILIES[family])
    assert isinstance(result.error, StepError)
    assert str(result.error).startswith("evaluation of ")
    assert "at step 4: KeyError: 'evaluated' (" in str(result.error)
    assert f"{HERE}:" in str(result.error)
    assert_all_there(result)
    assert result.metrics["step"] == 12
    assert math.isnan(result.metrics["test_loss"])
    assert summary_of(result)["final"]["averaged"]["test_loss"] is None
    assert 1 <= len(watcher.said("evaluation_failed")) <= 3
    assert len((Path(result.path) / "events.jsonl").read_text().splitlines()) >= 3


AVERAGED = 2


def test_an_evaluation_of_the_averaged_model_alone_that_raises_is_named(tmp_path: Path) -> None:
    built: list[nn.Module] = []

    def factory() -> nn.Module:
        # Those before are tried out, this one becomes the averaged model, the others are the agents'.
        built.append(FailingWhenEvaluated(len(built) == AVERAGED))
        return built[-1]

    result = fit(tmp_path, task={"model": factory})
    assert str(result.error).startswith("evaluation of the averaged model at step 4: KeyError: 'evaluated' (")
    assert_all_there(result)
    assert result.metrics_dataframe["test_loss"].notna().sum() == 9


class Unwritten(Watcher):
    """A metric of values that are no numbers from the first step, or the first evaluation, on."""

    def __init__(self, value: Any, after: Literal["stepped", "evaluated"] = "stepped") -> None:
        self.value = value
        self.after = after
        self.told: set[str] = set()
        self.__name__ = "odd"

    def stepped(self, report: StepReport) -> None:
        self.told.add("stepped")

    def evaluated(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.told.add("evaluated")

    def __call__(self, outputs: Tensor, targets: Tensor) -> Any:
        return self.value if self.after in self.told else outputs.sum()


@pytest.mark.parametrize(
    "value",
    ["text", None, torch.ones(3), torch.tensor(1 + 2j), {"a": 1}, torch.tensor(math.nan), torch.tensor(-math.inf)],
    ids=str,
)
def test_metrics_that_are_no_numbers_cost_neither_the_model_nor_the_result(value: Any, tmp_path: Path) -> None:
    kept = {"every_evaluations": 1, "num_to_keep": 1, "score": "odd"}
    metric = Unwritten(value)
    result = fit(tmp_path, metric, task={"model": {"hidden": [8]}, "metrics": [metric]}, checkpoint=kept)
    assert_all_there(result)
    summary_of(result)
    assert len(result.best_checkpoints) == 1
    assert json.loads((Path(result.best_checkpoints[0][0].path) / "metrics.json").read_text())["odd"] is None
    is_number = isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex()
    assert (result.error is None) == is_number
    events = [json.loads(line) for line in (Path(result.path) / "events.jsonl").read_text().splitlines()]
    noticed = [event["detail"] for event in events if event["kind"] == "noticed"]
    assert [text.partition(" is ")[0] for text in noticed] == ["odd of the averaged model"] * is_number


def test_the_best_model_is_kept_where_a_score_is_no_number(tmp_path: Path) -> None:
    metric = Unwritten(torch.tensor(math.nan), after="evaluated")
    kept = {"every_evaluations": 1, "num_to_keep": 1, "score": "odd"}
    result = fit(tmp_path, metric, task={"model": {"hidden": [8]}, "metrics": [metric]}, checkpoint=kept)
    assert result.error is None
    assert [Path(one.path).name for one, _ in result.best_checkpoints] == ["step_00000004"]


def test_variants_that_run_together_all_end_with_what_raises(tmp_path: Path) -> None:
    changes = [{"name": f"variant-{number}", "step_size": eta} for number, eta in enumerate((0.1, 0.2))]
    base = load_config(SMALL, changes={"storage_path": str(tmp_path), "task": {"model": FailingLater}})
    results = fit_together([load_config(base, changes=own) for own in changes])
    for result in results:
        assert "agent 0 at step 5: ValueError: no more forward passes (" in str(result.error)
        assert_all_there(result)
        assert summary_of(result)["status"] == "failed"


def test_one_line_on_the_terminal_and_status_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n\n\nclass Net(nn.Sequential):\n    left = 9\n\n"
        "    def forward(self, x):\n        Net.left -= 1\n        if Net.left < 0:\n"
        "            raise RuntimeError('mine')\n        return super().forward(x)\n\n\n"
        "def net():\n    return Net(nn.Linear(64, 10))\n"
    )
    settings = ["task.model={name: custom, factory: 'mine:net'}", "num_agents=2", "num_steps=20", "name=first"]
    arguments = [part for setting in settings for part in ("--set", setting)]
    status, lines, errors = command(["train", "--engine", "local", *arguments], capsys)
    assert status == 1
    assert len(errors) == 1
    assert re.fullmatch(r"error: agent 0 at step \d+: RuntimeError: mine \(mine\.py:10\)", errors[0])
    assert "run folder runs/first" in lines
    summary = json.loads((tmp_path / "runs" / "first" / "result.json").read_text())
    assert f"error: {summary['error']}" == errors[0]


def test_errors_are_one_short_line_whatever_they_say() -> None:
    assert described(SpeechlessError()) == "SpeechlessError"
    assert described(ValueError("a\nb  c")) == "ValueError: a b c"
    assert len(described(ValueError("x" * 10**6))) < 400
    assert described(KeyError("name")) == "KeyError: 'name'"
    text = 'Traceback\n  File "/home/me/mine.py", line 3, in net\n    x\nValueError: boom\n'
    assert described_text(text) == "ValueError: boom (/home/me/mine.py:3)"


def test_what_a_watcher_raises_is_raised_again_and_the_files_are_there(tmp_path: Path) -> None:
    class Raising(Watcher):
        def evaluated(self, rows: Any) -> None:
            raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        fit(tmp_path, Raising())
    summary = json.loads((tmp_path / "first" / "result.json").read_text())
    assert summary["error"].startswith("ended from outside: LookupError: mine (")
    assert (tmp_path / "first" / "model.safetensors").exists()


# Ctrl-C.


class Interrupting(Events):
    """Interrupts at a step, once or as often as it is told anything."""

    def __init__(self, at_step: int, interrupt: Any, times: int = 1) -> None:
        super().__init__()
        self.at_step = at_step
        self.interrupt = interrupt
        self.times = times

    def stepped(self, report: Any) -> None:
        if report.row.step >= self.at_step and self.times:
            self.times -= 1
            self.interrupt()

    def evaluated(self, rows: Any) -> None:
        if self.times > 1:
            self.interrupt()

    def finished(self) -> None:
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
    watcher = Interrupting(6, interrupt)
    with pytest.raises(KeyboardInterrupt) as stopped:
        fit(tmp_path / "lost", watcher, **changes)
    run = tmp_path / "lost" / "first"
    assert isinstance(stopped.value, RunInterrupted)
    assert str(stopped.value) == f"interrupted; go on with: ray-pcasgd train --resume {run}"
    assert len(watcher.said("interrupted")) == 1
    summary = summary_of(stopped.value.result)
    assert (summary["status"], summary["error"]) == ("interrupted", "interrupted")
    assert (run / "schedule.parquet").exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    watcher = Interrupting(99, interrupt)
    again, whole = resume(run, watcher), fit(tmp_path / "whole", **changes)
    (resumed,) = watcher.said("run_resumed")
    assert changes or resumed in [f"going on from the state of step {step}" for step in (5, 6, 7)]
    assert again.error is None
    assert again.schedule_hash == whole.schedule_hash
    assert again.checkpoint
    assert whole.checkpoint
    weights = whole.checkpoint.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in again.checkpoint.state_dict().items())
    frames = [one.metrics_dataframe.drop(columns="wall_seconds") for one in (again, whole)]
    assert frames[0].equals(frames[1])


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
        Trainer(SMALL, storage_path=storage, watcher=Interrupting(6, press)).fit()
    assert str(stopped.value) == f"interrupted; go on with: ray-pcasgd train --resume {storage}/first"
    watcher = Events()
    assert resume(f"{storage}/first", watcher).error is None
    assert watcher.said("run_resumed")


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


def test_the_command_that_goes_on_is_printed_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["train", "--engine", "local", "--name", "first", "--set", "num_agents=3"]
    process = subprocess.run([sys.executable, "-c", CTRL_C, *arguments], capture_output=True, text=True, cwd=tmp_path)
    assert process.returncode == 130
    last = process.stderr.splitlines()[-1]
    assert last == "interrupted; go on with: ray-pcasgd train --resume runs/first"
    assert "Traceback" not in process.stderr + process.stdout
    status, lines, errors = command(last.partition("ray-pcasgd ")[2].split(), capsys)
    assert (status, errors) == (0, [])
    assert any(line.startswith("run resumed: going on from the state of step") for line in lines)


# Files that others read.


def test_every_json_is_json_whatever_the_numbers_are(tmp_path: Path) -> None:
    result = fit(tmp_path, step_size=1e4, num_steps=4)
    summary_of(result)
    text = dumps({1: math.nan, "b": np.float32(math.inf), "c": [np.int64(3), np.bool_(True), torch.tensor(2.0)]})
    assert text == '{"1": null, "b": null, "c": [3, true, 2.0]}'
    assert json.loads(dumps({"path": Path("here"), "huge": 10**5000, "set": {1}}))["path"] == "here"
    looped: dict[str, Any] = {}
    looped["self"] = looped
    assert json.loads(dumps(looped))
    (tmp_path / "list").write_text("[1]")
    assert read_mapping(tmp_path / "list") is None
    assert read_mapping(tmp_path) is None


def test_a_result_shows_itself_in_five_lines(tmp_path: Path) -> None:
    result = fit(tmp_path)
    lines = repr(result).splitlines()
    assert len(lines) == 5
    assert lines[0] == f"Result(path {tmp_path}/first"
    assert lines[1].strip() == "error None"
    assert "averaged model: test_loss " in lines[2]
    assert "agents' mean: test_loss " in lines[3]
    assert lines[4].strip() == f"schedule {result.schedule_hash})"
    failed = fit(tmp_path / "failed", step_size=1e30)
    assert isinstance(failed.error, NonFiniteLossError)
    assert len(repr(failed).splitlines()) == 5
    assert "not evaluated" in repr(failed)


def test_a_failed_run_can_be_gone_on_with_once_its_cause_is_mended(tmp_path: Path) -> None:
    settings = {"checkpoint": {"state_seconds": 0}}
    failed = fit(tmp_path, task={"model": lambda: FailingLater(9)}, **settings)
    assert "at step 9" in str(failed.error)
    again = resume(failed.path, task={"model": lambda: FailingLater(10**6)})
    assert again.error is None
    assert again.metrics["step"] == 12


def test_a_model_of_finite_numbers_that_has_diverged_is_no_success(tmp_path: Path) -> None:
    result = fit(tmp_path, step_size=1e21, num_steps=1, evaluate_every=1)
    said = "the averaged model has test loss (inf|nan) at step 1: training has diverged; a smaller step_size may help"
    assert re.fullmatch(said, str(result.error))
    assert summary_of(result)["status"] == "failed"
    assert_all_there(result)
