"""Momentum compensation: its identity, Nesterov's method without delay, a slow reference, and what it is good for."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ray_pcasgd.agents.server import Server
from ray_pcasgd.base.randomness import generator
from ray_pcasgd.engines.local.execution import Execution
from ray_pcasgd.rules.momentum_compensation import MomentumCompensation
from ray_pcasgd.rules.parameter_server import ParameterServer
from ray_pcasgd.runs.settings.loading import SettingsError
from ray_pcasgd.runs.trainer import Trainer
from tests.comparing import assert_same_to_the_bit
from tests.references.server_variants import NesterovReference, b, momentum_of
from tests.unit.rules.served import plan, served

CURVATURES = np.geomspace(0.01, 1.0, 12)


def settings(nesterov: Any = "momentum-compensation", **algorithm: Any) -> dict[str, Any]:
    return served(4, 12, nesterov=nesterov, **algorithm)


@given(st.one_of(st.none(), st.floats(0, 0.99)), st.integers(0, 30), st.integers(0, 12))
def test_what_momentum_alone_does_is_known_beforehand(momentum: float | None, j: int, delay: int) -> None:
    """``y^k = y^j + B(j+1, k) (y^j - x^j) + sum_{i=j+1..k} (1 + B(i, k)) (x^i - y^{i-1})``, of any steps meanwhile."""
    own, draw = MomentumCompensation(momentum=momentum), generator(2, "steps", j, delay)
    assert own.ahead(j, delay) == pytest.approx(b(own, j + 1, j + delay), rel=1e-12, abs=1e-12)
    x = [draw.standard_normal(3)]
    y = [x[0]]
    for k in range(1, j + delay + 1):
        x.append(y[-1] - 0.3 * draw.standard_normal(3))
        y.append(x[k] + momentum_of(own, k) * (x[k] - x[k - 1]))
    k = j + delay
    known = y[j] + b(own, j + 1, k) * (y[j] - x[j])
    steps = sum(((1 + b(own, i, k)) * (x[i] - y[i - 1]) for i in range(j + 1, k + 1)), np.zeros(3))
    np.testing.assert_allclose(known + steps, y[k], rtol=1e-9, atol=1e-9)
    before = x[max(0, j - 1)]
    sent = own.sent(torch.from_numpy(x[j]), torch.from_numpy(before), j, delay)
    np.testing.assert_allclose(sent.numpy(), known, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
def test_without_delay_it_is_nesterov_s_method_to_the_bit(weight_decay: float) -> None:
    """The penalty's gradient is at y, too."""
    own = plan(settings(gathering="sync") | {"optimizer": {"weight_decay": weight_decay}})
    agents = [spec.build(own.data) for spec in own.specs]
    holder = agents[-1]
    assert isinstance(holder, Server)
    execution = Execution(own.schedule, agents)
    x, before, k = holder.weights, holder.weights, 0
    for row in own.schedule:
        assert row is not None
        if row.agent < 4:
            y = x + momentum_of(MomentumCompensation(), k) * (x - before)
            assert torch.equal(execution.receive(row)[0].weights, y)
        else:
            first, *others = [one.weights for one in execution.receive(row)]
            for other in others:
                first = first + other
            gradient = (first / 4).add(y, alpha=weight_decay) if weight_decay else first / 4
            x, before, k = y - torch.tensor(0.1) * gradient, x, k + 1
        list(execution.execute([row]))
        assert torch.equal(holder.weights, x)
    assert k == 12


@pytest.mark.parametrize(
    "nesterov",
    [
        {"name": "momentum-compensation"},
        {"name": "momentum-compensation", "momentum": 0.6, "delay": 2},
        {"name": "momentum-compensation", "momentum": 0.6, "compensate": False},
    ],
    ids=str,
)
def test_late_runs_equal_the_slow_reference(nesterov: dict[str, Any]) -> None:
    own = plan(settings(nesterov))
    rule = own.config.algorithm
    assert isinstance(rule, ParameterServer)
    accelerated = rule.nesterov
    assert accelerated is not None
    delay = 3 if accelerated.delay is None else accelerated.delay
    assert rule.delay_of(4) == delay
    agents = [spec.build(own.data) for spec in own.specs]
    execution, reference, late = Execution(own.schedule, agents), NesterovReference(own), 0
    reference.eta = 0.1
    for row in own.schedule:
        assert row is not None
        (read,), (received,) = row.reads, execution.receive(row)
        if row.agent < 4:
            np.testing.assert_allclose(received.weights.double().numpy(), reference.at(read.version), atol=1e-5)
        else:
            late = max(late, read.staleness)
        list(execution.execute([row]))
        reference.execute(row)
        np.testing.assert_allclose(agents[-1].weights.double().numpy(), reference.weights[-1], atol=1e-5)
    assert late > 2


def left_after(own: MomentumCompensation, gamma: float, delay: int, updates: int = 1500) -> float:
    """Return the loss of a quadratic, over the first one, where every gradient is late by the delay."""
    x, sent = [torch.ones(12, dtype=torch.float64)], []
    for k in range(updates):
        before = x[max(0, k - 1)]
        sent.append(own.sent(x[k], before, k, delay))
        gradient = torch.from_numpy(CURVATURES) * sent[max(0, k - delay)]
        x.append(own.extrapolated(x[k], before, k) - gamma * gradient)
        if not x[-1].abs().max() < 1e6:
            return float("inf")
    return float((torch.from_numpy(CURVATURES) * x[-1] ** 2).sum() / CURVATURES.sum())


def largest_stable(own: MomentumCompensation, delay: int) -> float:
    gammas = np.geomspace(1e-4, 2.0, 60)
    return float(max(gamma for gamma in gammas if left_after(own, gamma, delay) < 1e-2))


def test_under_delay_it_takes_larger_steps_than_without_compensation() -> None:
    """At a fixed delay of 8 updates and a momentum of 0.9."""
    own = MomentumCompensation(momentum=0.9)
    with_it = largest_stable(own, 8)
    without = largest_stable(own.model_copy(update={"compensate": False}), 8)
    assert with_it > 1.3 * without, (with_it, without)


def test_a_run_replays_and_goes_on_from_its_state(tmp_path: Path) -> None:
    tree = settings() | {"storage_path": str(tmp_path)}
    result = Trainer(tree, name="own").fit()
    schedule = str(Path(result.path) / "schedule.parquet")
    assert_same_to_the_bit(Trainer(tree | {"schedule": schedule}, name="again").fit(), result)
    own = plan(tree)
    rows = [row for row in own.schedule if row is not None]
    first, second = ([spec.build(own.data) for spec in own.specs] for _ in range(2))
    one, other = Execution(rows, first), Execution(rows, second)
    for row in rows[:30]:
        list(one.execute([row]))
    other.restore(one.state() | {"drawn": 0})
    for row in rows[30:]:
        list(one.execute([row]))
        list(other.execute([row]))
    assert torch.equal(first[-1].weights, second[-1].weights)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (settings({"name": "momentum-compensation", "momentum": 1}), "algorithm.nesterov.momentum = 1: allowed"),
        (settings({"name": "momentum-compensation", "delay": -1}), "algorithm.nesterov.delay = -1: allowed"),
        (settings() | {"optimizer": {"momentum": 0.9}}, "optimizer.momentum = 0.9: allowed with algorithm.nesterov"),
        (settings() | {"optimizer": "adamw"}, "optimizer.name = 'adamw': allowed with algorithm.nesterov.name"),
        (settings(view={"delay": 2}), "view: allowed with nesterov.name = 'momentum-compensation' is null"),
        (settings(correction="dc-asgd-c"), "correction.name = 'dc-asgd-c': allowed with nesterov.name"),
        (settings(gathering={"name": "k-async", "k": 2}), "nesterov.delay: not given; allowed with gathering.name"),
    ],
)
def test_what_has_no_meaning_is_refused(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        plan(tree)
