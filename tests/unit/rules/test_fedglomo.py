"""FedGLOMO and FedLOMO: a slow reference in float64, what they equal without noise, and what public code gets wrong."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ray_pcasgd.agents.learner import NonFiniteLossError
from ray_pcasgd.agents.local_momentum_worker import Descent, LocalMomentumWorker
from ray_pcasgd.agents.server import Server
from ray_pcasgd.base.state import difference
from ray_pcasgd.engines.local.execution import Execution
from ray_pcasgd.records import Read, Row
from ray_pcasgd.rules.contract import check_rule
from ray_pcasgd.rules.correction import Late
from ray_pcasgd.rules.fedglomo import FedGLOMO
from ray_pcasgd.rules.server import Delivered
from ray_pcasgd.runs.plan.plan import Plan, make_plan
from ray_pcasgd.runs.settings.loading import SettingsError, load_config
from ray_pcasgd.runs.trainer import Trainer
from tests.comparing import assert_same_to_the_bit
from tests.references.fedglomo import FedGLOMOReference
from tests.references.peers import SIZE, regression
from tests.unit.recorded_runs import untold

Array = npt.NDArray[np.float64]
WORKERS = 3
SMALL: dict[str, Any] = {
    "num_agents": WORKERS,
    "num_steps": 24,
    "evaluate_every": 12,
    "batch_size": 7,
    "step_size": {"name": "linear", "start": 0.05, "end": 0.02, "steps": 24},
    "local_steps": 3,
    "links": [],
    "clusters": 1,
    "compute": {"law": {"name": "exponential", "mean": 1.0}},
    "algorithm": "fedglomo",
    "engine": {"name": "local", "batched": "never"},
}
FEDAVG = {"name": "diloco", "outer": {"name": "sgd", "step_size": 1.0, "momentum": 0}}


def fedglomo(**settings: Any) -> dict[str, Any]:
    return {"name": "fedglomo"} | settings


def plan(**settings: Any) -> Plan:
    return make_plan(load_config(SMALL | {"task": regression()} | settings))


def rows_of(own: Plan) -> list[Row]:
    return [row for row in own.schedule if row is not None]


def ends(**settings: Any) -> torch.Tensor:
    """Return the servers' weights at the end of a run."""
    own = plan(**settings)
    execution = Execution(own.schedule, [spec.build(own.data) for spec in own.specs])
    list(execution.reports())
    return torch.cat([agent.weights for agent in list(execution.agents)[WORKERS:]])


def eta_at(step: int) -> float:
    """Return the step size of ``SMALL`` at a worker's own step."""
    return 0.05 + (0.02 - 0.05) * min(step, 24) / 24


CHURN = [{"agent": 1, "leaves": "26s", "returns": "60s"}, {"agent": 2, "leaves": "120s"}]
RUNS: dict[str, Any] = {
    "plain": {},
    "fedlomo": {"algorithm": fedglomo(beta=1)},
    "more momentum, weight decay": {"algorithm": fedglomo(beta=0.05), "optimizer": {"weight_decay": 0.1}},
    "one mini-batch first": {"algorithm": fedglomo(first="batch")},
    "fedlomo, one mini-batch first": {"algorithm": fedglomo(beta=1, first="batch")},
    "unequal rounds": {"local_steps": [4, 1, 2]},
    "late by seconds": {"links": [{"delay": {"name": "exponential", "mean": 1.5}, "unit": "seconds"}]},
    "late by steps": {"links": [{"delay": 4}], "num_steps": 36},
    "churn": {"membership": CHURN, "num_steps": 36},
    "replayed": {},
}


@pytest.mark.parametrize("name", RUNS)
def test_runs_equal_the_slow_reference(name: str, tmp_path: Path) -> None:
    changes = dict(RUNS[name])
    if name == "replayed":
        # Of asynchronous workers, no update takes whom the one before has taken: no difference counts.
        other = FEDAVG | {"gathering": {"name": "k-async", "k": 2}}
        tree = SMALL | {"task": regression(), "algorithm": other, "storage_path": str(tmp_path)}
        changes["schedule"] = untold(Path(Trainer(tree, name="other").fit().path) / "schedule.parquet")
    own = plan(**changes)
    agents = [spec.build(own.data) for spec in own.specs]
    execution, reference = Execution(own.schedule, agents), FedGLOMOReference(own, eta_at)
    for row in rows_of(own):
        list(execution.execute([row]))
        reference.run(row)
        if row.kind == "rejoined":
            assert not agents[row.agent].state()["has_before"]
        if row.agent >= WORKERS:
            np.testing.assert_allclose(agents[-1].weights.double().numpy(), reference.x[-1], atol=1e-5)
    assert len(reference.x) > 8
    assert np.abs(reference.x[-1] - reference.x[0]).max() > 0.3
    assert (reference.dropped > WORKERS) == (name in ("churn", "replayed"))
    late = {read.staleness for row in rows_of(own) if row.agent >= WORKERS for read in row.reads}
    assert (max(late) > 0) == (name in ("late by steps", "replayed"))


@pytest.mark.parametrize("beta", [0.2, 1.0])
def test_several_servers_give_the_bits_of_one(beta: float) -> None:
    one, two = (ends(algorithm=fedglomo(beta=beta, shards=shards)) for shards in (1, 2))
    assert torch.equal(one, two)


def test_fedlomo_with_rounds_of_one_step_is_synchronous_sgd() -> None:
    rounds = ends(algorithm=fedglomo(beta=1, first="batch"), local_steps=1)
    synchronous = ends(algorithm={"name": "server", "gathering": "sync"}, local_steps=1)
    torch.testing.assert_close(rounds, synchronous, rtol=0, atol=1e-6)
    assert float((rounds - ends(local_steps=1)).abs().max()) > 0.01


@pytest.mark.parametrize("settings", [{"beta": 0.3}, {"beta": 1.0}, {"beta": 0.3, "first": "batch"}], ids=str)
def test_without_noise_u_is_the_exact_delta_so_that_it_is_federated_averaging(settings: dict[str, Any]) -> None:
    """A mini-batch is a whole shard, and all workers deliver."""
    exact = {"batch_size": 40, "step_size": 0.05}
    torch.testing.assert_close(
        ends(algorithm=fedglomo(**settings), **exact), ends(algorithm=FEDAVG, **exact), rtol=0, atol=2e-6
    )
    own = plan(algorithm=fedglomo(**settings), **exact)
    agents = [spec.build(own.data) for spec in own.specs]
    execution = Execution(own.schedule, agents)
    before = agents[-1].weights
    for row in rows_of(own):
        list(execution.execute([row]))
        if row.agent >= WORKERS:
            deltas = [agent.sent[: SIZE + 1] for agent in agents[:WORKERS] if isinstance(agent, LocalMomentumWorker)]
            u = before - agents[-1].weights
            torch.testing.assert_close(u, torch.stack(deltas).mean(0), rtol=0, atol=2e-6)
            before = agents[-1].weights
    assert row.step == 7


# What public code gets wrong.


@given(st.lists(st.floats(-2, 2), min_size=2, max_size=6), st.floats(0.01, 0.5))
def test_local_momentum_keeps_the_first_batch_s_noise_and_takes_no_other(noises: list[float], eta: float) -> None:
    """Of a quadratic whose batches differ by a constant; the gradient of the *batch* before would telescope to SGD."""
    own, plain = Descent(torch.zeros(1, dtype=torch.float64)), 0.0
    for noise in noises:
        own.advance([point - 1 + noise for point in own.points], torch.tensor(eta, dtype=torch.float64))
        plain -= eta * (plain - 1 + noise)
        assert float(own.estimate) == pytest.approx(float(own.points[0]) - 1 + noises[0], abs=1e-12)
    expected = (1 - noises[0]) * (1 - (1 - eta) ** len(noises))
    assert float(own.weights) == pytest.approx(expected, abs=1e-12)
    if all(abs(noise - noises[0]) < 1e-9 for noise in noises):
        assert plain == pytest.approx(expected, abs=1e-6)


def test_the_momentum_of_the_batch_before_is_not_used() -> None:
    """With it FedLOMO would be local SGD with averaging, on the very same mini-batches."""
    settings = {"step_size": 0.05, "num_steps": 12, "batch_size": 2}
    lomo = fedglomo(beta=1, first="batch")
    apart = ends(algorithm=lomo, **settings) - ends(algorithm=FEDAVG, **settings)
    assert float(apart.abs().max()) > 0.02
    # Without a step there is no gradient of a step before: the two are the same.
    settings |= {"local_steps": 1}
    torch.testing.assert_close(ends(algorithm=lomo, **settings), ends(algorithm=FEDAVG, **settings), rtol=0, atol=1e-6)


def delivered(worker: int, *vectors: torch.Tensor) -> Delivered:
    nothing = torch.zeros(())
    return Delivered(worker, Late(torch.cat(vectors), torch.zeros(0), nothing, nothing, nothing))


@given(st.integers(0, 10_000), st.floats(0.01, 0.99))
def test_the_server_s_momentum_is_the_formula(seed: int, beta: float) -> None:
    """Also where beta is not 1, at which one public server stays whatever it is told."""
    draw, rule = np.random.default_rng(seed), FedGLOMO(beta=beta)
    x: Array = draw.normal(size=5)
    state, center = rule.init(torch.tensor(x), 2), torch.tensor(x)
    u: Array | None = None
    for _ in range(3):
        deltas, changes = draw.normal(size=(2, 5)), draw.normal(size=(2, 5))
        messages = [delivered(k, torch.tensor(deltas[k]), torch.tensor(changes[k])) for k in range(2)]
        state, center = rule.gather(state, center, messages)
        mean = deltas.mean(0)
        u = mean if u is None else beta * mean + (1 - beta) * u + (1 - beta) * changes.mean(0)
        x = x - u
        np.testing.assert_allclose(center.numpy(), x, atol=1e-12)


def test_the_second_descent_has_gradients_of_its_own_points() -> None:
    """One public client takes them at the first descent's: then delta' is delta, but for where it began."""
    own = plan(num_steps=6, step_size=0.05)
    agents = [spec.build(own.data) for spec in own.specs]
    execution, seen = Execution(own.schedule, agents), 0
    for row in rows_of(own):
        list(execution.execute([row]))
        agent = agents[row.agent]
        if isinstance(agent, LocalMomentumWorker) and row.step == 1:
            delta, change = agent.sent.chunk(2)
            assert float(change.abs().max()) > 0.05 * float(delta.abs().max()) > 0
            seen += 1
    assert seen == WORKERS


class Noisy(nn.Module):
    """Dropout, statistics and a counter: passes must be paired, and those at other points leave no trace."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.BatchNorm1d(SIZE), nn.Linear(SIZE, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.passes += 1
        return self.layers(inputs)  # type: ignore[no-any-return]


NOISY = {"model": {"name": "custom", "factory": Noisy}}


def last_of(**settings: Any) -> list[Any]:
    own = plan(task=regression() | NOISY, **settings)
    execution = Execution(own.schedule, [spec.build(own.data) for spec in own.specs])
    list(execution.reports())
    return list(execution.agents)


def test_buffers_and_counters_are_those_of_one_pass_a_mini_batch() -> None:
    """At a step size of 0 they are federated averaging's."""
    own, other = last_of(step_size=0.0, algorithm=fedglomo(first="batch")), last_of(step_size=0.0, algorithm=FEDAVG)
    assert torch.equal(own[-1].buffers, other[-1].buffers)
    for mine, its in zip(own[:WORKERS], other[:WORKERS], strict=True):
        assert int(mine.replica.local()["passes"]) == int(its.replica.local()["passes"]) == mine.progress


def test_both_descents_have_one_draw_of_dropout_and_one_of_mini_batches() -> None:
    """Where a late link makes a worker begin at the same version again, what they differ by is nothing at all."""
    own = plan(task=regression() | NOISY, links=[{"delay": 9}], step_size=0.02, num_steps=36)
    agents = [spec.build(own.data) for spec in own.specs]
    execution, read, again, moved = Execution(own.schedule, agents), {}, 0, 0
    for row in rows_of(own):
        list(execution.execute([row]))
        if row.agent >= WORKERS:
            continue
        version = row.reads[0].version
        change = agents[row.agent].sent.chunk(2)[1]  # type: ignore[attr-defined]
        assert change.any() == (read.get(row.agent, version) != version)
        again, moved = again + (read.get(row.agent) == version), moved + bool(change.any())
        read[row.agent] = version
    assert again
    assert moved


@pytest.mark.parametrize("first", ["batch", "shard"])
def test_a_run_replays_and_goes_on_from_its_state(first: str, tmp_path: Path) -> None:
    wire = {"weights": "bf16", "directions": {"name": "top-k", "share": 0.3}}
    own_settings = {"task": regression() | NOISY, "algorithm": fedglomo(first=first), "step_size": 0.01, "wire": wire}
    tree = SMALL | {"storage_path": str(tmp_path)} | own_settings
    result = Trainer(tree, name="own").fit()
    assert result.error is None
    schedule = str(Path(result.path) / "schedule.parquet")
    assert_same_to_the_bit(Trainer(tree | {"schedule": schedule}, name="again").fit(), result)
    own = make_plan(load_config(tree))
    rows = rows_of(own)
    first_agents, second = ([spec.build(own.data) for spec in own.specs] for _ in range(2))
    one, other = Execution(rows, first_agents), Execution(rows, second)
    for row in rows[:14]:
        list(one.execute([row]))
    assert difference(second[0].state(), first_agents[0].state(), "a worker") is None
    other.restore(one.state() | {"drawn": 0})
    for row in rows[14:]:
        list(one.execute([row]))
        list(other.execute([row]))
    assert torch.equal(first_agents[-1].weights, second[-1].weights)


@pytest.mark.parametrize("form", ["bf16", "int8", "int4", {"name": "top-k", "share": 0.5}], ids=str)
@pytest.mark.parametrize("shards", [1, 2])
def test_each_vector_of_a_message_travels_in_a_form_of_its_own(form: Any, shards: int) -> None:
    """So that a small difference is not rounded in the units of a large delta, nor left out for its sake."""
    own = plan(wire={"directions": form}, algorithm=fedglomo(shards=shards), num_steps=6)
    wire = own.config.wire.directions
    agents = [spec.build(own.data) for spec in own.specs]
    execution, seen = Execution(own.schedule, agents), 0
    for row in rows_of(own):
        list(execution.execute([row]))
        worker = agents[row.agent]
        if not isinstance(worker, LocalMomentumWorker) or row.step != 0:
            continue
        published = worker.message(row)
        assert published is not None
        for place, server in enumerate(agents[WORKERS:]):
            assert isinstance(server, Server)
            seen += 1
            got = server.opened(Read(row.agent, 1, 0, 0), worker.share(published, server.spec.agent)).weights
            parts = [one[worker.spec.recipe.part(place, SIZE + 1)] for one in worker.sent.chunk(2)]
            for number, (found, part) in enumerate(zip(got.chunk(2), parts, strict=True)):
                draw = worker.spec.recipe.draw_of_worker(row.agent, 1, 2 * place + number)
                assert torch.equal(found, wire.decode(wire.encode(part, draw), part.numel()))
    assert seen == WORKERS * shards


@pytest.mark.parametrize(
    ("algorithm", "gradients"),
    [(fedglomo(), 2 * (6 + 4)), (fedglomo(beta=1), 6 + 4), (fedglomo(first="batch"), 10), (FEDAVG, 3)],
    ids=str,
)
def test_planned_rounds_take_the_time_of_their_gradients(algorithm: Any, gradients: int) -> None:
    own = plan(algorithm=algorithm, compute={"law": {"name": "constant", "value": 1.0}})
    assert {row.ready - row.start for row in rows_of(own) if row.agent < WORKERS} == {float(gradients)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"algorithm": fedglomo(gathering="asgd")},
            "algorithm.gathering.name = 'asgd': allowed with algorithm.name = 'fedglomo' is sync",
        ),
        (
            {"algorithm": fedglomo(gathering={"name": "k-async", "k": 2})},
            "algorithm.gathering.name = 'k-async': allowed with algorithm.name = 'fedglomo' is sync",
        ),
        ({"algorithm": fedglomo(beta=0)}, "algorithm.beta = 0: allowed are values above 0"),
        ({"algorithm": fedglomo(beta=1.1)}, "algorithm.beta = 1.1: allowed are values up to 1"),
        ({"algorithm": fedglomo(first="epoch")}, "algorithm.first = 'epoch': allowed are 'shard' or 'batch'"),
        ({"gradient_clipping": {"norm": 1.0}}, "gradient_clipping.norm = 1: allowed with algorithm.name = 'fedglomo'"),
        ({"precision": "fp16"}, "precision = 'fp16': allowed with algorithm.name = 'fedglomo' is float32 or bf16"),
        (
            {"optimizer": {"momentum": 0.9}},
            "optimizer.momentum = 0.9: allowed with algorithm.name = 'fedglomo' is sgd without momentum",
        ),
        (
            {"optimizer": "adamw"},
            "optimizer.name = 'adamw': allowed with algorithm.name = 'fedglomo' is sgd without momentum",
        ),
        ({"wire": {"fragments": 2}}, "wire.fragments = 2: allowed with algorithm.name = 'fedglomo' is 1"),
    ],
    ids=str,
)
def test_what_has_no_meaning_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError) as raised:
        plan(**changes)
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


class Shrinking(nn.Linear):
    """Changes its own weights in each forward pass."""

    def __init__(self) -> None:
        super().__init__(SIZE, 1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.weight.data.mul_(0.9)
        return super().forward(inputs)


def test_models_that_change_their_own_weights_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"task.model: a forward pass changes the model's own weights"):
        plan(task=regression() | {"model": {"name": "custom", "factory": Shrinking}})


@pytest.mark.parametrize("factor", [158.48931924611142, 316.22776601683796, 501.18723362727246])
def test_a_run_that_leaves_all_bounds_is_not_taken_for_a_model_that_changes_its_weights(factor: float) -> None:
    """The descent from the version before is the first whose numbers are none, and none equals itself."""
    leaps = {"name": "multi-step", "start": 0.01, "factor": factor, "at_steps": [30]}
    settings = {"num_agents": 2, "num_steps": 90, "local_steps": 30, "links": [], "step_size": leaps}
    own = make_plan(load_config({"algorithm": "fedglomo", "engine": "local"} | settings))
    with pytest.raises(NonFiniteLossError):
        list(Execution(own.schedule, [spec.build(own.data) for spec in own.specs]).reports())


def test_an_attacker_that_flips_labels_does_so_in_the_gradient_of_its_whole_shard() -> None:
    def sent(**settings: Any) -> list[torch.Tensor]:
        digits: Any = {"task": {"model": {"hidden": []}}, "algorithm": fedglomo(first="shard"), "local_steps": 1}
        own = make_plan(load_config(SMALL | digits | {"step_size": 0.1, "num_steps": 1} | settings))
        agents = [spec.build(own.data) for spec in own.specs]
        execution = Execution(own.schedule, agents)
        for row in rows_of(own)[:WORKERS]:
            list(execution.execute([row]))
        return [agent.sent for agent in agents[:WORKERS] if isinstance(agent, LocalMomentumWorker)]

    honest, attacked = sent(), sent(faults={"agents": [1], "attack": "label-flip"})
    assert [torch.equal(*pair) for pair in zip(honest, attacked, strict=True)] == [True, False, True]


@pytest.mark.parametrize("beta", [0.2, 1.0])
def test_what_every_rule_with_a_server_promises(beta: float) -> None:
    check_rule(FedGLOMO(beta=beta), num_workers=4)
