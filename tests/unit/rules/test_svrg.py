"""Asynchronous SVRG: a slow reference in float64, its epochs in plans, and that its variance goes to 0."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from ray_pcasgd.agents.snapshot_worker import SnapshotWorker
from ray_pcasgd.base.state import difference
from ray_pcasgd.engines.local.execution import Execution
from ray_pcasgd.records import Row
from ray_pcasgd.rules.contract import check_rule
from ray_pcasgd.rules.epochs import Epochs
from ray_pcasgd.rules.gatherer import has_expired
from ray_pcasgd.rules.svrg import SVRG
from ray_pcasgd.runs.plan.plan import Plan, make_plan
from ray_pcasgd.runs.settings.loading import SettingsError, load_config
from ray_pcasgd.runs.trainer import Trainer
from tests.comparing import assert_same_to_the_bit
from tests.references.peers import SIZE, regression
from tests.references.svrg import SVRGReference
from tests.unit.recorded_runs import untold

Array = npt.NDArray[np.float64]
WORKERS = 3
SMALL: dict[str, Any] = {
    "num_agents": WORKERS,
    "num_steps": 16,
    "evaluate_every": 8,
    "batch_size": 7,
    "step_size": 0.05,
    "links": [],
    "clusters": 1,
    "compute": {"law": {"name": "exponential", "mean": 1.0}},
    "algorithm": {"name": "svrg", "gathering": {"name": "epochs", "updates": 10}},
    "engine": {"name": "local", "batched": "never"},
}
SECONDS = [{"delay": {"name": "exponential", "mean": 1.5}, "unit": "seconds"}]


def regression_of_eight() -> dict[str, Any]:
    """Return it with shards of 3, 3 and 2 samples."""
    task = regression()
    few = TensorDataset(*(one[:8] for one in task["data"]["train"].tensors))
    return task | {"data": task["data"] | {"train": few}}


def plan(**settings: Any) -> Plan:
    return make_plan(load_config(SMALL | {"task": regression()} | settings))


def rows_of(own: Plan) -> list[Row]:
    return [row for row in own.schedule if row is not None]


CHURN = [{"agent": 1, "leaves": "9s", "returns": "10s"}, {"agent": 2, "leaves": "34s"}]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"links": SECONDS},
        {"links": [{"delay": 4}]},
        {"task": regression_of_eight(), "links": SECONDS, "batch_size": 2},
        {"membership": CHURN, "num_steps": 24},
    ],
    ids=["plain", "seconds", "steps", "unequal shards", "churn"],
)
def test_runs_equal_the_slow_reference(changes: dict[str, Any]) -> None:
    own = plan(**changes)
    agents = [spec.build(own.data) for spec in own.specs]
    execution, reference, still = Execution(own.schedule, agents), SVRGReference(own, 10), 0
    for row in rows_of(own):
        list(execution.execute([row]))
        reference.run(row)
        if row.agent == WORKERS:
            np.testing.assert_allclose(agents[-1].weights.double().numpy(), reference.x[-1], atol=1e-5)
            still += row.step % 11 > 0 and np.array_equal(reference.x[-1], reference.x[-2])
    assert len(reference.x) > 40
    assert (still > 0) == ("membership" in changes)
    assert any(read.staleness for row in rows_of(own) if row.agent == WORKERS for read in row.reads)


@pytest.mark.parametrize("links", [[], SECONDS, [{"delay": 4}], [{"delay": 40}]], ids=str)
def test_epochs_begin_with_everybody_and_nothing_of_before_is_taken(links: Any) -> None:
    own = plan(links=links, num_steps=30)
    assert own.config.algorithm.gathering.epoch == 11  # type: ignore[union-attr]
    rows = rows_of(own)
    read = {(row.agent, row.step + 1): row.reads[0].version for row in rows if row.agent < WORKERS}
    taken = set()
    for row in (row for row in rows if row.agent == WORKERS):
        began = row.step - row.step % 11
        at = [read[one[:2]] for one in row.reads]
        taken |= {one[:2] for one in row.reads}
        if row.step == began:
            assert [one.neighbor for one in row.reads] == [0, 1, 2]
            assert at == [began] * WORKERS
        else:
            assert len(at) == 1
            assert began < at[0] <= row.step
    ignored = [key for key in read if key not in taken]
    assert ignored
    assert all(has_expired(Epochs(updates=10), read[key], read[key] - read[key] % 11 + 11) for key in ignored)


def test_a_full_gradient_takes_as_long_as_its_mini_batches_and_another_twice_as_long() -> None:
    own = plan(compute={"law": {"name": "constant", "value": 1.0}})
    for row in rows_of(own):
        if row.agent < WORKERS:
            whole = -(-len(own.specs[row.agent].shard) // 7)
            assert row.ready - row.start == pytest.approx(whole if row.reads[0].version % 11 == 0 else 2)


def test_epochs_are_two_passes_long_unless_they_say_how_long() -> None:
    own = plan(algorithm="svrg", num_steps=60)
    worker = own.specs[0].build(own.data)
    assert isinstance(worker, SnapshotWorker)
    assert worker.spec.recipe.rule.gathering.epoch == 1 + 2 * 3 * 6  # 40 samples a worker in batches of 7
    whole = [row.step for row in rows_of(own) if row.agent == WORKERS and len(row.reads) == 3]
    assert whole == [0, 37, 74, 111, 148]


def test_its_noise_goes_to_zero_at_a_constant_step_size() -> None:
    """Within 90 steps the loss is closer to the least one than SGD gets by a factor of 100."""
    task = regression()
    inputs, targets = (one.double() for one in task["data"]["train"].tensors)
    columns = torch.cat([inputs, torch.ones(len(inputs), 1)], 1)
    least = float(((columns @ torch.linalg.lstsq(columns, targets).solution - targets) ** 2).mean())

    def above(algorithm: Any) -> float:
        own = plan(algorithm=algorithm, num_steps=90, task=task)
        execution = Execution(own.schedule, [spec.build(own.data) for spec in own.specs])
        list(execution.reports())
        weights = list(execution.agents)[-1].weights.double()
        return float(((columns @ weights[:, None] - targets) ** 2).mean()) - least

    reduced, plain = above("svrg"), above("server")
    assert abs(reduced) < 1e-5, reduced
    assert plain > 100 * abs(reduced), (reduced, plain)


class Noisy(nn.Module):
    """Dropout and statistics, whose passes must be paired and leave no trace."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.BatchNorm1d(SIZE), nn.Linear(SIZE, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.passes += 1
        return self.layers(inputs)  # type: ignore[no-any-return]


NOISY = {"model": {"name": "custom", "factory": Noisy}}


def test_both_gradients_have_one_draw_and_full_ones_leave_no_trace() -> None:
    own = plan(task=regression() | NOISY, step_size=0.01)
    agents = [spec.build(own.data) for spec in own.specs]
    execution = Execution(own.schedule, agents)
    for row in rows_of(own)[:80]:
        before = agents[row.agent].buffers
        received = execution.receive(row)
        list(execution.execute([row]))
        worker = agents[row.agent]
        if not isinstance(worker, SnapshotWorker):
            continue
        if row.reads[0].version % 11 == 0:
            assert torch.equal(worker.buffers, received[0].buffers)
            assert worker.direction.any()
        elif row.reads[0].version % 11 == 1:
            # At the snapshot itself the difference of the two is nothing: masks and statistics were the same.
            assert not worker.direction.any()
            assert not torch.equal(worker.buffers, before)
        steps = sum(r.agent == row.agent and r.reads[0].version % 11 > 0 for r in rows_of(own)[:80] if r <= row)
        assert int(worker.replica.local()["passes"]) <= max(steps, 1)


def test_a_run_replays_and_goes_on_from_its_state(tmp_path: Path) -> None:
    noisy = {"task": regression() | NOISY, "optimizer": {"momentum": 0.5}, "step_size": 0.01}
    tree = SMALL | {"storage_path": str(tmp_path)} | noisy
    result = Trainer(tree, name="own").fit()
    assert result.error is None
    schedule = str(Path(result.path) / "schedule.parquet")
    assert_same_to_the_bit(Trainer(tree | {"schedule": schedule}, name="again").fit(), result)
    own = make_plan(load_config(tree))
    rows = rows_of(own)
    first, second = ([spec.build(own.data) for spec in own.specs] for _ in range(2))
    one, other = Execution(rows, first), Execution(rows, second)
    for row in rows[:45]:
        list(one.execute([row]))
    assert difference(second[0].state(), first[0].state(), "a worker") is None
    other.restore(one.state() | {"drawn": 0})
    for row in rows[45:]:
        list(one.execute([row]))
        list(other.execute([row]))
    assert torch.equal(first[-1].weights, second[-1].weights)


def test_a_schedule_without_these_epochs_is_refused(tmp_path: Path) -> None:
    tree = SMALL | {"storage_path": str(tmp_path), "task": regression()}
    asgd = Trainer(tree | {"algorithm": "server"}, name="asgd").fit()
    other = {"schedule": untold(Path(asgd.path) / "schedule.parquet")}
    with pytest.raises(SettingsError, match="update 1 takes what was computed before its epoch; allowed with"):
        make_plan(load_config(tree | other))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"algorithm": {"name": "svrg", "gathering": "asgd"}},
            "gathering.name = 'asgd': allowed with algorithm",
        ),
        ({"algorithm": {"name": "svrg", "shards": 2}}, "shards = 2: allowed with algorithm.name = 'svrg' is 1"),
        ({"algorithm": {"name": "server", "gathering": "epochs"}}, "gathering.name = 'epochs': allowed with algorithm"),
        ({"algorithm": {"name": "svrg", "gathering": {"name": "epochs", "updates": 0}}}, "updates = 0: allowed are"),
        ({"gradient_clipping": {"norm": 1.0}}, "gradient_clipping.norm = 1: allowed with algorithm.name = 'svrg' is"),
        ({"precision": "fp16"}, "precision = 'fp16': allowed with algorithm.name = 'svrg' is float32 or bf16"),
        ({"local_steps": 2}, "local_steps = 2: allowed with algorithm.name = 'svrg' is 1"),
    ],
    ids=str,
)
def test_what_has_no_meaning_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        plan(**changes)


def test_what_every_rule_with_a_server_promises() -> None:
    check_rule(SVRG(), num_workers=4)
