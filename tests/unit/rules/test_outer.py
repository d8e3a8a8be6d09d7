"""Outer optimizers and weights for late messages, against their formulas in float64 and against PyTorch's own SGD."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from ray_pcasgd.rules.contract import check_rule
from ray_pcasgd.rules.diloco import DiLoCo
from ray_pcasgd.rules.fedasync import FedAsync
from ray_pcasgd.rules.lateness import ConstantWeight, HingeWeight, LatenessWeight, PolynomialWeight
from ray_pcasgd.rules.outer import DelayedNesterov, OuterOptimizer, OuterSGD

Array = npt.NDArray[np.float64]
SIZE = 7


def deltas_of(number: int, seed: int = 0) -> list[Array]:
    draw = np.random.default_rng(seed)
    return [draw.standard_normal(SIZE) for _ in range(number)]


def path_of(outer: OuterOptimizer, deltas: list[Array], updates_a_round: int = 4) -> list[Array]:
    """Return the weights after each update, computed in float64 by the rule's own code, from 0."""
    weights = torch.zeros(SIZE, dtype=torch.float64)
    state, found = outer.init(weights, updates_a_round), []
    for delta in deltas:
        state, weights = outer.step(state, weights, torch.tensor(delta))
        found.append(weights.numpy())
    return found


@settings(max_examples=30)
@given(
    momentum=st.sampled_from([0.0, 0.3, 0.9]),
    nesterov=st.booleans(),
    step_size=st.floats(0.01, 2),
    seed=st.integers(0, 100),
)
def test_sgd_is_pytorch_s_over_pseudo_gradients(momentum: float, nesterov: bool, step_size: float, seed: int) -> None:
    deltas = deltas_of(6, seed)
    parameter = torch.nn.Parameter(torch.zeros(SIZE, dtype=torch.float64))
    own = torch.optim.SGD([parameter], lr=step_size, momentum=momentum, nesterov=nesterov and momentum > 0)
    found = path_of(OuterSGD(step_size=step_size, momentum=momentum, nesterov=nesterov), deltas)
    for delta, weights in zip(deltas, found, strict=True):
        parameter.grad = torch.tensor(delta)
        own.step()
        np.testing.assert_allclose(weights, parameter.detach().numpy(), rtol=1e-12, atol=1e-12)


def test_the_default_is_nesterov_s_whose_first_step_is_1_9_times_the_pseudo_gradient() -> None:
    """Heavy-ball momentum, which some code runs under this name, would take 1.0 times it."""
    (delta,) = deltas_of(1)
    np.testing.assert_allclose(path_of(OuterSGD(), [delta])[0], -0.7 * 1.9 * delta, rtol=1e-12)
    np.testing.assert_allclose(path_of(OuterSGD(nesterov=False), [delta])[0], -0.7 * delta, rtol=1e-12)


def slow_delayed(deltas: list[Array], every: int, spread: float, step_size: float, momentum: float) -> list[Array]:
    """Algorithm 3 of arXiv 2401.09135, as it is written."""
    theta, m, waiting, found = np.zeros(SIZE), np.zeros(SIZE), np.zeros(SIZE), []
    for t, g in enumerate(deltas, 1):
        waiting = waiting + g
        if t % every == 0:
            m = momentum * m + waiting / every
            theta = theta - step_size * ((1 - spread * every + spread) * momentum * m + g / every)
            waiting = np.zeros(SIZE)
        else:
            theta = theta - step_size * (spread * momentum * m + g / every)
        found.append(theta)
    return found


@settings(max_examples=50)
@given(
    every=st.integers(1, 5),
    share=st.floats(0, 1),
    momentum=st.sampled_from([0.0, 0.5, 0.9]),
    number=st.integers(1, 17),
    seed=st.integers(0, 100),
)
def test_delayed_nesterov_follows_the_algorithm(
    every: int, share: float, momentum: float, number: int, seed: int
) -> None:
    deltas, spread = deltas_of(number, seed), share / every
    found = path_of(DelayedNesterov(every=every, spread=spread, step_size=0.3, momentum=momentum), deltas)
    expected = slow_delayed(deltas, every, spread, 0.3, momentum)
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)


@settings(max_examples=30)
@given(every=st.integers(1, 6), momentum=st.sampled_from([0.0, 0.9]), seed=st.integers(0, 100))
def test_n_arrivals_are_one_nesterov_step_on_their_mean(every: int, momentum: float, seed: int) -> None:
    """So the step size is that of DiLoCo's outer optimizer: the N-th of each is made good by there being N of them."""
    deltas = deltas_of(5 * every, seed)
    found = path_of(DelayedNesterov(every=every, momentum=momentum), deltas)[every - 1 :: every]
    means: list[Array] = [np.mean(deltas[place : place + every], axis=0) for place in range(0, len(deltas), every)]
    np.testing.assert_allclose(found, path_of(OuterSGD(momentum=momentum), means), rtol=1e-10, atol=1e-12)


def test_n_is_the_number_of_updates_that_take_one_message_of_each_worker() -> None:
    deltas = deltas_of(8)
    for updates, every in ((4, 4), (1, 1), (0, 1)):
        given_none, named = DelayedNesterov(), DelayedNesterov(every=every)
        np.testing.assert_array_equal(path_of(given_none, deltas, updates), path_of(named, deltas, 99))


@settings(max_examples=50)
@given(tau=st.integers(0, 60), a=st.floats(0.01, 20), b=st.integers(0, 12))
def test_weights_of_late_messages(tau: int, a: float, b: int) -> None:
    late = torch.tensor(float(tau), dtype=torch.float64)
    expected = {
        ConstantWeight(): 1.0,
        PolynomialWeight(a=a): (1 + tau) ** -a,
        HingeWeight(a=a, b=b): 1.0 if tau <= b else 1 / (a * (tau - b) + 1),
    }
    for weight, value in expected.items():
        assert weight.of(late).item() == pytest.approx(value, rel=1e-12)
        assert weight.of(torch.zeros(())).item() == 1.0


def test_the_hinge_does_not_jump() -> None:
    """Just beyond b the weight is just below 1; without the 1 in the divisor it would be 1 / a."""
    values = [HingeWeight().of(torch.tensor(float(tau))).item() for tau in (5.999, 6, 6.001, 7)]
    assert values == pytest.approx([1, 1, 1 / 1.01, 1 / 11], rel=1e-3)


def weight(value: Any) -> Any:
    return TypeAdapter(LatenessWeight).validate_python(value)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"outer": {"name": "sgd", "momentum": 0, "nesterov": False}},
        {"outer": "delayed-nesterov", "gathering": "asgd", "weighting": "polynomial"},
        {"outer": {"name": "delayed-nesterov", "every": 3, "spread": 0.2}, "gathering": {"name": "k-async", "k": 2}},
        {"average": "samples", "weighting": "hinge"},
    ],
    ids=str,
)
def test_what_every_rule_with_a_server_promises(changes: Any) -> None:
    check_rule(DiLoCo.model_validate(changes), num_workers=4)


@pytest.mark.parametrize("changes", [{}, {"gathering": "sync", "weighting": "hinge", "proximal": 0.1}], ids=str)
def test_what_every_rule_with_a_server_promises_of_fedasync(changes: Any) -> None:
    check_rule(FedAsync.model_validate(changes), num_workers=4)
