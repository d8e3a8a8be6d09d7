"""YellowFin: against its formulas in float64, the momentum that it measures, and the momentum that asynchrony adds."""

import math
import pickle
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from ray_pcasgd.agents.local_optimizer import Trail
from ray_pcasgd.agents.server import Server
from ray_pcasgd.agents.yellowfin import YellowFin, single_step
from ray_pcasgd.base.randomness import generator
from ray_pcasgd.engines.local.execution import Execution
from ray_pcasgd.records import of_neighbor
from ray_pcasgd.runs.plan.plan import make_plan
from ray_pcasgd.runs.settings.loading import SettingsError, load_config
from ray_pcasgd.runs.trainer import Trainer
from ray_pcasgd.schedule.delays import ComputeTimes
from tests.references.yellowfin import YellowFinReference
from tests.unit.rules.test_gathering import gathering
from tests.unit.schedule.test_plan_servers import law, planner, rows_of

Array = npt.NDArray[np.float64]
SIZE = 30
CURVATURES = np.linspace(0.1, 2.0, SIZE)

numbers = st.floats(1e-4, 1e4)


@settings(max_examples=200)
@given(numbers, numbers, numbers)
def test_the_closed_form_is_the_minimum(distance: float, curvature: float, variance: float) -> None:
    def objective(x: float) -> float:
        return x**2 * distance**2 + (1 - x) ** 4 * variance / curvature**2

    found = single_step(*(torch.tensor(one, dtype=torch.float64) for one in (distance, curvature, variance)))
    searched = minimize_scalar(objective, bounds=(0, 1), method="bounded", options={"xatol": 1e-12})
    assert 0 <= found <= 1
    assert objective(float(found)) <= objective(searched.x) * (1 + 1e-9) + 1e-20 * distance**2


def noisy(x: Array, step: int) -> Array:
    return CURVATURES * x + 0.3 * generator(3, "noise", step).standard_normal(SIZE) * (1 + 20 * (step == 60))


@pytest.mark.parametrize(
    "own",
    [
        YellowFin(),
        YellowFin(closed_loop=False),
        YellowFin(smoothing=0.9, window=4, gain=0.2),
        YellowFin(smoothing=0.9, window=1, closed_loop=False),
    ],
    ids=repr,
)
def test_a_hundred_and_fifty_steps_are_those_of_the_slow_reference(own: YellowFin) -> None:
    x = generator(1, "start").standard_normal(SIZE)
    weights, reference = torch.from_numpy(x), YellowFinReference(own, x)
    state = own.start(weights)
    for step in range(150):
        eta = 1.0 if step < 100 else 0.5
        gradient = noisy(x, step)
        state, direction = own.direction(state, weights, torch.from_numpy(gradient), step_size=eta)
        expected = reference.step(x, gradient, eta)
        np.testing.assert_allclose(direction.numpy(), expected, rtol=1e-6, atol=1e-9)
        found = own.measures(state)
        assert found["momentum"] == pytest.approx(reference.mu, rel=1e-6, abs=1e-9)
        assert found["rate"] == pytest.approx(reference.alpha, rel=1e-6)
        if own.closed_loop and step > 1:
            assert found["target_momentum"] == pytest.approx(reference.target, rel=1e-6)
            assert found["total_momentum"] == pytest.approx(reference.total, rel=1e-6, abs=1e-7)
        x = x - eta * expected
        weights = torch.from_numpy(x)
    assert np.abs(x).max() < 10


def test_without_asynchrony_the_total_momentum_is_the_momentum() -> None:
    own = YellowFin(smoothing=0.9, gain=0.1)
    weights = torch.from_numpy(generator(1, "start").standard_normal(SIZE))
    state, momenta = own.start(weights), [0.0]
    for step in range(60):
        gradient = torch.from_numpy(noisy(weights.numpy(), step))
        state, direction = own.direction(state, weights, gradient, step_size=0.3)
        if step > 1:
            assert own.measures(state)["total_momentum"] == pytest.approx(momenta[-1], abs=1e-9)
        momenta.append(own.measures(state)["momentum"])
        weights = weights - 0.3 * direction
    assert max(momenta) > 0.01


def test_what_got_no_gradient_stays_and_a_step_without_any_shows_nothing() -> None:
    own, weights = YellowFin(), torch.ones(4)
    state, _ = own.direction(own.start(weights), weights, torch.ones(4), step_size=1.0)
    moving = torch.tensor([True, False, True, True])
    _, direction = own.direction(state, weights - 0.1, torch.tensor([1.0, 0, 1, 1]), (), moving, 1.0)
    assert direction[1] == 0
    assert (direction[[0, 2, 3]] != 0).all()
    still, direction = own.direction(state, weights - 0.1, torch.zeros(4), (), torch.zeros(4, dtype=torch.bool), 1.0)
    assert not direction.any()
    assert all(
        torch.equal(
            a,
            b,
        )
        or a.isnan().all()
        for a, b in zip(still, state, strict=True)
    )


WORKERS = 4


def asgd_rows(seed: int, num_steps: int) -> list[Any]:
    compute = ComputeTimes(law=law({"name": "exponential", "mean": 1.0}))
    rows = rows_of(planner(gathering("asgd"), WORKERS, num_steps=num_steps, compute=compute, seed=seed))
    return [row for row in rows if row.agent == WORKERS]


def test_asynchrony_adds_momentum() -> None:
    """Of P workers of exponential times, staleness is geometric (Mitliagkas et al. 2016, arXiv 1605.09774).

    In the mean ``E x_{t+1} - E x_t = (1 - 1/P) (E x_t - E x_{t-1}) - (alpha / P) E grad f(x_t)``. The first updates
    do not count: workers begin together.
    """
    alpha, updates, runs = 0.4, 24, 400
    total, staleness = np.zeros(updates + 1), []
    for seed in range(runs):
        x = [1.0]
        for row in asgd_rows(seed, updates // WORKERS + 2)[:updates]:
            (read,) = row.reads
            staleness += [read.staleness] * (len(x) > 12)
            x.append(x[-1] - alpha * x[len(x) - 1 - read.staleness])
        total += x
    mean = total / runs
    moves = np.diff(mean)
    columns = np.stack([moves[:-1], -alpha * mean[1:-1]], axis=1)
    momentum, share = np.linalg.lstsq(columns, moves[1:], rcond=None)[0]
    assert momentum == pytest.approx(1 - 1 / WORKERS, abs=0.03)
    assert share == pytest.approx(1 / WORKERS, abs=0.03)
    late = np.array(staleness)
    for k in range(4):
        assert (late == k).mean() == pytest.approx((1 - 1 / WORKERS) ** k / WORKERS, abs=0.03)


SMALL: dict[str, Any] = {
    "num_agents": 4,
    "num_steps": 20,
    "evaluate_every": 10,
    "optimizer": "yellowfin",
    "algorithm": "server",
    "links": [],
    "compute": {"law": {"name": "exponential", "mean": 1.0}},
    "task": {"model": {"hidden": [4]}},
    "engine": "local",
}


@pytest.mark.parametrize(
    "changes",
    [
        {"gathering": "asgd"},
        {"gathering": "sync"},
        {"gathering": {"name": "k-batch-async", "k": 3}},
        {"correction": "kardam"},
    ],
    ids=str,
)
def test_a_server_measures_where_its_gradients_were_computed(changes: dict[str, Any]) -> None:
    """Against the reference, which is given the way around each gradient's version from a list of all versions.

    Of updates that are rejected there is no step: they are in no list.
    """
    own = make_plan(load_config(SMALL | {"num_steps": 40, "algorithm": {"name": "server", **changes}}))
    agents = [spec.build(own.data) for spec in own.specs]
    server = agents[-1]
    assert isinstance(server, Server)
    execution = Execution(own.schedule, agents)
    assert isinstance(own.config.optimizer, YellowFin)
    x = [server.weights.double().numpy()]
    reference, before = YellowFinReference(own.config.optimizer, x[0]), []
    moves = [0]
    """How many steps there were before each version."""
    for row in own.schedule:
        assert row is not None
        if row.agent != 4:
            list(execution.execute([row]))
            continue
        received = [one.weights.double().numpy() for one in execution.receive(row)]
        trail = None
        if before:
            after = np.mean([x[s + 1] - x[s] for s in before], axis=0)
            trail = (after, np.mean([x[s] - x[max(0, s - 1)] for s in before], axis=0))
        (report,) = execution.execute([row])
        if report.measures.get(of_neighbor("screened", row.reads[0].neighbor)) == 1:
            moves.append(moves[-1])
            continue
        weight = math.exp(-0.2 * row.reads[0].staleness) if "correction" in changes else 1.0
        reference.step(x[-1], weight * np.mean(received, axis=0), 1.0, trail)
        before = [moves[-1 - read.staleness] for read in row.reads]
        x.append(server.weights.double().numpy())
        moves.append(len(x) - 1)
        assert report.measures["momentum"] == pytest.approx(reference.mu, abs=1e-3)
        assert report.measures["rate"] == pytest.approx(reference.alpha, rel=1e-3)
        assert len(server.history) < 40
    assert max(read.staleness for row in own.schedule if row for read in row.reads) > 2 or "sync" in str(changes)
    assert (moves[-1] < len(moves) - 10) == ("correction" in changes)


def test_the_measures_are_columns_of_the_metrics_and_a_run_goes_on_from_its_state(tmp_path: Any) -> None:
    whole = Trainer(SMALL, storage_path=str(tmp_path), name="whole").fit()
    table = whole.metrics_dataframe
    own = table[table["agent"] == 4]
    assert own["momentum"].notna().all()
    assert own["total_momentum"].notna().all()
    plain = Trainer(SMALL | {"optimizer": "sgd"}, storage_path=str(tmp_path), name="plain").fit()
    assert "momentum" not in plain.metrics_dataframe.columns


@pytest.mark.parametrize("correction", ["none", "kardam"])
def test_a_server_with_this_optimizer_goes_on_from_its_state_to_the_bit(correction: str) -> None:
    own = make_plan(load_config(SMALL, changes={"algorithm": {"name": "server", "correction": correction}}))
    rows = [row for row in own.schedule if row is not None]
    first, second = ([spec.build(own.data) for spec in own.specs] for _ in range(2))
    one, other = Execution(rows, first), Execution(rows, second)
    for row in rows[:60]:
        list(one.execute([row]))
    other.restore(one.state() | {"drawn": 0})
    for row in rows[60:]:
        list(one.execute([row]))
        list(other.execute([row]))
    assert torch.equal(first[-1].weights, second[-1].weights)
    assert bool(first[-1].held) == (correction == "kardam")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": {"name": "yellowfin", "gain": 0}}, "optimizer.gain = 0: allowed are values above 0"),
        ({"optimizer": {"name": "yellowfin", "window": 0}}, "optimizer.window = 0: allowed are"),
        *(
            (
                {"optimizer": "yellowfin", "algorithm": algorithm, "links": []},
                rf"optimizer.closed_loop = true: allowed with {told} is false; the total momentum is measured",
            )
            for algorithm, told in (
                ({"name": "server", "gathering": "ringleader"}, "gathering.name = 'ringleader'"),
                ({"name": "server", "gathering": "ia2sgd"}, "gathering.name = 'ia2sgd'"),
                ({"name": "server", "view": {"delay": 3}}, "view.delay = 3"),
                ("svrg", "algorithm.name = 'svrg'"),
                ({"name": "server", "gathering": "sync", "screen": "krum"}, "screen.name = 'krum'"),
            )
        ),
        ({"optimizer": {"name": "yellowfin", "momentum": 0.9}}, "optimizer.momentum = 0.9: no such setting"),
        ({"algorithm": {"name": "server", "shards": 2}}, "algorithm.shards = 2: allowed with an optimizer that looks"),
        (
            {"algorithm": "d-psgd", "engine": {"name": "local", "batched": "always"}},
            "engine.batched = 'always': .*optimizer.name = 'yellowfin': its steps are each agent's own",
        ),
    ],
)
def test_what_has_no_meaning_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        make_plan(load_config(SMALL | changes))


def test_a_trail_of_one_version_is_its_own() -> None:
    own = YellowFin()
    weights = torch.zeros(3)
    state, _ = own.direction(own.start(weights), weights, torch.ones(3), step_size=1.0)
    trail = Trail(torch.tensor([1.0, 3.0, 7.0]) - state.pull, torch.ones(3))
    state, _ = own.direction(state, weights, torch.ones(3), step_size=1.0, trail=trail)
    assert own.measures(state)["total_momentum"] == 3


@pytest.mark.parametrize(
    ("own", "has_trail"),
    [(YellowFin(weight_decay=0.1), False), (YellowFin(), True), (YellowFin(closed_loop=False, window=2), False)],
    ids=["own trail", "a server's trail", "no closed loop"],
)
def test_inputs_stay_and_the_same_ones_give_the_same_bits_also_after_pickling(own: YellowFin, has_trail: bool) -> None:
    draw = generator(7, "purity")
    weights, *vectors = (torch.from_numpy(draw.standard_normal(SIZE)).float() for _ in range(4))
    moving = torch.arange(SIZE) % 3 > 0
    more = {"trail": Trail(*vectors[:2])} if has_trail else {}
    state = own.start(weights)
    for step in range(5):
        gradient = vectors[2] * (-0.9) ** step
        inputs = [*state, weights, gradient, *vectors, moving]
        before = [tensor.clone() for tensor in inputs]
        again = pickle.loads(pickle.dumps((own, state)))
        following, direction = own.direction(state, weights, gradient, (), moving, 0.5, **more)
        assert all(torch.equal(a, b) or a.isnan().all() for a, b in zip(inputs, before, strict=True))
        same, other = again[0].direction(again[1], weights, gradient, (), moving, 0.5, **more)
        assert torch.equal(direction, other)
        assert all(torch.equal(a, b) or a.isnan().all() for a, b in zip(following, same, strict=True))
        assert direction.data_ptr() not in {tensor.data_ptr() for tensor in inputs}
        state, weights = following, weights - 0.5 * direction
