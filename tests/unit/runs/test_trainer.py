"""The loop over reports: what a result holds, which files a run leaves, and what Ray Train's settings mean here."""

import json
import sys
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import pytest
import torch
import yaml
from pyarrow import fs
from rich.console import Console
from safetensors import safe_open
from torch import nn

from ray_pcasgd.agents.learner import NonFiniteLossError
from ray_pcasgd.cli.terminal import Terminal
from ray_pcasgd.engines.ray.settings import RaySettings
from ray_pcasgd.records import Event, StepReport
from ray_pcasgd.runs.callbacks import Callback
from ray_pcasgd.runs.plan.plan import Plan
from ray_pcasgd.runs.result import Result
from ray_pcasgd.runs.settings.loading import SettingsError, load_config
from ray_pcasgd.runs.settings.ray_train import from_ray_train
from ray_pcasgd.runs.settings.trust import load_run_settings
from ray_pcasgd.runs.storage.checkpoints import Checkpoint
from ray_pcasgd.runs.trainer import Trainer
from ray_pcasgd.schedule.parquet import read_rows, trace_hash

SMALL: dict[str, Any] = {
    "num_agents": 4,
    "num_steps": 30,
    "evaluate_every": 10,
    "links": [{"between": "clusters", "delay": 2}],
    "engine": "local",
}


def plain_network() -> nn.Module:
    """Return the embedded task's network, in PyTorch's own words."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def accuracy(state: Mapping[str, torch.Tensor]) -> float:
    data = load_config().task.load()
    network = plain_network()
    network.load_state_dict(state)
    inputs, targets = data.test.take(range(len(data.test)))
    return (network(inputs).argmax(1) == targets).double().mean().item()


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return Trainer(SMALL, storage_path=str(tmp_path_factory.mktemp("runs"))).fit()


def test_the_result_holds_the_last_evaluation(result: Result) -> None:
    assert result.error is None
    frame = result.metrics_dataframe
    assert frame["step"].tolist() == [step for step in (10, 20, 30) for _ in range(5)]
    assert frame["agent"].isna().sum() == 3
    averaged, agents = frame[frame["agent"].isna()].iloc[-1], frame[frame["agent"].notna()].iloc[-4:]
    assert result.metrics["step"] == 30
    for name in ("test_accuracy", "test_loss", "consensus_distance"):
        assert result.metrics[name] == averaged[name]
    column = agents["test_accuracy"].to_numpy(dtype=float)
    for statistic, value in {
        "mean": column.mean(),
        "std": column.std(),
        "min": min(column),
        "max": max(column),
    }.items():
        assert result.metrics[f"agents_{statistic}_test_accuracy"] == pytest.approx(value)
    assert result.metrics["test_accuracy"] > 0.5


def test_the_run_folder_is_complete(result: Result) -> None:
    folder = Path(result.path)
    assert folder.name == "pc-asgd-1"
    names = {"config.yaml", "metrics.parquet", "schedule.parquet", "model.safetensors", "result.json"}
    assert {path.name for path in folder.iterdir()} == names
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "metrics.parquet"), result.metrics_dataframe)
    rows, metadata = read_rows(folder / "schedule.parquet")
    assert len(rows) == 120
    assert trace_hash(rows) == result.schedule_hash
    assert metadata == {
        "run": "pc-asgd-1",
        "mode": "planned",
        "algorithm": "pc-asgd",
        "reading": "newest",
        "num_agents": "4",
        "num_servers": "0",
        "seed": "0",
        "left": "",
    }
    summary = json.loads((folder / "result.json").read_text())
    assert summary["final"]["averaged"]["test_accuracy"] == result.metrics["test_accuracy"]
    assert (summary["agent_steps"], summary["num_parameters"], summary["error"]) == (120, 8970, None)
    assert sum(summary["shard_sizes"]) == 1438
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt", "run": "pc-asgd-1", "algorithm": "pc-asgd"}


def test_the_model_file_loads_in_plain_pytorch(result: Result) -> None:
    assert result.checkpoint is not None
    assert result.checkpoint.path == result.path
    assert accuracy(result.checkpoint.state_dict()) == pytest.approx(result.metrics["test_accuracy"])


def test_the_written_settings_give_the_same_run_again(result: Result, tmp_path: Path) -> None:
    again = Trainer(Path(result.path) / "config.yaml", storage_path=str(tmp_path)).fit()
    assert again.metrics == pytest.approx(result.metrics, rel=0, abs=0, nan_ok=True)
    assert again.schedule_hash == result.schedule_hash
    replayed = Trainer(SMALL, schedule=f"{result.path}/schedule.parquet", storage_path=str(tmp_path), num_steps=20)
    assert replayed.fit().metrics["step"] == 20


def test_names_count_up_where_none_is_given(tmp_path: Path) -> None:
    tiny = SMALL | {"num_steps": 1, "algorithm": "d-asgd", "storage_path": str(tmp_path)}
    paths = [Path(Trainer(tiny).fit().path).name for _ in range(2)]
    assert paths == ["d-asgd-1", "d-asgd-2"]


class Recorder(Callback):
    def __init__(self) -> None:
        self.told: list[str] = []
        self.steps: list[tuple[int, int]] = []

    def on_start(self, plan: Plan, path: Path) -> None:
        self.told.append(f"started {plan.config.num_agents} {path.is_dir()}")

    def on_step(self, report: StepReport) -> None:
        self.steps.append(report.row[:2])

    def on_evaluation(self, rows: Sequence[Mapping[str, Any]]) -> None:
        if rows:
            self.told.append(f"evaluated {rows[-1]['step']} {[row['agent'] for row in rows]}")

    def on_event(self, event: Event) -> None:
        self.told.append(event.kind)

    def on_checkpoint(self, checkpoint: Checkpoint, metrics: Mapping[str, Any]) -> None:
        assert set(checkpoint.state_dict())
        self.told.append(f"kept {Path(checkpoint.path).name} {sorted(metrics)}")

    def on_end(self, result: Result) -> None:
        ended = json.loads((Path(result.path) / "result.json").read_text())
        self.told.append(f"ended {ended['status']} {result.error}")


def test_the_hooks_of_callbacks_are_called_in_order(tmp_path: Path) -> None:
    callbacks = [Recorder(), Recorder()]
    kept = {"every_evaluations": 2, "num_to_keep": 1}
    settings = SMALL | {"num_agents": 2, "num_steps": 20, "checkpoint": kept, "storage_path": str(tmp_path)}
    Trainer(settings, callbacks=callbacks).fit()
    for callback in callbacks:
        assert callback.told == [
            "started 2 True",
            f"evaluated 10 [0, 1, {pd.NA!r}]",
            f"evaluated 20 [0, 1, {pd.NA!r}]",
            "kept step_00000020 ['accuracy', 'loss']",
            "ended finished None",
        ]
        assert sorted(callback.steps) == [(agent, step) for agent in range(2) for step in range(20)]


@pytest.mark.parametrize(
    "wrong", [Recorder(), [Recorder], [Recorder(), None], "terminal"], ids=["one", "class", "None", "text"]
)
def test_callbacks_that_are_none_are_refused_before_anything_is_made(wrong: Any, tmp_path: Path) -> None:
    with pytest.raises(
        SettingsError, match=r"^callbacks(\.[01])? = .*: allowed is a list of objects of classes"
    ) as refused:
        Trainer(SMALL, callbacks=wrong, storage_path=str(tmp_path))
    assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


class Noted(Callback):
    """Notes the ends of runs for all objects of the class."""

    ended: ClassVar[list[str]] = []

    def on_end(self, result: Result) -> None:
        self.ended.append(Path(result.path).name)


PATH = "tests.unit.runs.test_trainer:Noted"


def test_callbacks_by_import_path_are_made_for_each_run(tmp_path: Path) -> None:
    Noted.ended.clear()
    tiny = SMALL | {"num_steps": 2, "storage_path": str(tmp_path)}
    Trainer(tiny, callbacks=[PATH], name="argument").fit()
    Trainer(tiny, callbacks=[Terminal(Console(file=StringIO())), PATH], name="again").fit()
    Trainer(tiny | {"callbacks": [PATH]}, name="setting").fit()
    Trainer(tmp_path / "setting" / "config.yaml", name="file").fit()
    assert Noted.ended == ["argument", "again", "setting", "file"]
    assert yaml.safe_load((tmp_path / "argument" / "config.yaml").read_text())["callbacks"] == [PATH]


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("tests.unit.runs.test_trainer:absent", "has no attribute 'absent'"),
        ("builtins:dict", "returns an object of dict; allowed is what returns an object of a class that is derived"),
        ("tests.unit.runs.test_trainer:fails", "cannot be called without arguments (OSError: no disk"),
        ("math:pi", "allowed is something callable"),
    ],
)
def test_a_callback_s_import_path_that_makes_none_is_refused_in_one_line(path: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"^callbacks\.0 = ") as refused:
        Trainer(SMALL, callbacks=[path], storage_path=str(tmp_path)).fit()
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def fails() -> Callback:
    raise OSError("no disk")


def test_callbacks_in_settings_of_others_are_not_imported(tmp_path: Path) -> None:
    folder = tmp_path / "stranger"
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(SMALL | {"callbacks": ["antigravity:fly"]}))
    with pytest.raises(SettingsError, match=r"callbacks.*it names code.*allowed with --trust"):
        load_run_settings(folder)
    assert "antigravity" not in sys.modules


def test_what_a_callback_raises_at_the_end_is_raised_once_all_have_been_called(tmp_path: Path) -> None:
    class Raising(Callback):
        def on_end(self, result: Result) -> None:
            raise OSError("no mail today")

    last = Recorder()
    with pytest.raises(OSError, match="no mail today"):
        Trainer(SMALL, num_steps=2, callbacks=[Raising(), last], storage_path=str(tmp_path)).fit()
    assert last.told[-1] == "ended finished None"


# Failed runs.


class Broken(nn.Module):
    """Gives outputs that are not numbers from its fifth mini-batch on."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 10)
        self.register_buffer("passes", torch.tensor(0))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.passes += 1
        outputs: torch.Tensor = self.linear(inputs)
        return outputs if int(self.passes) < 5 else outputs * torch.nan


def test_a_failed_run_leaves_what_it_had(tmp_path: Path) -> None:
    callback = Recorder()
    task = {"model": {"name": "custom", "factory": Broken}}
    settings = SMALL | {"evaluate_every": 2, "task": task, "storage_path": str(tmp_path)}
    result = Trainer(settings, callbacks=[callback]).fit()
    assert isinstance(result.error, NonFiniteLossError)
    assert (result.error.agent, result.error.step) == (0, 4)
    assert callback.told[-1] == f"ended failed {result.error}"
    folder = Path(result.path)
    assert pd.read_parquet(folder / "metrics.parquet")["step"].max() == 4
    assert result.metrics["step"] == 4
    rows, metadata = read_rows(folder / "schedule.parquet")
    assert {row.step for row in rows} == {0, 1, 2, 3}
    assert metadata["left"] == ""
    (event,) = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert event == {"kind": "run_failed", "detail": "agent 0 has loss nan at step 4"}
    assert json.loads((folder / "result.json").read_text())["error"] == "agent 0 has loss nan at step 4"
    assert result.checkpoint is not None
    assert int(result.checkpoint.state_dict()["passes"]) == 4
    # What was recorded can be replayed as far as it goes.
    again = Trainer(settings, task={}, schedule=str(folder / "schedule.parquet"), num_steps=4).fit()
    assert again.error is None
    assert again.schedule_hash == result.schedule_hash


def test_a_run_that_fails_at_once_has_no_metrics_and_no_checkpoint(tmp_path: Path) -> None:
    result = Trainer(SMALL, step_size=1e30, storage_path=str(tmp_path)).fit()
    assert isinstance(result.error, NonFiniteLossError)
    assert (result.metrics, result.checkpoint, len(result.metrics_dataframe)) == ({}, None, 0)
    assert pd.read_parquet(Path(result.path) / "metrics.parquet").empty
    assert len(read_rows(Path(result.path) / "schedule.parquet")[0]) == 4


def test_settings_that_cannot_be_run_leave_no_folder(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"^num_agents = 1500: "):
        Trainer(SMALL, num_agents=1500, storage_path=str(tmp_path)).fit()
    assert list(tmp_path.iterdir()) == []


# Checkpoints.


@pytest.mark.parametrize(
    ("checkpoint", "kept"),
    [
        ({}, []),
        ({"every_evaluations": 1}, [3, 6, 9, 12]),
        ({"every_evaluations": 2}, [6, 12]),
        ({"every_evaluations": 1, "num_to_keep": 2}, [9, 12]),
        ({"every_evaluations": 1, "num_to_keep": 1, "score": "loss", "score_order": "min"}, None),
        ({"every_evaluations": 1, "num_to_keep": 2, "score": "loss", "score_order": "max"}, None),
    ],
)
def test_checkpoints_are_kept_as_asked_for(checkpoint: dict[str, Any], kept: list[int] | None, tmp_path: Path) -> None:
    settings = SMALL | {"num_steps": 12, "evaluate_every": 3, "checkpoint": checkpoint}
    result = Trainer(settings, storage_path=str(tmp_path)).fit()
    frame = result.metrics_dataframe
    losses = frame[frame["agent"].isna()].set_index("step")["test_loss"]
    if kept is None:
        best = losses.sort_values(ascending=checkpoint["score_order"] == "min")
        kept = sorted(best.index[: checkpoint["num_to_keep"]])
    folder = Path(result.path) / "checkpoints"
    assert sorted(path.name for path in folder.glob("*")) == [f"step_{step:08d}" for step in kept]
    assert [Path(one.path).name for one, _ in result.best_checkpoints] == [f"step_{step:08d}" for step in kept]
    for (one, metrics), step in zip(result.best_checkpoints, kept, strict=True):
        assert metrics["loss"] == losses[step]
        assert json.loads((Path(one.path) / "metrics.json").read_text()) == metrics
        assert accuracy(one.state_dict()) == pytest.approx(metrics["accuracy"])


# Ray Train's settings.


def test_ray_train_s_settings_mean_what_they_mean_there(tmp_path: Path) -> None:
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig

    trainer = Trainer(
        SMALL,
        scaling_config=ScalingConfig(
            num_workers=6,
            use_gpu=True,
            resources_per_worker={"CPU": 0.5, "GPU": 0.25, "special": 2},
            placement_strategy="SPREAD",
        ),
        run_config=RunConfig(
            name="mine",
            storage_path=str(tmp_path),
            failure_config=FailureConfig(max_failures=2),
            checkpoint_config=CheckpointConfig(
                num_to_keep=3, checkpoint_score_attribute="loss", checkpoint_score_order="min"
            ),
        ),
    )
    config = trainer.config
    assert (config.num_agents, config.name, config.storage_path) == (6, "mine", str(tmp_path))
    assert config.max_failures == 2
    assert config.checkpoint.model_dump(exclude={"state_seconds", "states_to_keep"}) == {
        "every_evaluations": 1,
        "num_to_keep": 3,
        "score": "loss",
        "score_order": "min",
    }
    engine = config.engine.model_dump()
    assert engine["name"] == "ray"
    assert (engine["cpus_per_agent"], engine["gpus_per_agent"]) == (0.5, 0.25)
    assert (engine["resources_per_agent"], engine["placement_strategy"]) == ({"special": 2.0}, "SPREAD")


def test_ray_train_s_defaults_change_nothing(tmp_path: Path) -> None:
    from ray.train import RunConfig, ScalingConfig

    given = SMALL | {"storage_path": str(tmp_path), "name": "mine", "max_failures": 3, "num_agents": 3}
    trainer = Trainer(given, scaling_config=ScalingConfig(num_workers=3), run_config=RunConfig())
    assert trainer.config == load_config(given)
    with_gpus = Trainer(scaling_config=ScalingConfig(num_workers=2, use_gpu=True)).config
    assert with_gpus.engine.model_dump()["gpus_per_agent"] == 1.0


def test_parts_given_by_name_win_over_ray_train_s_and_the_file_s(tmp_path: Path) -> None:
    from ray.train import ScalingConfig

    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({"num_agents": 2, "seed": 5, "batch_size": 3}))
    config = Trainer(file, scaling_config=ScalingConfig(num_workers=3), num_agents=4, seed=6).config
    assert (config.num_agents, config.seed, config.batch_size) == (4, 6, 3)


def test_a_number_of_workers_that_may_change_is_refused() -> None:
    from ray.train import ScalingConfig

    with pytest.raises(SettingsError, match=r"^scaling_config\.num_workers = \(1, 4\): allowed is one fixed number"):
        Trainer(scaling_config=ScalingConfig(num_workers=(1, 4)))


def test_what_has_no_meaning_here_is_refused() -> None:
    from ray.train import RunConfig, ScalingConfig

    with pytest.raises(
        SettingsError, match=r"^run_config\.storage_filesystem = .*: allowed is none, and a storage_path"
    ):
        Trainer(run_config=RunConfig(storage_path="bucket/runs", storage_filesystem=fs.LocalFileSystem()))
    placed = from_ray_train(
        ScalingConfig(num_workers=2, use_gpu=True, accelerator_type="A100", label_selector={"zone": "a"}), None
    )
    engine = load_config(placed).engine
    assert isinstance(engine, RaySettings)
    assert (engine.accelerator_type, engine.label_selector) == ("A100", {"zone": "a"})
    with pytest.raises(SettingsError, match=r"^run_config\.worker_runtime_env = .*: has no meaning here"):
        Trainer(run_config=RunConfig(worker_runtime_env={"pip": ["x"]}))


def test_the_file_holds_the_rows_of_evaluations_that_some_agent_never_reached(tmp_path: Path) -> None:
    # Agents are evaluated at different times; the run ends between them.
    settings = SMALL | {"evaluate_every": 4, "task": {"model": {"name": "custom", "factory": Broken}}}
    late = {"compute": {"agents": {3: 9.0}}, "algorithm": "d-asgd", "storage_path": str(tmp_path)}
    result = Trainer(settings | late).fit()
    assert result.error is not None
    frame = result.metrics_dataframe
    assert frame["agent"].notna().all()
    pd.testing.assert_frame_equal(pd.read_parquet(Path(result.path) / "metrics.parquet"), frame)


def test_a_remote_run_is_published(tmp_path: Path) -> None:
    checkpoint = {"every_evaluations": 1}
    result = Trainer(SMALL, num_steps=10, storage_path=f"file://{tmp_path}/runs", checkpoint=checkpoint).fit()
    assert result.path == f"file://{tmp_path}/runs/pc-asgd-1"
    assert (tmp_path / "runs" / "pc-asgd-1" / "result.json").exists()
    assert result.checkpoint is not None
    for one in (result.checkpoint, result.best_checkpoints[0][0]):
        assert accuracy(one.state_dict()) == pytest.approx(result.metrics["test_accuracy"])


def test_parts_of_the_engine_s_settings_are_added_to_ray_train_s() -> None:
    from ray.train import ScalingConfig

    scaling = ScalingConfig(num_workers=2, resources_per_worker={"CPU": 0.5})
    engine = Trainer(scaling_config=scaling, engine={"mode": "live"}).config.engine.model_dump()
    assert (engine["mode"], engine["cpus_per_agent"]) == ("live", 0.5)
