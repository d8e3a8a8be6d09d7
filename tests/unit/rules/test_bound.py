"""The stability bound of prediction: against the condition itself, the roots of the recursion, and real runs."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from ray_pcasgd.base.randomness import generator
from ray_pcasgd.records import Own, Reads, StepReport
from ray_pcasgd.rules import PASGD, PCASGD, PCASGDPV
from ray_pcasgd.rules import stability as bound
from ray_pcasgd.rules.guard import guarded, unguarded
from ray_pcasgd.rules.prediction import Blend, PredictingRule
from ray_pcasgd.rules.reach import DampedReach
from ray_pcasgd.runs.plan.plan import make_plan
from ray_pcasgd.runs.settings.loading import load_config
from tests.unit.quadratic import CURVATURE, TASK

REACHES = st.floats(0.3, 60.0)
CURVATURES = st.floats(0.02, 1.98)


def number(value: float) -> Any:
    return torch.tensor(value, dtype=torch.float64)


def worst(g: float, s: float, r: float) -> float:
    """Return the largest ``|1-g-e| + g |1-se|`` over the modes: its pieces are straight, so their ends are enough."""
    ends = [1e-12, r, *(e for e in (1 - g, 1 / s if s else math.inf) if 0 < e < r)]
    return max(abs(1 - g - e) + g * abs(1 - s * e) for e in ends)


def is_stable(g: float, s: float, r: float) -> bool:
    return worst(g, s, r) <= 1 + 1e-9


@given(s=REACHES, r=CURVATURES)
def test_the_strength_is_the_largest_stable_one_that_is_connected_to_none(s: float, r: float) -> None:
    g = bound.strength_by_curvature(number(s), number(r)).item()
    assert all(is_stable(share * g, s, r) for share in np.linspace(0.01, 0.999, 50))
    assert g == 1 or not all(is_stable(g + more, s, r) for more in (1e-4, 1e-3, 5e-3))


@given(g=st.floats(0.01, 0.99), r=CURVATURES)
def test_the_reach_is_the_longest_stable_one(g: float, r: float) -> None:
    assume(g <= 2 - r)  # else no reach is
    s = bound.reach_by_curvature(number(g), number(r)).item()
    assert is_stable(g, 0.999 * s, r)
    assert not is_stable(g, 1.01 * s + 1e-3, r)


def roots(g: float, s: float, e: float, tau: int, sign: int) -> float:
    """Return the largest root of ``x(t+1) = (1-g-e) x(t) +- g (1-se) x(t-tau)``, by its size."""
    polynomial = np.zeros(tau + 2)
    polynomial[0], polynomial[1] = 1, -(1 - g - e)
    polynomial[-1] -= sign * g * (1 - s * e)
    return float(np.abs(np.roots(polynomial)).max())


def test_roots_are_inside_the_unit_circle_within_the_bound_and_outside_beyond_it() -> None:
    draw = generator(0, "roots")
    for _ in range(2000):
        tau, r = int(draw.integers(1, 25)), float(draw.uniform(0.05, 1.95))
        g = 0.999 * bound.strength_by_curvature(number(tau), number(r)).item()
        e = float(draw.uniform(0.01, 1)) * r
        for sign in (1, -1):
            assert roots(g, tau, e, tau, sign) < 1 + 1e-9
    for tau in range(2, 25):
        # At r = 1 the constant c = 1 is exact: the fastest mode goes, with one of the signs, right beyond it.
        assert max(roots(0.98 / tau, tau, 1.0, tau, sign) for sign in (1, -1)) < 1
        assert max(roots(1.02 / tau, tau, 1.0, tau, sign) for sign in (1, -1)) > 1


def test_own_drift_has_a_bound_of_its_own() -> None:
    for tau in (1, 2, 5, 10, 20):
        g = bound.strength_of_own_drift(number(tau)).item()
        assert bound.reach_of_own_drift(number(g)).item() == pytest.approx(max(tau, 6))  # 1/4 up to 6 steps
    assert bound.reach_of_own_drift(number(0.3)).item() == 0


@given(tau=st.integers(1, 60), c=st.floats(0.1, 1.5), drag=st.floats(0, 0.9))
def test_drag_gives_up_as_much_speed_as_it_says(tau: int, c: float, drag: float) -> None:
    g = bound.strength_at_drag(number(c / tau), number(tau), drag)
    assert bound.speed_of_slow_modes(g, c / g, number(tau)).item() == pytest.approx(1 - drag)


@given(rho=st.floats(0.05, 0.95), tau=st.integers(0, 40))
def test_damped_steps_are_a_geometric_sum(rho: float, tau: int) -> None:
    found = DampedReach(rho=rho).steps(number(float(tau))).item()
    assert found == pytest.approx(sum(rho**power for power in range(1, tau + 1)), rel=1e-9, abs=1e-12)


def own_of(curvature: float, trust: float = 1.0) -> Own:
    one = number(1.0)
    return Own(one, one, one, number(0.5), {"curvature": number(curvature), "trust": number(trust)})


def test_the_bound_by_curvature_ends_at_the_edge_and_is_one_before_the_first_measurement() -> None:
    rule = PCASGD(stability={"name": "curvature", "sharpness": 2})
    at = lambda r, trust=1.0: rule.stability.strength(number(10.0), own_of(r, trust), 1.0).item()  # noqa: E731
    assert at(0.0) == pytest.approx(0.1)
    assert at(1.0) == bound.strength_by_curvature(number(10.0), number(1.0)).item()
    assert at(1.0, 0.5) == at(1.0) / 2
    assert at(0.01) == at(0.5)  # nothing below 1/2 is believed
    assert 0 < at(1.99) < 0.001
    assert at(2.0) == at(50.0) == 0
    far = lambda r: rule.stability.reach(number(0.25), own_of(r), 1.0).item()  # noqa: E731
    assert far(0.0) == 4
    assert far(2.5) == 0


def test_the_bound_by_curvature_warms_up() -> None:
    trust = [PCASGD().coefficients(0, step)["trust"] for step in (0, 25, 100, 300)]
    assert trust == [0, 0.25, 1, 1]
    assert PCASGD(stability={"name": "curvature", "warmup": 0}).coefficients(0, 0)["trust"] == 1


def test_the_guard_halves_where_prediction_outgrows_usual_steps_and_comes_back_slowly() -> None:
    state = unguarded(torch.zeros(3))
    usual = torch.tensor(0.1)
    for _ in range(20):
        state = guarded(state, torch.tensor(0.15), usual)
    assert state.gain == 1
    state = guarded(state, torch.tensor(0.5), torch.tensor(9.0))
    assert state.gain == 0.5
    assert state.usual == pytest.approx(0.1)  # what has outgrown is not usual
    state = guarded(state, torch.tensor(torch.inf), usual)
    assert state.gain == 0.25
    steps = 0
    while state.gain < 1:
        state, steps = guarded(state, torch.tensor(0.0), usual), steps + 1
    assert 50 < steps < 100


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"stability": 0}, "greater than 0"),
        ({"reach": -1}, "greater than or equal to 0"),
        ({"reach": {"name": "damped", "rho": 1}}, "less than 1"),
        ({"theta": 1.5}, r"theta = 1.5: allowed are values in \[0, 1\], and staleness"),
    ],
)
def test_what_has_no_meaning_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        PCASGD(**settings)


def test_the_published_method_asks_for_no_curvature_and_own_drift_for_no_directions() -> None:
    assert PCASGD().measures_curvature
    for published in (PCASGD(theta=0.3), PASGD(), PCASGD(stability=1), PCASGD(prediction="own-drift")):
        assert not published.measures_curvature
    for bounded in (
        PASGD(reach="stable"),
        PASGD(bounded=True),
        PCASGD(theta=0.3, bounded=True),
        PCASGDPV(bounded=True),
    ):
        assert bounded.measures_curvature
    assert not PCASGD(theta=0.3, bounded=True, stability=1).measures_curvature
    assert not PCASGD(theta=0.3, bounded=True, prediction="own-drift").measures_curvature
    assert PCASGD().needs_directions
    assert not PCASGD(prediction="own-drift").needs_directions


KINDS: dict[str, PredictingRule] = {
    "full": PCASGD(theta=0.3, bounded=True),
    "damped": PCASGD(theta=0.3, bounded=True, reach={"name": "damped", "rho": 0.999}),
    "many steps": PCASGD(theta=0.3, bounded=True, reach=1e6),
    "constant": PCASGD(theta=0.3, bounded=True, stability=0.7),
    "p-asgd": PASGD(bounded=True),
    "practical": PCASGDPV(bounded=True),
    "own drift": PCASGD(theta=0.3, bounded=True, prediction="own-drift"),
    "theta by staleness": PCASGD(),
}


def late_by(staleness: list[float], mixing: list[float]) -> Reads:
    """Return what is read of neighbors that are all late, at one parameter."""
    one = tuple(torch.ones(1) for _ in staleness)
    steps, weights = torch.tensor(staleness), torch.tensor(mixing)
    return Reads(one, one, one, weights, steps, torch.ones_like(steps), torch.zeros(len(staleness), dtype=torch.bool))


def product_of(blend: Blend, mixing: list[float]) -> float:
    """Return theta times the sum of the mixing weights times the reaches."""
    return float(blend.theta) * sum(w * s for w, s in zip(mixing, blend.reach.tolist(), strict=True))


@pytest.mark.parametrize("kind", KINDS)
@given(
    staleness=st.lists(st.integers(0, 10**9), min_size=1, max_size=4),
    weights=st.data(),
    theta=st.floats(0, 1),
    gain=st.floats(2**-10, 1),
    r=st.one_of(st.just(0.0), st.floats(0.01, 3)),
)
def test_no_staleness_whatsoever_is_predicted_past_the_bound(
    kind: str, staleness: list[int], weights: st.DataObject, theta: float, gain: float, r: float
) -> None:
    parts = weights.draw(st.lists(st.floats(0.01, 1), min_size=len(staleness), max_size=len(staleness)))
    mixing = [part / (sum(parts) + 0.1) for part in parts]
    rule, reads = KINDS[kind], late_by([float(s) for s in staleness], mixing)
    curvature = {name: torch.tensor(value) for name, value in (("curvature", r / (2.5 * 0.5)), ("trust", 1.0))}
    own = Own(torch.ones(1), torch.ones(1), torch.tensor(1 - sum(mixing)), torch.tensor(0.5), curvature)
    rows = rule.rows(own, reads)
    blend = rule.blend_at(torch.tensor(theta), rows, own, reads, gain)
    if kind == "theta by staleness":
        blend = rule.chosen_blend(rows, own, reads, gain)
    product = product_of(blend, mixing)
    assert all(0 <= reach <= tau for reach, tau in zip(blend.reach.tolist(), reads.staleness.tolist(), strict=True))
    within = 1 + 1e-4
    if kind == "constant":
        assert product <= 0.7 * gain * within
    elif kind == "own drift":
        assert product <= 2 * gain * within  # g <= 2 c / (s + 2)
    elif r == 0:
        assert product <= gain * within
    elif r >= 2:
        assert product == 0
    else:
        # What both pieces of the condition have in common, s <= 2/r + 1/g; the gain is a factor of the s or of the g.
        g = float(blend.theta) * sum(mixing)
        factor = 1.0 if kind == "theta by staleness" else gain
        assert product <= (gain + factor * 2 * g / max(r, 0.5)) * within
        if r <= 1 and gain == 1:
            assert is_stable(g / within, max(blend.reach.tolist()) / within, max(r, 0.5))


@given(staleness=st.integers(0, 10**6), eta=st.floats(0.01, 1), theta=st.floats(0, 1), seed=st.integers(0, 2**32))
def test_unbounded_is_the_published_step_to_the_bit(staleness: int, eta: float, theta: float, seed: int) -> None:
    """Written out here, in float32: ``theta x_pre + (1 - theta) x_cli`` of one late and one reliable neighbor."""
    draw = torch.Generator().manual_seed(seed)
    x, u, near, far, direction, drift = torch.randn(6, 5, generator=draw)
    zeros, (w_own, w_near, w_far) = torch.zeros(5), torch.tensor([0.5, 0.2, 0.3])
    lambda_0, number = torch.tensor(0.04), torch.tensor(theta)
    own = Own(x, u, w_own, torch.tensor(eta), {"lambda_0": lambda_0, "theta": number})
    steps = torch.tensor([0.0, float(staleness)])
    reads = Reads(
        *((near, far), (zeros, direction), (zeros, drift), torch.stack([w_near, w_far])),
        *(steps, steps.clamp(max=1), torch.tensor([True, False])),
    )
    clipped = w_own + w_far
    row = clipped + number * (w_own - clipped), w_near, 0 + number * w_far
    rate = w_far * (own.step_size * steps[1])
    moved = direction * (rate + (rate * lambda_0) * (direction * drift))
    expected = row[0] * x + row[1] * near + row[2] * far - own.step_size * u
    expected = expected - number * moved if theta else expected
    for bounded in (False, None):
        rule = PCASGD(theta=theta, bounded=bounded)
        assert not rule.has_bound
        assert torch.equal(rule.step(rule.init(x, 2), own, reads)[1].weights, expected)


def test_a_candidate_of_the_practical_variant_is_bounded_at_its_own_theta() -> None:
    rule = PCASGDPV(candidates=((0.25, 1.0), (0.5, 50.0), 1.0), bounded=True, stability=1)
    own = Own(torch.zeros(1), torch.zeros(1), torch.tensor(0.5), torch.tensor(1.0), {"lambda_0": torch.tensor(0.0)})
    reads = late_by([300.0], [0.5])
    seen: list[float] = []

    def probe(candidates: tuple[Tensor, ...]) -> Tensor:
        seen.extend(float(one) for one in candidates)
        return torch.arange(len(candidates), 0, -1.0)

    rule.step(rule.init(torch.zeros(1), 1), own, reads, probe)
    # theta / 2 of the neighbor's 1, less as much times the steps: its own 1 of 1/(theta / 2) = 8, 1/0.25 = 4, and 2.
    assert seen == [0.125 * (1 - 1), 0.25 * (1 - 4), 0.5 * (1 - 2)]


def path(algorithm: dict[str, Any], r: float, delay: int, num_steps: int) -> Any:
    """Return |w| of agent 0 at every step: two agents on ``w^2`` without noise, each late for the other."""
    config = load_config(
        {
            "num_agents": 2,
            "num_steps": num_steps,
            "batch_size": 1,
            "clusters": 2,
            "step_size": r / CURVATURE,
            "links": [{"between": "clusters", "delay": delay}],
            "algorithm": {"name": "pc-asgd", "compensation": 0, "stability": 1, **algorithm},
            "task": TASK,
            "evaluate_every": 1,
            "engine": "local",
        }
    )
    own = make_plan(config)
    reports = [one for one in own.engine().run(own.specs, own.data) if isinstance(one, StepReport)]
    found = [one.snapshot.weights.item() for one in reports if one.row.agent == 0 and one.snapshot is not None]
    assert len(found) == num_steps
    return np.abs(np.array(found))


@pytest.mark.parametrize("delay", [6, 10])
def test_real_runs_converge_right_inside_of_the_bound_and_diverge_right_outside(delay: int) -> None:
    """Two agents weigh each other 1/2, so theta W tau = 1 at theta = 2 / tau, and r = 1."""
    inside, outside = (path({"theta": share * 2 / delay}, 1.0, delay, 400) for share in (0.93, 1.07))
    assert inside[-40:].max() < inside[100:140].max() / 2
    assert outside[-40:].max() > outside[100:140].max() * 2


@pytest.mark.parametrize(
    ("theta", "reach"), [(0.5, 2.0), (1.0, 0.0), (0.2, 10.0), ("staleness", {"name": "stable", "drag": 0.2})]
)
def test_slow_modes_of_real_runs_converge_at_the_speed_of_the_formula(theta: Any, reach: Any) -> None:
    delay, e = 10, 0.004
    found = path({"theta": theta, "reach": reach}, e, delay, 500)
    g = theta / 2 if theta != "staleness" else (2 / (1 - 0.2) - 1) / delay
    s = reach if theta != "staleness" else 1 / g
    speed = (1 + g * s) / (1 + g * delay)
    rate = -math.log(found[480] / found[100]) / 380
    assert rate / e == pytest.approx(speed, rel=0.02)
