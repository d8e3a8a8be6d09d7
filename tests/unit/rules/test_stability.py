"""Stability under a fixed delay, on a quadratic whose curvature is known: the whole path from plan to server.

The loss is ``w^2`` of one parameter, without noise: ``w(t+1) = w(t) - a w(t - tau)`` with ``a`` the step size times the
curvature 2. Its characteristic equation ``z^(tau+1) = z^tau - a`` has all roots inside the unit circle exactly where
``0 < a < 2 sin(pi / (4 tau + 2))``: 2 for no delay, 1 for a delay of 1, and about ``pi / (2 tau)`` for long ones.
"""

import math
from typing import Any

import numpy as np
import pytest

from ray_pcasgd.records import StepReport
from ray_pcasgd.runs.plan.plan import make_plan
from ray_pcasgd.runs.settings.loading import load_config
from tests.unit.quadratic import CURVATURE, TASK


def path(strength: float, delay: int, num_steps: int = 250, correction: Any = "none", momentum: float = 0.0) -> Any:
    """Return |w| at every step for a step size times curvature of ``strength``, in units of the start."""
    config = load_config(
        {
            "num_agents": 1,
            "num_steps": num_steps,
            "batch_size": 1,
            "clusters": 1,
            "step_size": strength / CURVATURE,
            "optimizer": {"momentum": momentum},
            "links": [{"delay": delay}],
            "algorithm": {"name": "server", "gathering": "sync", "correction": correction},
            "task": TASK,
            "evaluate_every": 1,
            "engine": "local",
        }
    )
    own = make_plan(config)
    reports = [one for one in own.engine().run(own.specs, own.data) if isinstance(one, StepReport)]
    weights = [one.snapshot.weights.item() for one in reports if one.snapshot is not None]
    assert len(weights) == num_steps
    staleness = [read.staleness for one in reports if one.row.agent == 1 for read in one.row.reads]
    assert staleness == [min(delay, step) for step in range(num_steps)]
    (spec,) = own.specs[:1]
    start = next(iter(config.task.build_model(own.data, config.seed).parameters())).item()
    assert spec.agent == 0
    return np.abs(np.array(weights) / start)


def shrinks(found: Any) -> bool:
    """Return whether the last steps are below the middle ones: the path swings, so that a single step says little."""
    quarter = len(found) // 4
    return bool(found[-quarter:].max() < found[-2 * quarter : -quarter].max())


def limit(delay: int) -> float:
    return 2 * math.sin(math.pi / (4 * delay + 2))


@pytest.mark.parametrize("delay", [0, 1, 2, 4, 8])
def test_the_largest_stable_step_size_falls_about_as_one_over_the_delay(delay: int) -> None:
    """Section 4, point 7; on either side of the limit that the equation gives, within 8 %."""
    assert shrinks(path(0.92 * limit(delay), delay))
    beyond = path(1.08 * limit(delay), delay)
    assert not shrinks(beyond)
    if delay >= 2:
        assert 0.5 < limit(delay) * delay / (math.pi / 2) < 1


@pytest.mark.parametrize("delay", [2, 4, 8])
def test_staleness_aware_step_sizes_stay_stable_at_one_setting(delay: int) -> None:
    assert not shrinks(path(0.9, delay))
    assert shrinks(path(0.9, delay, correction="staleness-aware"))


def test_momentum_that_is_stable_without_delay_diverges_under_delay() -> None:
    """Section 4, point 9: asynchrony acts like extra momentum, so momentum has to be tuned for the delay."""
    assert shrinks(path(0.2, delay=0, momentum=0.9))
    assert shrinks(path(0.2, delay=4))
    assert not shrinks(path(0.2, delay=4, momentum=0.9, num_steps=120))
