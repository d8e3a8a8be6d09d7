"""The correction by the outer momentum and the merging by lengths and directions, against loops written from papers."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_pcasgd.rules.contract import check_rule
from ray_pcasgd.rules.correction import Late
from ray_pcasgd.rules.diloco import DiLoCo
from ray_pcasgd.rules.heloco import HeLoCo
from ray_pcasgd.rules.merging import radial_directional
from ray_pcasgd.rules.server import Delivered
from tests.references.heloco import slow_corrected, slow_merged

Array = npt.NDArray[np.float64]
SIZES = (5, 1, 3)
D = sum(SIZES)


@settings(max_examples=100)
@given(
    seed=st.integers(0, 10_000),
    scale=st.sampled_from([0.0, 0.01, 1.0, 30.0]),
    kappa=st.sampled_from([0.0, 3.0]),
    k_s=st.sampled_from([0.5, 3.0]),
    c_ok=st.sampled_from([0.2, 1.0]),
)
def test_late_pseudo_gradients_are_corrected_as_in_the_paper(
    seed: int, scale: float, kappa: float, k_s: float, c_ok: float
) -> None:
    draw = np.random.default_rng(seed)
    delta, m = draw.standard_normal(D), scale * draw.standard_normal(D)
    rule = HeLoCo(kappa=kappa, k_s=k_s, c_ok=c_ok)
    state = (torch.tensor(m),)
    found = rule.corrected(state, torch.tensor(delta), torch.tensor(2.0), SIZES)
    np.testing.assert_allclose(found.numpy(), slow_corrected(delta, m, rule, SIZES), rtol=1e-9, atol=1e-12)
    fresh = rule.corrected(state, torch.tensor(delta), torch.tensor(0.0), SIZES)
    assert torch.equal(fresh, torch.tensor(delta))


def test_what_opposes_the_momentum_is_partly_removed_and_lengths_are_kept_where_it_turns() -> None:
    m = torch.tensor([1.0, 0.0])
    rule = HeLoCo(kappa=0.0)
    # Straight against it: c = -1, conf 1, beta 0.5.
    against = rule.corrected((m,), torch.tensor([-2.0, 0.0]), torch.tensor(1.0), (2,))
    torch.testing.assert_close(against, torch.tensor([-1.0, 0.0]))
    # Across: c = 0, all of it is turned.
    across = rule.corrected((m,), torch.tensor([0.0, 3.0]), torch.tensor(1.0), (2,))
    torch.testing.assert_close(across, torch.tensor([3.0, 0.0]))
    along = torch.tensor([1.0, 1.0])
    assert torch.equal(rule.corrected((m,), along, torch.tensor(1.0), (2,)), along)


def test_the_momentum_is_a_mean_which_keeps_the_confidence_in_proportion() -> None:
    """A sum of as many would be 1 / (1 - mu) times as long, and the confidence ten times smaller."""
    rule, delta = HeLoCo(step_size=1.0), torch.tensor([1.0, -2.0])
    state, weights = rule.init(delta, 1), torch.zeros(2)
    for _ in range(200):
        before = weights
        state, weights = rule.step(state, weights, delta)
    torch.testing.assert_close(state[0], delta)
    torch.testing.assert_close(before - weights, 1.9 * delta, rtol=1e-4, atol=1e-4)


@settings(max_examples=50)
@given(seed=st.integers(0, 10_000), number=st.integers(1, 4), has_zero=st.booleans())
def test_radial_directional_merging_follows_its_formula(seed: int, number: int, has_zero: bool) -> None:
    draw = np.random.default_rng(seed)
    deltas: list[Array] = [draw.standard_normal(D) for _ in range(number)]
    if has_zero:
        deltas[0][:5] = 0
    weights = list(draw.uniform(0.2, 2, number))
    found = radial_directional([torch.tensor(d) for d in deltas], [torch.tensor(w) for w in weights], 3.0, SIZES)
    np.testing.assert_allclose(found.numpy(), slow_merged(deltas, weights, 3.0, SIZES), rtol=1e-9, atol=1e-12)


def test_workers_that_disagree_do_not_shrink_the_merged_step() -> None:
    one, other = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0])
    weights = [torch.tensor(1.0)] * 2
    torch.testing.assert_close(radial_directional([one, other], weights, 2.0, (2,)).norm(), torch.tensor(2.0))
    # Opposite ones have no direction in common: the mean, which is 0.
    assert torch.equal(radial_directional([one, -one], weights, 2.0, (2,)), torch.zeros(2))


@pytest.mark.parametrize("merging", ["mean", "radial-directional"])
def test_an_update_corrects_each_message_before_it_merges_them(merging: Any) -> None:
    rule = DiLoCo(outer=HeLoCo(step_size=0.5), merging=merging)
    draw = np.random.default_rng(0)
    center, m, *deltas = (draw.standard_normal(D).astype(np.float32) for _ in range(5))
    late = [0.0, 2.0, 1.0]
    nothing = torch.zeros(0)
    delivered = [
        Delivered(k, Late(torch.tensor(d), nothing, torch.tensor(tau), *[torch.tensor(1.0)] * 2), sizes=SIZES)
        for k, (d, tau) in enumerate(zip(deltas, late, strict=True))
    ]
    state, moved = rule.gather((torch.tensor(m),), torch.tensor(center), delivered)
    wide = [d.astype(np.float64) for d in deltas]
    outer = rule.outer
    assert isinstance(outer, HeLoCo)
    corrected = [
        slow_corrected(d, m.astype(np.float64), outer, SIZES) if tau else d for d, tau in zip(wide, late, strict=True)
    ]
    g = np.mean(corrected, axis=0) if merging == "mean" else slow_merged(corrected, [1, 1, 1], 3, SIZES)
    momentum = 0.9 * m + 0.1 * g
    np.testing.assert_allclose(state[0].numpy(), momentum, rtol=0, atol=1e-6)
    np.testing.assert_allclose(moved.numpy(), center - 0.5 * (g + 0.9 * momentum), rtol=0, atol=1e-6)


def test_what_every_rule_with_a_server_promises() -> None:
    check_rule(DiLoCo(outer=HeLoCo(), merging="radial-directional"), num_workers=4)
