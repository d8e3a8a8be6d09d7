"""Each correction against a slow reference in float64, written from the papers' formulas."""

import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from ray_pcasgd.randomness import generator
from ray_pcasgd.rules.correction import (
    AdaptiveDelayCompensation,
    AnyCorrection,
    ConstantDelayCompensation,
    Correction,
    DelayAdaptive,
    GapBounded,
    Late,
    NoCorrection,
    StalenessAware,
)

SIZE = 7
CORRECTIONS: dict[str, Correction] = {
    "none": NoCorrection(),
    "staleness-aware": StalenessAware(),
    "dc-asgd-c": ConstantDelayCompensation(lambda_0=0.7),
    "dc-asgd-a": AdaptiveDelayCompensation(lambda_0=1.5, decay=0.8),
    "dc-asgd-a, shared": AdaptiveDelayCompensation(lambda_0=1.5, decay=0.8, shared=True),
    "gap-bounded": GapBounded(bound=0.05),
    "scale": DelayAdaptive(),
    "shrink": DelayAdaptive(above="shrink", smoothness=2.0),
    "drop": DelayAdaptive(above="drop"),
}


def late(seed: int, staleness: int = 3, eta: float = 0.1, workers: int = 4) -> Late:
    draw = generator(seed, "late")
    gradient, gap = (torch.from_numpy(draw.standard_normal(SIZE).astype(np.float32)) for _ in range(2))
    return Late(gradient, gap, torch.tensor(float(staleness)), torch.tensor(eta), torch.tensor(float(workers)))


def reference(name: str, arrivals: list[tuple[int, Late]]) -> list[list[float]]:
    """Return the corrected gradients of several arrivals, number by number."""
    squares: dict[int, list[float]] = {}
    results = []
    for worker, one in arrivals:
        g, d = one.gradient.double().tolist(), one.gap.double().tolist()
        tau, eta, workers = (float(x) for x in (one.staleness, one.step_size.double(), one.num_workers))
        if name == "none":
            result = g
        elif name == "staleness-aware":
            result = [x / tau if tau > 1 else x for x in g]
        elif name == "dc-asgd-c":
            result = [x + 0.7 * x * x * y for x, y in zip(g, d, strict=True)]
        elif name.startswith("dc-asgd-a"):
            own = squares.setdefault(0 if "shared" in name else worker, [0.0] * SIZE)
            own[:] = [0.8 * m + 0.2 * x * x for m, x in zip(own, g, strict=True)]
            result = [x + 1.5 / math.sqrt(m + 1e-7) * x * x * y for x, y, m in zip(g, d, own, strict=True)]
        elif name == "gap-bounded":
            distance = sum(y * y for y in d)
            step_size = min(0.05 / distance, eta) if distance else eta
            result = [x * step_size / eta for x in g]
        elif name == "scale":
            result = [x * workers / max(workers, tau) for x in g]
        elif name == "shrink":
            step_size = eta if tau <= workers else min(eta, 1 / (4 * 2.0 * tau))
            result = [x * step_size / eta for x in g]
        else:
            result = g if tau <= workers else [0.0] * SIZE
        results.append(result)
    return results


def corrected(correction: Correction, arrivals: list[tuple[int, Late]]) -> list[torch.Tensor]:
    state = correction.init(torch.zeros(SIZE), 4)
    results = []
    for worker, one in arrivals:
        state, result = correction.apply(state, worker, one)
        results.append(result)
    return results


@pytest.mark.parametrize("name", CORRECTIONS)
@given(
    arrivals=st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 99), st.integers(0, 20), st.sampled_from([0.01, 0.1, 2.0])),
        min_size=1,
        max_size=6,
    )
)
def test_a_correction_equals_its_slow_reference(name: str, arrivals: list[tuple[int, int, int, float]]) -> None:
    given_late = [(worker, late(seed, tau, eta)) for worker, seed, tau, eta in arrivals]
    for actual, expected in zip(corrected(CORRECTIONS[name], given_late), reference(name, given_late), strict=True):
        np.testing.assert_allclose(actual.numpy(), expected, rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("name", CORRECTIONS)
def test_nothing_that_is_given_is_changed(name: str) -> None:
    one, before = late(5), late(5)
    state = CORRECTIONS[name].init(torch.zeros(SIZE), 4)
    kept = tuple(tensor.clone() for tensor in state)
    CORRECTIONS[name].apply(state, 1, one)
    assert all(torch.equal(a, b) for a, b in zip(one, before, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(state, kept, strict=True))


@pytest.mark.parametrize("name", CORRECTIONS)
def test_settings_survive_yaml_and_pickling(name: str) -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(AnyCorrection)
    assert adapter.validate_python(CORRECTIONS[name].model_dump()) == CORRECTIONS[name]
    assert pickle.loads(pickle.dumps(CORRECTIONS[name])) == CORRECTIONS[name]


def test_delay_compensation_on_a_vector_by_hand() -> None:
    """Section 4, point 2: the correction is lambda g^2 (w - w_bak), and not zero."""
    one = late(0)._replace(gradient=torch.tensor([1.0, -2.0]), gap=torch.tensor([0.5, 0.25]))
    _, result = ConstantDelayCompensation(lambda_0=0.1).apply((), 0, one)
    assert result.tolist() == pytest.approx([1.0 + 0.1 * 1 * 0.5, -2.0 + 0.1 * 4 * 0.25])


@pytest.mark.parametrize("correction", [ConstantDelayCompensation(lambda_0=0), AdaptiveDelayCompensation(lambda_0=0)])
def test_lambda_zero_changes_no_bit(correction: Correction) -> None:
    one = late(1)
    assert torch.equal(correction.apply(correction.init(one.gradient, 4), 0, one)[1], one.gradient)


@pytest.mark.parametrize("staleness", [0, 1])
def test_staleness_aware_changes_no_bit_up_to_staleness_one(staleness: int) -> None:
    one = late(1, staleness)
    assert torch.equal(StalenessAware().apply((), 0, one)[1], one.gradient)


def test_gap_bounded_takes_the_whole_step_where_the_gap_is_zero() -> None:
    one = late(2)._replace(gap=torch.zeros(SIZE))
    assert torch.equal(GapBounded(bound=1e-6).apply((), 0, one)[1], one.gradient)


def test_mean_squares_are_kept_for_each_worker_unless_shared() -> None:
    assert len(AdaptiveDelayCompensation().init(torch.zeros(SIZE), 5)) == 5
    assert len(AdaptiveDelayCompensation(shared=True).init(torch.zeros(SIZE), 5)) == 1


@pytest.mark.parametrize("settings", [{"above": "shrink"}, {"above": "scale", "smoothness": 1.0}])
def test_smoothness_stands_where_it_is_needed_and_nowhere_else(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="smoothness"):
        DelayAdaptive(**settings)
