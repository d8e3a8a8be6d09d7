"""Corrections against references in float64 written from the papers' formulas, and by hand on small vectors."""

import math
import pickle
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from ray_pcasgd.base.randomness import generator
from ray_pcasgd.rules.correction import AnyCorrection, Correction, Late, State

Array = npt.NDArray[np.float64]

NUM_WORKERS = 4


def correction(value: Any) -> Correction:
    made: Correction = TypeAdapter(AnyCorrection).validate_python(value)
    return made


class Given(NamedTuple):
    """One worker's gradient, as the references see it."""

    worker: int
    gradient: Array
    gap: Array
    staleness: int
    step_size: float
    computed_at: Array


def random_deliveries(seed: int, count: int = 12) -> list[Given]:
    """Return gradients of 1 to 6 elements, some of them fresh and then without a gap."""
    draw = generator(seed, "deliveries")
    size = int(draw.integers(1, 7))
    deliveries = []
    for _ in range(count):
        tau = int(draw.choice([0, 0, 1, 2, NUM_WORKERS, NUM_WORKERS + 1, 9]))
        gap = draw.normal(size=size) * draw.choice([0.01, 1.0, 10.0]) if tau else np.zeros(size)
        eta = float(draw.choice([0.01, 0.25, 2.0]))
        worker, gradient, computed_at = (
            int(draw.integers(NUM_WORKERS)),
            draw.normal(size=size) * 3,
            draw.normal(size=size),
        )
        deliveries.append(Given(worker, gradient, gap, tau, eta, computed_at))
    return deliveries


def late(one: Given, dtype: torch.dtype = torch.float64) -> Late:
    numbers = (torch.tensor(float(number), dtype=dtype) for number in (one.staleness, one.step_size, NUM_WORKERS))
    vectors = one.gradient, one.gap, one.computed_at + one.gap, one.computed_at
    gradient, gap, present, computed_at = (torch.tensor(vector, dtype=dtype) for vector in vectors)
    return Late(gradient, gap, *numbers, present, computed_at)


def run(rule: Correction, deliveries: list[Given], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Return the corrected gradients, one after another."""
    state = rule.init(torch.zeros(len(deliveries[0].gradient), dtype=dtype), NUM_WORKERS)
    results = []
    for one in deliveries:
        state, corrected = rule.apply(state, one.worker, late(one, dtype))
        results.append(corrected)
    return results


# The references: from all deliveries to all corrected gradients, element by element.


def scaled(factor: Callable[[Given], float]) -> Callable[[list[Given]], list[list[float]]]:
    """Return the reference of a correction that only changes the step size: ``factor`` is the new one over eta."""
    return lambda deliveries: [[float(g) * factor(one) for g in one.gradient] for one in deliveries]


def gap_bounded_factor(one: Given) -> float:
    """eq. 13: eta' = min(C / |w - w_bak|^2, eta_max), C = 2."""
    square = math.fsum(float(value) ** 2 for value in one.gap)
    return min(2.0 / square, one.step_size) / one.step_size if square > 0 else 1.0


def shrink_factor(one: Given) -> float:
    """eta up to P, and above it min(eta, 1 / (4 L tau)), L = 0.5."""
    if one.staleness <= NUM_WORKERS:
        return 1.0
    return min(one.step_size, 1 / (4 * 0.5 * one.staleness)) / one.step_size


def constant_compensation(deliveries: list[Given]) -> list[list[float]]:
    return [[float(g + 0.7 * g**2 * h) for g, h in zip(one.gradient, one.gap, strict=True)] for one in deliveries]


def adaptive_compensation(shared: bool) -> Callable[[list[Given]], list[list[float]]]:
    def reference(deliveries: list[Given]) -> list[list[float]]:
        results = []
        for place, one in enumerate(deliveries):
            # The mean square written out: all gradients so far that count for it, the newest with weight 1 - m.
            counting = [e.gradient for e in deliveries[: place + 1] if shared or e.worker == one.worker]
            corrected = []
            for d, (g, h) in enumerate(zip(one.gradient, one.gap, strict=True)):
                square = sum(0.1 * 0.9**age * float(old[d]) ** 2 for age, old in enumerate(reversed(counting)))
                corrected.append(float(g + 2.0 / math.sqrt(square + 1e-7) * g**2 * h))
            results.append(corrected)
        return results

    return reference


Reference = Callable[[list[Given]], list[list[float]]]
PAIRS: dict[str, tuple[Any, Reference]] = {
    "none": ("none", scaled(lambda one: 1.0)),
    "staleness-aware": ("staleness-aware", scaled(lambda one: 1 / one.staleness if one.staleness else 1.0)),
    "dc-asgd-c": ({"name": "dc-asgd-c", "lambda_0": 0.7}, constant_compensation),
    "dc-asgd-a": ({"name": "dc-asgd-a", "decay": 0.9}, adaptive_compensation(shared=False)),
    "dc-asgd-a, shared": ({"name": "dc-asgd-a", "decay": 0.9, "shared": True}, adaptive_compensation(shared=True)),
    "gap-bounded": ({"name": "gap-bounded", "bound": 2.0}, scaled(gap_bounded_factor)),
    "delay-adaptive": ("delay-adaptive", scaled(lambda one: NUM_WORKERS / max(NUM_WORKERS, one.staleness))),
    "shrink": ({"name": "delay-adaptive", "above": "shrink", "smoothness": 0.5}, scaled(shrink_factor)),
    "drop": ({"name": "delay-adaptive", "above": "drop"}, scaled(lambda one: float(one.staleness <= NUM_WORKERS))),
    "polynomial": ("dampened", scaled(lambda one: 1 / math.sqrt(1 + one.staleness))),
    "hinge": (
        {"name": "dampened", "weighting": {"name": "hinge", "a": 0.5, "b": 2}},
        scaled(lambda one: 1 / (0.5 * (one.staleness - 2) + 1) if one.staleness > 2 else 1.0),
    ),
    "exponential": (
        {"name": "dampened", "weighting": "exponential"},
        scaled(lambda one: math.exp(-one.staleness / 5)),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
@settings(max_examples=40)
@given(seed=st.integers(0, 2**32))
def test_a_correction_follows_its_reference(name: str, seed: int) -> None:
    value, reference = PAIRS[name]
    deliveries = random_deliveries(seed)
    expected = np.array(reference(deliveries))
    in_double = torch.stack(run(correction(value), deliveries)).numpy()
    np.testing.assert_allclose(in_double, expected, rtol=1e-12, atol=1e-12)
    in_single = torch.stack(run(correction(value), deliveries, torch.float32)).numpy()
    np.testing.assert_allclose(in_single, expected, rtol=1e-4, atol=1e-4 * max(1.0, np.abs(expected).max()))


@pytest.mark.parametrize("name", [name for name in PAIRS if name != "none"])
def test_a_correction_changes_some_gradients_and_leaves_fresh_ones(name: str) -> None:
    """Lest the test above compare gradients that are all as they came."""
    deliveries = [one for seed in range(5) for one in random_deliveries(seed)]
    for one in deliveries:
        (corrected,) = run(correction(PAIRS[name][0]), [one])
        if one.staleness == 0:
            assert torch.equal(corrected, torch.tensor(one.gradient))
    changed = [not np.array_equal(run(correction(PAIRS[name][0]), [one])[0], one.gradient) for one in deliveries]
    assert any(changed)
    assert not all(changed)


WEIGHTS, BACKUP = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.5, 1.0, 0.5])
GRADIENT = torch.tensor([2.0, -3.0, 4.0])


def one_late(gap: Tensor, staleness: float = 1.0) -> Late:
    return Late(GRADIENT, gap, torch.tensor(staleness), torch.tensor(0.5), torch.tensor(2.0))


def test_delay_compensation_is_lambda_times_the_squared_gradient_times_the_gap() -> None:
    rule = correction({"name": "dc-asgd-c", "lambda_0": 0.5})
    _, corrected = rule.apply((), 0, one_late(WEIGHTS - BACKUP))
    # 0.5 * (4, 9, 16) * (0.5, -3, 0)
    assert (corrected - GRADIENT).tolist() == [1.0, -13.5, 0.0]


@pytest.mark.parametrize(
    "value",
    [
        "none",
        {"name": "dc-asgd-c", "lambda_0": 0},
        {"name": "dc-asgd-a", "lambda_0": 0},
        "staleness-aware",
        {"name": "gap-bounded", "bound": 1e9},
        "delay-adaptive",
        {"name": "delay-adaptive", "above": "drop"},
        {"name": "delay-adaptive", "above": "shrink", "smoothness": 1e-6},
    ],
)
def test_without_strength_or_at_staleness_1_the_gradient_stays_to_the_bit(value: Any) -> None:
    rule = correction(value)
    gradient = torch.from_numpy(generator(0, "gradient").normal(size=1000)).float()
    gap = torch.from_numpy(generator(0, "gap").normal(size=1000)).float()
    for tau in (0.0, 1.0):
        one = one_late(gap, tau)._replace(gradient=gradient)
        assert torch.equal(rule.apply(rule.init(gradient, 2), 1, one)[1], gradient)


def test_staleness_aware_divides_by_the_staleness() -> None:
    divided = [correction("staleness-aware").apply((), 0, one_late(WEIGHTS, tau))[1] for tau in (0, 1, 2, 4)]
    assert [(GRADIENT / one).tolist() for one in divided] == [[1.0] * 3, [1.0] * 3, [2.0] * 3, [4.0] * 3]


def test_mean_squares_belong_to_a_worker_or_to_all() -> None:
    own, shared = (correction({"name": "dc-asgd-a", "decay": 0.75, "shared": value}) for value in (False, True))
    states: list[State] = []
    for rule in (own, shared):
        state = rule.init(GRADIENT, 3)
        for worker in (2, 0):
            state, _ = rule.apply(state, worker, one_late(WEIGHTS))
        states.append(state)
    square = GRADIENT * GRADIENT
    assert [one.tolist() for one in states[0]] == [(0.25 * square).tolist(), [0.0] * 3, (0.25 * square).tolist()]
    assert [one.tolist() for one in states[1]] == [((0.75 * 0.25 + 0.25) * square).tolist()]


def test_the_gap_bounds_the_step_size() -> None:
    """eta = 0.5 and |gap|^2 = 4: the step size is min(C / 4, 0.5); the norm is over all elements."""
    gap = torch.tensor([0.0, 2.0, 0.0])
    for bound, step_size in ((1.0, 0.25), (0.5, 0.125), (2.0, 0.5), (100.0, 0.5)):
        _, corrected = correction({"name": "gap-bounded", "bound": bound}).apply((), 0, one_late(gap))
        assert (0.5 * corrected).tolist() == (step_size * GRADIENT).tolist()


def test_at_a_gap_of_0_the_step_size_is_the_run_s() -> None:
    _, corrected = correction({"name": "gap-bounded", "bound": 1e-30}).apply((), 0, one_late(torch.zeros(3)))
    assert torch.equal(corrected, GRADIENT)


@pytest.mark.parametrize(
    ("above", "factors"),
    [
        # P = 2 and eta = 0.5; for shrink L = 1, so above P the step size is 1 / (4 tau).
        ("scale", [1, 1, 1, 2 / 4, 2 / 8]),
        ("shrink", [1, 1, 1, 1 / 8, 1 / 16]),
        ("drop", [1, 1, 1, 0, 0]),
    ],
)
def test_the_three_forms_of_delay_adaptive_step_sizes(above: str, factors: list[float]) -> None:
    rule = correction({"name": "delay-adaptive", "above": above} | ({"smoothness": 1.0} if above == "shrink" else {}))
    for tau, factor in zip((0, 1, 2, 4, 8), factors, strict=True):
        assert rule.apply((), 0, one_late(WEIGHTS, tau))[1].tolist() == (factor * GRADIENT).tolist()


@pytest.mark.parametrize(
    "value",
    [
        {"name": "delay-adaptive", "above": "shrink"},
        {"name": "delay-adaptive", "above": "scale", "smoothness": 1.0},
        {"name": "dampened", "weighting": {"name": "exponential", "a": 0}},
        {"name": "dampened", "weighting": "linear"},
        {"name": "gap-bounded"},
        {"name": "gap-bounded", "bound": 0},
        {"name": "dc-asgd-c", "lambda_0": -0.1},
        {"name": "dc-asgd-a", "decay": 1},
    ],
)
def test_settings_without_meaning_are_refused(value: Any) -> None:
    with pytest.raises(ValidationError):
        correction(value)


VALUES = {name: value for name, (value, _) in PAIRS.items()} | {"kardam": {"name": "kardam", "window": 2}}
"""With the one that has its reference elsewhere."""


def test_every_correction_is_here() -> None:
    union = get_args(get_args(AnyCorrection)[0])
    assert {type(correction(value)) for value in VALUES.values()} == set(union)


@pytest.mark.parametrize("name", VALUES)
def test_corrections_change_nothing_that_they_are_given_and_pickle(name: str) -> None:
    rule = correction(VALUES[name])
    deliveries = random_deliveries(3)
    state = rule.init(torch.zeros(len(deliveries[0].gradient), dtype=torch.float64), NUM_WORKERS)
    for one in deliveries:
        given = late(one)
        copies = [tensor.clone() for tensor in (*given, *state)]
        again = pickle.loads(pickle.dumps(rule))
        after, corrected = rule.apply(state, one.worker, given)
        assert all(torch.equal(tensor, copy) for tensor, copy in zip((*given, *state), copies, strict=True))
        state_again, corrected_again = again.apply(state, one.worker, given)
        assert torch.equal(corrected, corrected_again)
        assert all(torch.equal(left, right) for left, right in zip(after, state_again, strict=True))
        state = after
    assert again == rule


@pytest.mark.parametrize("name", VALUES)
def test_elementwise_corrections_and_no_others_can_be_made_part_by_part(name: str) -> None:
    rule = correction(VALUES[name])
    deliveries = [one for one in (random_deliveries(seed) for seed in range(9)) if len(one[0].gradient) > 2]
    assert deliveries
    is_same = []
    for whole in deliveries:
        parts = [
            [
                one._replace(gradient=one.gradient[part], gap=one.gap[part], computed_at=one.computed_at[part])
                for one in whole
            ]
            for part in (slice(0, 2), slice(2, None))
        ]
        for left, right, both in zip(*(run(rule, part) for part in parts), run(rule, whole), strict=True):
            is_same.append(torch.equal(torch.cat([left, right]), both))
    assert all(is_same) == rule.elementwise
    assert rule.elementwise == (name not in ("gap-bounded", "kardam"))


@pytest.mark.parametrize("name", [name for name in PAIRS if "dc-" not in name and name != "gap-bounded"])
def test_corrections_that_need_no_gap_do_without_it(name: str) -> None:
    rule = correction(PAIRS[name][0])
    assert not rule.needs_gap
    assert rule.apply((), 0, one_late(WEIGHTS[:0], 4.0))[1].shape == GRADIENT.shape


LAWS = ["polynomial", "hinge", "exponential", {"name": "hinge", "a": 0.1, "b": 0}, {"name": "polynomial", "a": 3}]


@pytest.mark.parametrize("weighting", LAWS, ids=str)
def test_a_dampening_law_starts_at_1_and_never_rises(weighting: Any) -> None:
    """A hinge without its 1 in the divisor has weights above 1 where a is below 1, and is infinite next to b."""
    rule = correction({"name": "dampened", "weighting": weighting})
    factors = [float(rule.apply((), 0, one_late(WEIGHTS, tau))[1][0] / GRADIENT[0]) for tau in np.arange(0, 20, 0.25)]
    assert factors[0] == 1
    assert all(0 < later <= earlier for earlier, later in pairwise(factors))
    assert factors[-1] < 0.4


@pytest.mark.parametrize("weighting", LAWS, ids=str)
def test_late_gradients_dampen_none_that_come_after_them(weighting: Any) -> None:
    """One public FedAsync multiplies its step size by s anew with each message, so that it goes to 0."""
    rule = correction({"name": "dampened", "weighting": weighting})
    state = rule.init(WEIGHTS, NUM_WORKERS)
    for _ in range(50):
        state, _ = rule.apply(state, 0, one_late(WEIGHTS, 9.0))
    assert torch.equal(rule.apply(state, 0, one_late(WEIGHTS, 0.0))[1], GRADIENT)
