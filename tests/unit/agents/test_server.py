"""Workers and servers driven row by row, against slow references in float64 that keep every version."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from ray_pcasgd.agents.learner import NonFiniteLossError
from ray_pcasgd.agents.participant import Received
from ray_pcasgd.agents.server import Server, ServerSpec
from ray_pcasgd.agents.worker import Worker, WorkerSpec
from ray_pcasgd.engines.local.execution import Execution
from ray_pcasgd.records import Read, Row, StepReport
from ray_pcasgd.runs.plan.plan import Plan, make_plan
from ray_pcasgd.runs.settings.loading import load_config
from tests.references.servers import ElasticReference, Reference

Array = npt.NDArray[np.float64]

SMALL: dict[str, Any] = {
    "num_agents": 3,
    "num_steps": 8,
    "batch_size": 8,
    "clusters": 1,
    "links": [],
    "step_size": {"name": "linear", "start": 0.1, "end": 0.02, "steps": 8},
    "compute": {"law": {"name": "exponential", "mean": 1}},
    "engine": {"name": "local", "batched": "never"},
    "task": {"model": {"hidden": [6]}},
}
OPTIMIZERS: dict[str, Any] = {
    "plain": {},
    "momentum": {"momentum": 0.8, "weight_decay": 0.05},
    "nesterov": {"momentum": 0.8, "weight_decay": 0.05, "nesterov": True},
}
IMAGES = {
    "data": {"name": "custom", "train": "tests.engines.images:TRAIN", "test": "tests.engines.images:TEST"},
    "model": {"name": "small-cnn", "channels": [4], "batch_norm": True},
}


def plan(algorithm: Any, **settings: Any) -> Plan:
    return make_plan(load_config(SMALL | {"algorithm": algorithm} | settings))


def server(gathering: Any = "asgd", correction: Any = "none", **more: Any) -> dict[str, Any]:
    return {"name": "server", "gathering": gathering, "correction": correction, **more}


class Driven:
    """All workers and servers of a plan, and every version and message of them."""

    def __init__(self, own: Plan) -> None:
        self.plan = own
        self.workers = [Worker(spec, own.data) for spec in own.specs if isinstance(spec, WorkerSpec)]
        self.servers = [Server(spec, own.data) for spec in own.specs if isinstance(spec, ServerSpec)]
        self.versions = [[(s.weights, s.buffers)] for s in self.servers]
        self.messages: list[dict[int, tuple[Tensor, Tensor]]] = [{} for _ in self.workers]

    def rows(self) -> Iterator[Row]:
        """Execute the plan's rows, and yield each of them after it was executed."""
        for row in self.plan.schedule:
            assert row is not None
            if row.agent < len(self.workers):
                self.work(row)
            else:
                self.update(row)
            yield row

    def work(self, row: Row) -> None:
        worker = self.workers[row.agent]
        if row.kind == "cancelled":
            worker.skip()
            return
        first = len(self.workers)
        received = [Received(read, *self.versions[read.neighbor - first][read.version]) for read in row.reads]
        assert worker.step(received) is not None
        self.messages[row.agent][worker.version] = (worker.computed, worker.buffers)

    def update(self, row: Row) -> dict[str, float]:
        own = self.servers[row.agent - len(self.workers)]
        part = own.spec.recipe.part(own.spec.place, self.workers[0].weights.numel())
        received = []
        for read in row.reads:
            vector, buffers = self.messages[read.neighbor][read.version]
            received.append(Received(read, vector[part], buffers if own.spec.place == 0 else buffers[:0]))
        measures = own.step(received)
        self.versions[own.spec.place].append((own.weights, own.buffers))
        return measures

    @property
    def weights(self) -> Tensor:
        return torch.cat([own.weights for own in self.servers])


CORRECTIONS: dict[str, Any] = {
    "none": "none",
    "staleness-aware": "staleness-aware",
    "dc-asgd-c": {"name": "dc-asgd-c", "lambda_0": 20.0},
    "dc-asgd-a": {"name": "dc-asgd-a", "lambda_0": 5.0},
    "gap-bounded": {"name": "gap-bounded", "bound": 5e-4},
    "delay-adaptive": "delay-adaptive",
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("correction", CORRECTIONS)
def test_asgd_follows_the_reference(correction: str, optimizer: str) -> None:
    own = plan(server("asgd", CORRECTIONS[correction]), optimizer=OPTIMIZERS[optimizer])
    assert_follows_the_reference(own)


@pytest.mark.parametrize(
    "gathering",
    [
        "sync",
        {"name": "k-sync", "k": 2},
        {"name": "k-batch-sync", "k": 2},
        {"name": "k-async", "k": 2},
        {"name": "k-batch-async", "k": 2},
        {"name": "n-softsync", "n": 2},
        {"name": "ringmaster", "delay_threshold": 2},
        {"name": "rennala", "k": 4},
        {"name": "malenia", "target": 1.5},
        "ringleader",
        "ia2sgd",
    ],
    ids=lambda value: value if isinstance(value, str) else value["name"],
)
def test_gatherings_follow_the_reference(gathering: Any) -> None:
    links = [{"delay": {"name": "exponential", "mean": 0.5}, "unit": "seconds"}]
    own = plan(server(gathering, CORRECTIONS["dc-asgd-a"]), optimizer=OPTIMIZERS["momentum"], links=links)
    assert_follows_the_reference(own)


def assert_follows_the_reference(own: Plan) -> None:
    driven, reference = Driven(own), Reference(own)
    for row in driven.rows():
        reference.execute(row)
        if row.agent >= 3:
            np.testing.assert_allclose(driven.weights.numpy(), reference.weights[-1], rtol=0, atol=2e-5)
    assert driven.servers[0].is_done
    assert np.abs(reference.weights[-1] - reference.weights[0]).max() > 0.05


def test_weight_decay_is_never_inside_the_squared_gradient() -> None:
    """Section 4, point 8: a reference that decays before it corrects ends elsewhere."""
    own = plan(server("asgd", CORRECTIONS["dc-asgd-c"]), optimizer=OPTIMIZERS["momentum"])
    driven, right, wrong = Driven(own), Reference(own), Reference(own, decay_inside=True)
    for row in driven.rows():
        right.execute(row)
        wrong.execute(row)
    errors = [float(np.abs(driven.weights.numpy() - one.weights[-1]).max()) for one in (right, wrong)]
    assert errors[0] < 2e-5
    assert errors[1] > 20 * errors[0]


def test_the_backup_is_the_weights_that_each_worker_computed_at() -> None:
    """Section 4, point 2: the correction is not zero once another worker has updated, and is lambda g^2 (w - w_bak)."""
    own = plan(server("asgd", {"name": "dc-asgd-c", "lambda_0": 20.0}), step_size=0.25)
    driven = Driven(own)
    holder = driven.servers[0]
    start = holder.weights.clone()
    for worker in range(3):
        driven.work(Row(worker, 0, 0.0, 1.0, 1.0, (Read(3, 0, 0, 0),)))
    gradients = [driven.messages[worker][1][0] for worker in range(3)]
    weights = [start]
    for worker, g in enumerate(gradients):
        driven.update(Row(3, worker, 1.0, 1.0, 1.0, (Read(worker, 1, worker, worker),)))
        corrected = g + 20.0 * g * g * (weights[-1] - start)
        torch.testing.assert_close(holder.weights, weights[-1] - 0.25 * corrected, rtol=0, atol=1e-7)
        if worker > 0:
            assert float((corrected - g).abs().max()) > 1e-3
        weights.append(holder.weights.clone())
    # What was kept is what there was: nothing has changed it in place.
    assert all(torch.equal(holder.history[version], kept) for version, kept in enumerate(weights))
    # Each worker's own: worker 2 computes at version 3, the others at older ones.
    driven.work(Row(2, 1, 1.0, 2.0, 2.0, (Read(3, 3, 0, 0),)))
    g = driven.messages[2][2][0]
    driven.update(Row(3, 3, 2.0, 2.0, 2.0, (Read(2, 2, 0, 0),)))
    assert torch.equal(holder.weights, weights[3] - 0.25 * g)


@pytest.mark.parametrize("correction", [name for name in CORRECTIONS if name != "gap-bounded"])
@pytest.mark.parametrize(
    "gathering", ["asgd", {"name": "k-batch-async", "k": 2}, "ringleader"], ids=["asgd", "k-batch-async", "ringleader"]
)
def test_several_servers_give_the_bits_of_one(gathering: Any, correction: str) -> None:
    ends = []
    for shards in (1, 2, 5):
        own = plan(server(gathering, CORRECTIONS[correction], shards=shards), optimizer=OPTIMIZERS["momentum"])
        driven = Driven(own)
        for _ in driven.rows():
            pass
        assert len(driven.servers) == shards
        sizes = [one.weights.numel() for one in driven.servers]
        assert max(sizes) - min(sizes) <= 1
        ends.append(driven.weights)
    assert torch.equal(ends[0], ends[1])
    assert torch.equal(ends[0], ends[2])


def buffers_after_a_pass(own: Plan, worker: int, weights: Tensor, buffers: Tensor) -> Tensor:
    """Return the buffers after plain PyTorch's forward pass over a worker's first mini-batch."""
    config = own.config
    inputs, _ = config.task.batches(own.data, own.specs[worker].shard, config.batch_size, config.seed, worker).next()
    model = config.task.build_model(own.data, config.seed)
    floating = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    nn.utils.vector_to_parameters(weights.clone(), model.parameters())
    for buffer, part in zip(floating, buffers.split([buffer.numel() for buffer in floating]), strict=True):
        buffer.copy_(part.view_as(buffer))
    model.train()
    model(inputs)
    return torch.cat([buffer.reshape(-1) for buffer in floating])


def test_buffers_become_the_mean_of_the_workers_after_their_forward_passes() -> None:
    own = plan(server({"name": "k-async", "k": 2}), task=IMAGES)
    driven = Driven(own)
    holder = driven.servers[0]
    start = holder.weights, holder.buffers.clone()
    expected = [buffers_after_a_pass(own, worker, *start) for worker in range(2)]
    for worker in range(2):
        driven.work(Row(worker, 0, 0.0, 1.0, 1.0, (Read(3, 0, 0, 0),)))
    assert torch.equal(holder.buffers, start[1])
    driven.update(Row(3, 0, 1.0, 1.0, 1.0, (Read(0, 1, 0, 0), Read(1, 1, 0, 0))))
    torch.testing.assert_close(holder.buffers, (expected[0] + expected[1]) / 2)
    assert float((holder.buffers - start[1]).abs().max()) > 1e-3
    # The next worker goes on from these.
    driven.work(Row(2, 0, 1.0, 2.0, 2.0, (Read(3, 1, 0, 0),)))
    torch.testing.assert_close(driven.workers[2].buffers, buffers_after_a_pass(own, 2, holder.weights, holder.buffers))


def test_the_first_of_several_servers_keeps_all_buffers() -> None:
    own = plan(server("asgd", shards=3), task=IMAGES)
    driven = Driven(own)
    assert [one.buffers.numel() > 0 for one in driven.servers] == [True, False, False]
    alone = Driven(plan(server("asgd"), task=IMAGES))
    for _ in driven.rows():
        pass
    for _ in alone.rows():
        pass
    assert torch.equal(driven.weights, alone.weights)
    assert torch.equal(driven.servers[0].buffers, alone.servers[0].buffers)


# Elastic averaging.


@pytest.mark.parametrize("optimizer", ["plain", "momentum"])
@pytest.mark.parametrize("gathering", ["sync", "asgd", {"name": "k-async", "k": 2}], ids=["sync", "asgd", "k-async"])
def test_elastic_averaging_follows_the_reference(gathering: Any, optimizer: str) -> None:
    algorithm = {"name": "elastic-averaging", "alpha": 0.3, "period": 3, "gathering": gathering}
    own = plan(algorithm, optimizer=OPTIMIZERS[optimizer], num_steps=12)
    driven, reference = Driven(own), ElasticReference(own, 0.3, 3)
    for row in driven.rows():
        reference.execute(row)
        if row.agent >= 3:
            np.testing.assert_allclose(driven.weights.numpy(), reference.weights[-1], rtol=0, atol=2e-5)
        else:
            own_weights = driven.workers[row.agent].weights.numpy()
            np.testing.assert_allclose(own_weights, reference.own[row.agent], rtol=0, atol=2e-5)
    assert driven.servers[0].is_done
    assert np.abs(reference.weights[-1] - reference.weights[0]).max() > 0.03


@pytest.mark.parametrize("gathering", ["sync", "asgd"])
def test_the_springs_move_both_ends_alike(gathering: str) -> None:
    """Without steps of its own, a worker is moved back by just what its update has moved the center."""
    algorithm = {"name": "elastic-averaging", "alpha": 0.3, "period": 1, "gathering": gathering}
    driven = Driven(plan(algorithm, step_size=0, num_steps=6))
    for place, worker in enumerate(driven.workers):
        worker.weights = worker.weights + torch.linspace(-1, place, worker.weights.numel())
    pulls: dict[tuple[int, int], Tensor] = {}
    center, before = driven.weights, [worker.weights for worker in driven.workers]
    checked = 0
    for row in driven.rows():
        if row.agent < 3:
            moved = driven.workers[row.agent].weights - before[row.agent]
            if row.step > 0:
                torch.testing.assert_close(moved, -pulls[row.agent, row.step], rtol=0, atol=1e-6)
                assert float(moved.abs().max()) > 1e-4
                checked += 1
            before[row.agent] = driven.workers[row.agent].weights
        else:
            for read in row.reads:
                pulls[read[:2]] = 0.3 * (driven.messages[read.neighbor][read.version][0] - center)
            together = torch.stack([pulls[read[:2]] for read in row.reads]).sum(0)
            torch.testing.assert_close(driven.weights - center, together, rtol=0, atol=1e-6)
            center = driven.weights
    assert checked >= 10


# Micro-batches, and work that is cancelled.


def only_worker(micro_batches: int, **settings: Any) -> Worker:
    own = plan(server({"name": "k-sync", "k": 1}, micro_batches=micro_batches), batch_size=10, **settings)
    spec = own.specs[1]
    assert isinstance(spec, WorkerSpec)
    return Worker(spec, own.data)


def start_of(worker: Worker) -> list[Received]:
    return [Received(Read(3, 0, 0, 0), worker.weights, worker.buffers)]


@pytest.mark.parametrize("micro_batches", [2, 3, 10, 16])
def test_micro_batches_give_the_whole_batch_s_gradient(micro_batches: int) -> None:
    whole, parts = only_worker(1), only_worker(micro_batches)
    losses = [worker.step(start_of(worker)) for worker in (whole, parts)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    torch.testing.assert_close(parts.computed, whole.computed, rtol=1e-4, atol=1e-6)
    assert float(whole.computed.abs().max()) > 0.01


@pytest.mark.parametrize("micro_batches", [2, 4, 10])
def test_micro_batches_weigh_as_much_as_counts_in_them(micro_batches: int) -> None:
    _, labels = only_worker(1).batches.next()
    task = {"model": {"hidden": [6]}, "loss": {"name": "cross-entropy", "ignore_index": int(labels[0])}}
    whole, parts = only_worker(1, task=task), only_worker(micro_batches, task=task)
    losses = [worker.step(start_of(worker)) for worker in (whole, parts)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    torch.testing.assert_close(parts.computed, whole.computed, rtol=1e-4, atol=1e-6)


def test_batches_stay_whole_where_nothing_is_cancelled() -> None:
    own = plan(server("asgd", micro_batches=4))
    spec = own.specs[0]
    assert isinstance(spec, WorkerSpec)
    worker = Worker(spec, own.data)
    assert count_passes(worker, lambda: False) == [8]


def count_passes(worker: Worker, cancelled: Any) -> list[int]:
    """Take one step, and return how many samples each forward pass had."""
    sizes: list[int] = []
    handle = worker.replica.module.register_forward_hook(lambda module, inputs, output: sizes.append(len(inputs[0])))
    worker.step(start_of(worker), cancelled)
    handle.remove()
    return sizes


@pytest.mark.parametrize("stops_before", [0, 1, 3, 4])
def test_cancelled_work_stops_before_the_next_micro_batch_and_has_drawn_its_mini_batch(stops_before: int) -> None:
    worker, skipping, fresh = (only_worker(4) for _ in range(3))
    asked: list[int] = []

    def cancelled() -> bool:
        asked.append(1)
        return len(asked) > stops_before

    sizes = count_passes(worker, cancelled)
    assert sizes == [3, 3, 2, 2][:stops_before]
    assert worker.version == 1
    assert len(asked) == min(stops_before + 1, 4)
    skipping.skip()
    assert skipping.version == 1
    start = start_of(fresh)
    first = fresh.step(start)
    # Whatever had been done of it, the next step is the next mini-batch's.
    losses = [one.step(start) for one in (worker, skipping, fresh)]
    assert losses[0] == losses[1] == losses[2] != first
    assert torch.equal(worker.computed, skipping.computed)
    assert torch.equal(worker.computed, fresh.computed)


def test_a_cancelled_step_leaves_no_trace_in_buffers() -> None:
    worker, skipping = (only_worker(4, task=IMAGES) for _ in range(2))
    start = start_of(skipping)
    answers = iter([False, False, True])
    assert worker.step(start, lambda: next(answers)) is None
    skipping.skip()
    worker.step(start)
    skipping.step(start)
    assert torch.equal(worker.buffers, skipping.buffers)
    assert torch.equal(worker.computed, skipping.computed)


# What is kept, and where it ends.


@pytest.mark.parametrize("correction", ["none", "dc-asgd-c"])
@pytest.mark.parametrize("gathering", ["asgd", {"name": "k-sync", "k": 2}], ids=["asgd", "k-sync"])
def test_memory_stays_bounded(gathering: Any, correction: str) -> None:
    # One worker is so slow that it never ends what it begins, if it is cancelled.
    compute = {"law": {"name": "uniform", "low": 1, "high": 1.2}, "agents": {0: 1.6}}
    own = plan(server(gathering, CORRECTIONS[correction]), num_steps=60, compute=compute)
    agents = [spec.build(own.data) for spec in own.specs]
    (the_server,) = (agent for agent in agents if isinstance(agent, Server))
    execution = Execution(own.schedule, agents)
    kept = []
    for _ in execution.reports():
        *messages, versions = map(len, execution.versions.by_agent.values())
        kept.append((len(the_server.history), versions, max(messages)))
    late = kept[len(kept) // 2 :]
    staleness = max(read.staleness for row in own.schedule if row is not None for read in row.reads)
    assert max(history for history, _, _ in late) <= 2 * staleness + 3
    assert max(versions for _, versions, _ in late) <= 2 * staleness + 3
    assert max(messages for _, _, messages in late) <= 2 * staleness + 3


def test_a_loss_that_is_not_finite_names_the_worker() -> None:
    own = plan(server(), step_size=1e30)
    with pytest.raises(NonFiniteLossError, match=r"^agent [012] has loss (nan|inf) at step \d+$"):
        list(own.engine().run(own.specs, own.data))


def test_progress_counts_mini_batches_for_each_worker_and_evaluations_go_by_it() -> None:
    own = plan(server({"name": "k-batch-async", "k": 2}), evaluate_every=3, num_steps=8)
    reports = [one for one in own.engine().run(own.specs, own.data) if isinstance(one, StepReport)]
    updates = [one for one in reports if one.row.agent == 3]
    assert [one.progress for one in updates] == [2 * n // 3 for n in range(1, len(updates) + 1)]
    assert [one.progress for one in updates if one.snapshot is not None] == [3, 6, 8]
    assert {one.measures["gradients"] for one in updates} == {2.0}
    assert all(one.snapshot is None for one in reports if one.row.agent < 3)
