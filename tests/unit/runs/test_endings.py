"""Whatever raises while a run is running: a model, a schedule and a result are somewhere, and the error is named."""

import json
import math
import re
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
from ray_pcasgd.records import StepReport
from ray_pcasgd.runs.callbacks import Callback
from ray_pcasgd.runs.settings.loading import load_config
from ray_pcasgd.runs.trainer import fit_together, resume
from ray_pcasgd.schedule.parquet import read_rows
from tests.unit.ending_runs import FAMILIES, SMALL, assert_all_there, fit, summary_of
from tests.unit.interrupted_runs import Noting, command

HERE = Path(__file__).name


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
        # A first step of SVRG is a pass over all of a shard, and a round of FedGLOMO takes nearly twice as many passes.
        steps = {"elastic averaging": 4, "diloco": 4, "fedasync": 4, "fedglomo": 0, "svrg": 0}
        assert result.error.step == steps.get(family, STEPS)
    summary = summary_of(result)
    assert (summary["status"], summary["error"]) == ("failed", said)
    assert "forward" in summary["traceback"]
    has_rows = bool(read_rows(Path(result.path) / "schedule.parquet")[0])
    assert has_rows == (family not in ("fedglomo", "svrg"))


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
    callback = Noting()
    result = fit(tmp_path, callback, task={"model": FailingWhenEvaluated}, **FAMILIES[family])
    assert isinstance(result.error, StepError)
    assert str(result.error).startswith("evaluation of ")
    assert "at step 4: KeyError: 'evaluated' (" in str(result.error)
    assert f"{HERE}:" in str(result.error)
    assert_all_there(result)
    assert result.metrics["step"] == 12
    assert math.isnan(result.metrics["test_loss"])
    assert summary_of(result)["final"]["averaged"]["test_loss"] is None
    assert 1 <= len(callback.said("evaluation_failed")) <= 3
    assert len((Path(result.path) / "events.jsonl").read_text().splitlines()) >= 3


AVERAGED = 4


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


class Unwritten(Callback):
    """A metric of values that are no numbers from the first step, or the first evaluation, on."""

    def __init__(self, value: Any, after: Literal["stepped", "evaluated"] = "stepped") -> None:
        self.value = value
        self.after = after
        self.told: set[str] = set()
        self.__name__ = "odd"

    def on_step(self, report: StepReport) -> None:
        self.told.add("stepped")

    def on_evaluation(self, rows: Sequence[Mapping[str, Any]]) -> None:
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
        "from torch import nn\n\n\nclass Net(nn.Sequential):\n    left = 11\n\n"
        "    def forward(self, x):\n        Net.left -= 1\n        if Net.left < 0:\n"
        "            raise RuntimeError('mine')\n        return super().forward(x)\n\n\n"
        "def net():\n    return Net(nn.Linear(64, 10))\n"
    )
    settings = ["task.model={name: custom, factory: 'mine:net'}", "num_agents=2", "num_steps=20", "name=first"]
    arguments = [part for setting in settings for part in ("--set", setting)]
    status, lines, errors = command(["train", "--engine", "local", *arguments], capsys)
    assert status == 1
    assert len(errors) == 1
    assert re.fullmatch(r"error: agent [01] at step \d+: RuntimeError: mine \(mine\.py:10\)", errors[0])
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


def test_what_a_callback_raises_is_raised_again_and_the_files_are_there(tmp_path: Path) -> None:
    class Raising(Callback):
        def on_evaluation(self, rows: Any) -> None:
            raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        fit(tmp_path, Raising())
    summary = json.loads((tmp_path / "first" / "result.json").read_text())
    assert summary["error"].startswith("ended from outside: LookupError: mine (")
    assert (tmp_path / "first" / "model.safetensors").exists()


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
