"""The drift against the naive double loop of the formula."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_pcasgd.agents.drift import DriftBefore, MeanDrift
from ray_pcasgd.agents.peer import Peer
from ray_pcasgd.base.randomness import generator
from ray_pcasgd.runs.plan.plan import make_plan
from ray_pcasgd.runs.settings.loading import load_config


def naive_drift(path: list[np.ndarray], age: int) -> np.ndarray:
    """1/age * sum_{r=0}^{age-1} (x(t-age+r) - x(t-age)), t the newest version."""
    t = len(path) - 1
    total = np.zeros_like(path[0])
    for r in range(age):
        total += path[t - age + r] - path[t - age]
    return total / age


@settings(max_examples=60)
@given(age_max=st.integers(1, 9), num_steps=st.integers(1, 40), seed=st.integers(0, 99))
def test_drift_equals_the_naive_sum_for_every_age(age_max: int, num_steps: int, seed: int) -> None:
    random = generator(seed, "path")
    path = [random.normal(size=5).astype(np.float32).astype(np.float64)]
    displacements = MeanDrift(torch.tensor(path[0], dtype=torch.float32), age_max)
    for _ in range(num_steps):
        path.append(random.normal(size=5).astype(np.float32).astype(np.float64))
        displacements.record(torch.tensor(path[-1], dtype=torch.float32))
    for age in range(1, min(age_max, num_steps) + 1):
        np.testing.assert_allclose(displacements.drift(age).numpy(), naive_drift(path, age), atol=1e-5)


def test_drift_of_age_0_is_zero() -> None:
    assert torch.equal(MeanDrift(torch.ones(3), 4).drift(0), torch.zeros(3))


def test_drift_keeps_its_precision_after_a_hundred_thousand_steps() -> None:
    displacements = MeanDrift(torch.ones(2), 8)
    for step in range(100_000):
        displacements.record(torch.full((2,), 1.0 + 1e-3 * ((step + 1) % 2)))
    # Versions 99,992 ... 99,999 alternate between 1 and 1.001, beginning with 1.
    torch.testing.assert_close(displacements.drift(8), torch.full((2,), 0.5e-3), rtol=1e-3, atol=0)


def test_drift_refuses_an_age_beyond_its_history() -> None:
    with pytest.raises(AssertionError):
        MeanDrift(torch.ones(2), 8).drift(1)


@given(seed=st.integers(0, 99), age_max=st.integers(1, 6), steps=st.integers(0, 20))
def test_the_drift_before_is_the_displacement_over_as_many_steps_before(seed: int, age_max: int, steps: int) -> None:
    random = generator(seed, "path")
    path = [torch.from_numpy(random.standard_normal(3, dtype=np.float32)) for _ in range(steps + 1)]
    memory, again = DriftBefore(path[0], age_max), DriftBefore(torch.zeros(3), age_max)
    for weights in path[1:]:
        memory.record(weights)
    again.restore(memory.state())
    for age in range(min(age_max, steps) + 1):
        expected = path[steps - age] - path[max(0, steps - 2 * age)]
        assert torch.equal(memory.drift(age), expected)
        assert torch.equal(again.drift(age), expected)


def test_messages_of_own_drift_hold_weights_alone_half_the_bytes() -> None:
    def peer_of(prediction: str) -> Peer:
        algorithm = {"name": "pc-asgd", "prediction": prediction}
        plan = make_plan(load_config({"num_agents": 2, "algorithm": algorithm, "engine": "local"}))
        peer = plan.specs[0].build(plan.data)
        assert isinstance(peer, Peer)
        return peer

    theirs, own = peer_of("direction"), peer_of("own-drift")
    assert 2 * own.message_bytes == theirs.message_bytes
    assert (own.publishes_directions, theirs.publishes_directions) == (False, True)
