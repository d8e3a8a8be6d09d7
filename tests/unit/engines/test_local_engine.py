"""The local engine: what it keeps, where it stops, whom it isolates, and what can be learned with it."""

import hashlib
import inspect
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.datasets import load_diabetes
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from ray_pcasgd.agents.learner import NonFiniteLossError
from ray_pcasgd.engines.base import Report, RunError
from ray_pcasgd.engines.local.engine import LocalEngine, LocalSettings
from ray_pcasgd.engines.local.execution import Execution
from ray_pcasgd.records import Read, Row, StepReport
from ray_pcasgd.runs.plan.plan import Plan, make_plan
from ray_pcasgd.runs.settings.loading import load_config
from ray_pcasgd.runs.trainer import Trainer
from ray_pcasgd.schedule.parquet import read_rows
from ray_pcasgd.schedule.scheduler import Recorded, Schedule

SMALL: dict[str, Any] = {"num_agents": 4, "num_steps": 12, "evaluate_every": 12, "engine": "local"}


def plan(**settings: Any) -> Plan:
    return make_plan(load_config(SMALL | {"task": {"model": {"hidden": [8]}}} | settings))


# What happens to agents whose loss is not finite.

POISONED = 37
"""The sample whose target is not a number."""


def poisoned() -> dict[str, Any]:
    inputs = torch.linspace(-1, 1, 200)[:, None]
    targets = 2 * inputs + 1
    train = targets.clone()
    train[POISONED] = torch.nan
    data = {"name": "custom", "train": TensorDataset(inputs, train), "test": TensorDataset(inputs, targets)}
    return {"data": data, "model": {"name": "mlp", "hidden": [4]}, "loss": "mse", "metrics": ["mae"]}


def holder_and_step(own: Plan) -> tuple[int, int]:
    """Return which agent draws the poisoned sample, and at which step."""
    (spec,) = [spec for spec in own.specs if POISONED in spec.shard]
    config = own.config
    batches = config.task.batches(own.data, spec.shard, config.batch_size, config.seed, spec.agent)
    return spec.agent, next(step for step in range(100) if POISONED in batches.indices_at(step))


@pytest.mark.parametrize("batched", ["always", "never"])
def test_a_loss_that_is_not_finite_stops_the_run(batched: str, tmp_path: Path) -> None:
    settings = {"task": poisoned(), "batch_size": 5, "engine": {"name": "local", "batched": batched}}
    holder, step = holder_and_step(plan(**settings))
    assert 0 < step < 12
    result = Trainer(SMALL | settings, storage_path=str(tmp_path)).fit()
    assert isinstance(result.error, NonFiniteLossError)
    assert str(result.error) == f"agent {holder} has loss nan at step {step}"
    rows, metadata = read_rows(Path(result.path) / "schedule.parquet")
    assert {row.step for row in rows if row.agent == holder} == set(range(step))
    assert metadata["left"] == ""


def test_a_straggler_takes_all_of_its_steps_after_the_fast_ones_were_isolated(tmp_path: Path) -> None:
    """The next rows of the schedule are all of the isolated agent, more than the engine looks ahead."""
    settings: dict[str, Any] = {
        "num_agents": 2,
        "num_steps": 40,
        "evaluate_every": 40,
        "task": poisoned(),
        "batch_size": 5,
        "on_non_finite_loss": "isolate",
    }
    holder, _ = holder_and_step(plan(**settings))
    slow = 1 - holder
    result = Trainer(SMALL | settings, compute={"stragglers": {slow: 20.0}}, storage_path=str(tmp_path)).fit()
    assert result.error is None
    rows, _ = read_rows(Path(result.path) / "schedule.parquet")
    assert sum(row.agent == slow for row in rows) == 40


@pytest.mark.parametrize("batched", ["always", "never"])
def test_an_agent_is_isolated_and_the_others_go_on_without_it(batched: str, tmp_path: Path) -> None:
    settings = {
        "task": poisoned(),
        "batch_size": 5,
        "engine": {"name": "local", "batched": batched},
        "on_non_finite_loss": "isolate",
        "algorithm": {"name": "pc-asgd", "theta": 0.5},
        "links": [{"between": "clusters", "delay": 3}],
        "compute": {"law": {"name": "uniform", "low": 0.5, "high": 1.5}},
    }
    holder, step = holder_and_step(plan(**settings))
    result = Trainer(SMALL | settings, storage_path=str(tmp_path)).fit()
    assert result.error is None
    folder = Path(result.path)
    (event,) = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert (event["kind"], event["agent"], event["step"]) == ("agent_isolated", holder, step)
    assert event["detail"] == f"agent {holder} has loss nan at step {step}"
    rows, metadata = read_rows(folder / "schedule.parquet")
    assert metadata["left"] == str(holder)
    taken = {agent: sum(row.agent == agent for row in rows) for agent in range(4)}
    assert taken == {agent: step if agent == holder else 12 for agent in range(4)}
    assert max(read.version for row in rows for read in row.reads if read.neighbor == holder) <= step
    frame = result.metrics_dataframe
    final = frame[frame["step"] == 12]
    assert set(final["agent"].dropna()) == set(range(4)) - {holder}
    assert result.metrics["test_mae"] < 1.0
    assert result.checkpoint is not None
    weights = result.checkpoint.state_dict()
    assert all(bool(tensor.isfinite().all()) for tensor in weights.values())
    again = Trainer(SMALL | settings, storage_path=str(tmp_path), schedule=str(folder / "schedule.parquet")).fit()
    assert again.error is None
    replayed, _ = read_rows(Path(again.path) / "schedule.parquet")
    versions = [{one[:2]: [read[:2] for read in one.reads] for one in part} for part in (rows, replayed)]
    assert versions[0] == versions[1]


def test_a_run_that_every_agent_leaves_has_failed(tmp_path: Path) -> None:
    result = Trainer(SMALL, step_size=1e30, on_non_finite_loss="isolate", storage_path=str(tmp_path)).fit()
    assert isinstance(result.error, RunError)
    assert str(result.error) == "every agent has left the run; events.jsonl says why"


# What it keeps.


@pytest.mark.parametrize(("algorithm", "delay"), [("pc-asgd", 5), ("d-asgd", 2), ("d-asgd", 0)])
def test_memory_stays_bounded_under_a_constant_delay(algorithm: str, delay: int) -> None:
    own = plan(num_steps=40, algorithm=algorithm, links=[{"delay": delay}], num_agents=5, topology="ring", clusters=1)
    planned, recorded = (
        kept_versions(own, schedule) for schedule in (own.schedule, Recorded(tuple(map(checked, own.schedule))))
    )
    assert len(planned) == 200
    # Those held back, the newest, that of the step going on, and one that a late reader is yet to read.
    assert max(planned) <= delay + 3
    # Reads of live runs may fall back by one.
    assert max(recorded) == max(planned) + 1
    assert max(planned[20:40]) == max(planned[-40:-20])


def checked(row: Row | None) -> Row:
    assert row is not None
    return row


def kept_versions(own: Plan, schedule: Schedule) -> list[int]:
    """Return how many versions of one agent are kept at most, after each step."""
    execution = Execution(schedule, [spec.build(own.data) for spec in own.specs])
    steps = (report for report in execution.reports() if isinstance(report, StepReport))
    return [max(map(len, execution.versions.by_agent.values())) for _ in steps]


def test_closing_the_run_restores_threads_and_global_random_numbers() -> None:
    own = plan()
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    run = LocalEngine(LocalSettings(threads=threads + 1), own.schedule).run(own.specs, own.data)
    assert isinstance(next(run), StepReport)
    run.close()  # type: ignore[attr-defined]
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


# Schedules that are no schedules.


def execute(own: Plan, rows: list[Row]) -> list[Report]:
    return list(LocalEngine(LocalSettings(), Recorded(tuple(rows))).run(own.specs, own.data))


def row(agent: int, step: int, *reads: Read) -> Row:
    return Row(agent, step, float(step), step + 1.0, step + 1.0, reads)


@pytest.mark.parametrize("num_filler", [0, 30])
def test_a_schedule_that_cannot_go_on_says_which_read_is_missing(num_filler: int) -> None:
    own = plan(num_agents=3, num_steps=40, algorithm="d-asgd", clusters=1)
    filler = [row(2, step) for step in range(num_filler)]
    rows = [row(0, 0), row(1, 0), row(0, 1, Read(1, 2, 0, 0)), *filler, row(1, 1, Read(0, 3, 0, 0))]
    expected = r"^schedule: agent 0 reads version 2 of agent 1 at step 1, and no row before it publishes that version$"
    with pytest.raises(RunError, match=expected):
        execute(own, rows)


def test_a_schedule_that_leaves_out_a_step_is_named() -> None:
    own = plan(num_agents=2, clusters=1)
    with pytest.raises(RunError, match=r"^schedule: agent 1 has a row for step 2 and none for the step before it$"):
        execute(own, [row(0, 0), row(1, 0), row(1, 2)])


def test_rows_wait_for_what_they_read_however_they_are_ordered() -> None:
    own = plan(num_agents=2, num_steps=3, algorithm="d-asgd", clusters=1)
    ordered = [row(a, t, Read(1 - a, t, 0, 0)) for t in range(3) for a in range(2)]
    turned = sorted(ordered, key=lambda one: (one.agent, one.step))
    reports = [
        {report.row[:2]: report.loss for report in execute(own, rows) if isinstance(report, StepReport)}
        for rows in (ordered, turned)
    ]
    assert reports[0] == reports[1]
    assert len(reports[0]) == 6


def test_agents_of_different_degrees_run_batched_as_alone() -> None:
    losses = []
    for batched in ("always", "never"):
        own = plan(
            topology="star",
            algorithm={"name": "pc-asgd-pv", "probe_every": 3},
            engine={"name": "local", "batched": batched},
            links=[{"delay": 2}],
        )
        reports = own.engine().run(own.specs, own.data)
        losses.append({r.row[:2]: r.loss for r in reports if isinstance(r, StepReport)})
    assert losses[0].keys() == losses[1].keys()
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


# The same results everywhere.

HASHED_RUN = """
import hashlib, sys
from ray_pcasgd.runs.trainer import Trainer
result = Trainer(
    num_agents=6, num_steps=15, engine="local", storage_path=sys.argv[1], algorithm="pc-asgd-pv",
    topology={"name": "erdos-renyi", "probability": 0.5}, links=[{"delay": {"name": "uniform", "low": 0, "high": 4}}],
).fit()
digest = hashlib.sha256()
for name, tensor in sorted(result.checkpoint.state_dict().items()):
    digest.update(name.encode() + tensor.numpy().tobytes())
print(result.schedule_hash, digest.hexdigest())
"""


def test_results_do_not_depend_on_the_hash_seed(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", HASHED_RUN, str(tmp_path / seed)],
            env=os.environ | {"PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "2")
    ]
    first, second = (process.communicate()[0] for process in processes)
    assert [process.returncode for process in processes] == [0, 0]
    assert first == second
    assert len(first.split()[1]) == hashlib.sha256().digest_size * 2


# The user's own tasks, by Python object.


def diabetes() -> tuple[TensorDataset, TensorDataset]:
    inputs, targets = load_diabetes(return_X_y=True)
    x = torch.from_numpy(inputs).float() * 20
    y = torch.from_numpy((targets - targets.mean()) / targets.std()).float()[:, None]
    return TensorDataset(x[:350], y[:350]), TensorDataset(x[350:], y[350:])


def small_network(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(10, width), nn.Tanh(), nn.Linear(width, 1))


def huber(outputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.huber_loss(outputs, targets)


def test_a_regression_with_the_user_s_own_data_model_and_loss(tmp_path: Path) -> None:
    train, test = diabetes()
    result = Trainer(
        SMALL,
        num_steps=60,
        evaluate_every=20,
        step_size=0.05,
        optimizer={"momentum": 0.9},
        task={
            "data": {"name": "custom", "train": train, "test": test},
            "model": {"name": "custom", "factory": small_network, "arguments": {"width": 8}},
            "loss": {"name": "custom", "function": huber},
            "metrics": ["mse", {"name": "custom", "function": huber}],
        },
        storage_path=str(tmp_path),
    ).fit()
    assert result.error is None
    assert result.checkpoint is not None
    network = small_network(8)
    network.load_state_dict(result.checkpoint.state_dict())
    inputs, targets = test.tensors
    with torch.no_grad():
        expected = float((network(inputs) - targets).square().mean())
    assert result.metrics["test_mse"] == pytest.approx(expected, rel=1e-5)
    assert result.metrics["test_huber"] == pytest.approx(result.metrics["test_loss"])
    # Always answering the mean leaves the whole variance; a linear fit leaves about half of it.
    assert expected < 0.7 * float(targets.var())


def test_a_character_level_language_model(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(inspect.getsource(textwrap), encoding="utf-8")
    result = Trainer(
        SMALL,
        num_steps=60,
        evaluate_every=20,
        batch_size=8,
        step_size=0.2,
        optimizer={"momentum": 0.5},
        links=[{"between": "clusters", "delay": 2}],
        task={
            "data": {"name": "text", "path": text, "context": 32},
            "model": {"name": "char-lm", "width": 16, "layers": 1, "heads": 2},
        },
        storage_path=str(tmp_path),
    ).fit()
    assert result.error is None
    frame = result.metrics_dataframe
    losses = frame[frame["agent"].isna()]["test_loss"].tolist()
    assert len(losses) == 3
    assert losses[0] > losses[1] > losses[2]
    # Less than the entropy of characters alone: it uses those before.
    characters = torch.tensor(list(text.read_bytes()))
    shares = characters.bincount().double() / len(characters)
    entropy = -float((shares[shares > 0] * shares[shares > 0].log()).sum())
    assert losses[2] < entropy
