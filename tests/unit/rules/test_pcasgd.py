"""PC-ASGD against slow references, and each of its choices on cases worked out by hand."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from ray_pcasgd.base.randomness import generator
from ray_pcasgd.records import Own, Reads
from ray_pcasgd.rules import CASGD, PASGD, PCASGD, PCASGDPV, Algorithm
from ray_pcasgd.rules.base import Rule
from ray_pcasgd.rules.compensation import AdaptiveCompensation, ConstantCompensation, RelativeCompensation
from ray_pcasgd.rules.practical import Condition
from ray_pcasgd.runs.plan.fitting import with_compensation
from ray_pcasgd.runs.settings.loading import load_config
from tests.references.pcasgd import ADAPTIVE, PAIRS
from tests.references.rules import Method, run_reference
from tests.speed import examples
from tests.unit.networks import run_rule
from tests.unit.scenarios import random_scenario

CONDITIONS: tuple[Condition, ...] = ("descent", "gradient", "smoothed", "pull", "probe")
SEEDS = st.integers(0, 2**32)


@pytest.mark.parametrize("name", PAIRS)
@examples(8, whole=12)
@given(seed=SEEDS, same_speed=st.booleans())
def test_a_network_follows_the_reference(name: str, same_speed: bool, seed: int) -> None:
    rule, method = PAIRS[name]
    scenario = random_scenario(seed, same_speed=same_speed)
    expected = np.array(run_reference(method, scenario).weights)
    in_double = torch.stack([torch.stack(row) for row in run_rule(rule, scenario).weights]).numpy()
    np.testing.assert_allclose(in_double, expected, rtol=0, atol=1e-11 * max(1.0, np.abs(expected).max()))
    in_single = torch.stack([torch.stack(row) for row in run_rule(rule, scenario, torch.float32).weights]).numpy()
    np.testing.assert_allclose(in_single, expected, rtol=0, atol=1e-4 * max(1.0, np.abs(expected).max()))


@pytest.mark.parametrize("condition", CONDITIONS)
@settings(max_examples=20)
@given(seed=SEEDS, same_speed=st.booleans(), finer=st.booleans(), probe_every=st.integers(1, 3))
def test_the_practical_variant_follows_the_reference(
    condition: Condition, seed: int, same_speed: bool, finer: bool, probe_every: int
) -> None:
    # Where all neighbors are unreliable, theta 1/2 pulls in the very direction of theta 1: rounding breaks the tie.
    candidates = (0.0, 0.5, 1.0) if finer and condition != "pull" else (0.0, 1.0)
    rule = PCASGDPV(condition=condition, candidates=candidates, probe_every=probe_every, compensation=0.5)
    method = Method(lambda_0=0.5, condition=condition, candidates=candidates, probe_every=probe_every)
    scenario = random_scenario(seed, same_speed=same_speed)
    expected = run_reference(method, scenario)
    actual = run_rule(rule, scenario)
    assert [[m["theta"] for m in row] for row in actual.measures] == expected.thetas
    assert [[m["choosing"] for m in row] for row in actual.measures] == expected.choosing
    assert [[m["predicting"] for m in row] for row in actual.measures] == [
        [theta > 0 for theta in row] for row in expected.thetas
    ]
    weights = torch.stack([torch.stack(row) for row in actual.weights]).numpy()
    np.testing.assert_allclose(
        weights, np.array(expected.weights), rtol=0, atol=1e-11 * max(1.0, np.abs(weights).max())
    )


def test_the_reference_chooses_both_ways_under_every_condition() -> None:
    """Lest the test above compare constants."""
    for condition in CONDITIONS:
        method = Method(condition=condition)
        chosen = {
            theta
            for seed in range(20)
            for thetas, choosing in [(r.thetas, r.choosing) for r in [run_reference(method, random_scenario(seed))]]
            for row, flags in zip(thetas, choosing, strict=True)
            for theta, flag in zip(row, flags, strict=True)
            if flag
        }
        assert chosen == {0.0, 1.0}, condition


def make_own(weights: list[float], direction: list[float], mixing: float, eta: float, **numbers: float) -> Own:
    return Own(
        torch.tensor(weights),
        torch.tensor(direction),
        torch.tensor(mixing),
        torch.tensor(eta),
        {name: torch.tensor(value) for name, value in numbers.items()},
    )


def one_read(
    weights: list[float], direction: list[float], drift: list[float], mixing: float, steps: int, reliable: bool = False
) -> Reads:
    return Reads(
        (torch.tensor(weights),),
        (torch.tensor(direction),),
        (torch.tensor(drift),),
        torch.tensor([mixing]),
        torch.tensor([float(steps)]),
        torch.tensor([float(steps)]),
        torch.tensor([reliable]),
    )


OWN = make_own([1.0, 2.0], [0.5, 0.0], 0.5, 0.25, lambda_0=2.0, theta=0.5)
STALE = one_read([3.0, -1.0], [1.0, 2.0], [0.5, -0.25], 0.5, steps=4)


def test_prediction_of_a_worked_example() -> None:
    # Missed: 4 steps of 0.25 * (u + 2 u u drift) = (1 + 2*1*0.5, 2 + 2*4*(-0.25)) = (2, 0).
    # So p = (3 - 2, -1 - 0) and x = (x + p) / 2 - 0.25 u.
    _, update = PASGD(compensation=2.0).step((), OWN, STALE)
    assert update.weights.tolist() == [(1 + 1) / 2 - 0.125, (2 - 1) / 2]


def test_clipping_a_worked_example() -> None:
    _, update = CASGD().step((), OWN, STALE)
    assert update.weights.tolist() == [1 - 0.125, 2.0]


def test_half_theta_is_halfway_and_is_reported() -> None:
    _, update = PCASGD(theta=0.5, compensation=2.0).step((), OWN, STALE)
    assert update.weights.tolist() == [1 - 0.125, (2 + 0.5) / 2]
    assert update.measures["theta"] == 0.5


@pytest.mark.parametrize(("theta", "same"), [(0.0, CASGD()), (1.0, PASGD(compensation=2.0))])
def test_extreme_thetas_are_clipping_and_predicting_to_the_bit(theta: float, same: Rule) -> None:
    own = OWN._replace(coefficients={"theta": torch.tensor(theta), "lambda_0": torch.tensor(2.0)})
    _, update = PCASGD(theta=0.5, compensation=2.0).step((), own, STALE)
    assert torch.equal(update.weights, same.step((), own, STALE)[1].weights)


def test_adaptive_lambda_of_a_worked_example() -> None:
    rule = PASGD(compensation=AdaptiveCompensation(lambda_0=2.0, decay=0.75))
    state = rule.init(OWN.weights, 1)
    assert [s.tolist() for s in state] == [[0.0, 0.0]]
    state, _ = rule.step(state, OWN, STALE)
    assert [s.tolist() for s in state] == [[0.25, 1.0]]
    state, update = rule.step(state, OWN, STALE)
    mean_square = np.array([0.75 * 0.25 + 0.25, 0.75 + 1.0])
    np.testing.assert_allclose(state[0], mean_square)
    u, drift = np.array([1.0, 2.0]), np.array([0.5, -0.25])
    guess = np.array([3.0, -1.0]) - (u + 2 / np.sqrt(mean_square + 1e-7) * u * u * drift)
    np.testing.assert_allclose(update.weights, (np.array([1.0, 2.0]) + guess) / 2 - [0.125, 0.0], rtol=1e-6)


def test_adaptive_lambda_is_bounded_where_directions_vanish() -> None:
    strength = ADAPTIVE.strength((torch.zeros(2, dtype=torch.float64),), torch.tensor(2.0), 0)
    np.testing.assert_allclose(strength, 2 / np.sqrt(1e-7))


@pytest.mark.parametrize("change", [{"reliable": True}, {"steps": 65}, {"steps": 0}])
def test_adaptive_lambda_learns_only_from_what_it_predicts(change: dict[str, int]) -> None:
    rule = PASGD(compensation=ADAPTIVE)
    reads = one_read(**{"weights": [3.0], "direction": [1.0], "drift": [0.5], "mixing": 0.5, "steps": 4} | change)
    own = make_own([1.0], [0.5], 0.5, 0.25, lambda_0=2.0)
    state, _ = rule.step((torch.tensor([0.125]),), own, reads)
    assert state[0].tolist() == [0.125]


@pytest.mark.parametrize("steps", [5, 6])
def test_a_message_older_than_the_oldest_age_is_clipped_not_guessed(steps: int) -> None:
    rule = PASGD(compensation=2.0, oldest_age=5)
    assert rule.age_max == 5
    reads = one_read([3.0, -1.0], [1.0, 2.0], [0.5, -0.25], 0.5, steps)
    clipped = CASGD().step((), OWN, reads)[1].weights
    assert torch.equal(rule.step((), OWN, reads)[1].weights, clipped) == (steps > 5)


def test_a_message_too_old_to_guess_leaves_nothing_to_choose() -> None:
    rule = PCASGDPV(condition="descent", oldest_age=3)
    state = rule.init(OWN.weights, 1)
    after, update = rule.step(state, OWN, STALE)
    assert update.measures == {"theta": 0.0, "predicting": 0.0, "choosing": 0.0}
    assert after.theta == state.theta
    assert torch.equal(update.weights, CASGD().step((), OWN, STALE)[1].weights)


def three_reads(reliable: list[bool]) -> Reads:
    columns = (torch.tensor([2.0]), torch.tensor([3.0]), torch.tensor([5.0]))
    zeros = (torch.zeros(1),) * 3
    steps = torch.where(torch.tensor(reliable), 0.0, 2.0)
    return Reads(columns, zeros, zeros, torch.tensor([0.25, 0.125, 0.125]), steps, steps, torch.tensor(reliable))


def test_the_weight_of_clipped_neighbors_moves_to_the_agent() -> None:
    own = make_own([8.0], [0.0], 0.5, 0.1, lambda_0=0.0)
    _, update = CASGD().step((), own, three_reads([True, False, False]))
    assert update.weights.tolist() == [0.75 * 8 + 0.25 * 2]


def test_renormalizing_shares_the_weight_of_clipped_neighbors_among_all_that_remain() -> None:
    own = make_own([8.0], [0.0], 0.5, 0.1, lambda_0=0.0)
    _, update = CASGD(clipping="renormalize").step((), own, three_reads([True, False, False]))
    assert update.weights.item() == pytest.approx((0.5 * 8 + 0.25 * 2) / 0.75, rel=1e-6)


@pytest.mark.parametrize("clipping", ["move-to-self", "renormalize"])
def test_an_agent_without_own_weight_keeps_to_itself_when_all_others_are_clipped(clipping: str) -> None:
    own = make_own([8.0], [1.0], 0.0, 0.5, lambda_0=0.0)
    reads = three_reads([False] * 3)._replace(mixing=torch.tensor([0.5, 0.25, 0.25]))
    _, update = CASGD(clipping=clipping).step((), own, reads)  # type: ignore[arg-type]
    assert update.weights.tolist() == [7.5]


def test_clipping_stays_finite_where_the_prediction_overflows() -> None:
    reads = one_read([3.0, -1.0], [1e30, 1.0], [1.0, 1.0], 0.5, steps=4)
    own = OWN._replace(coefficients={"theta": torch.tensor(0.0), "lambda_0": torch.tensor(1.0)})
    assert not PASGD().step((), own, reads)[1].weights.isfinite().all()
    assert PCASGD(theta=0.5).step((), own, reads)[1].weights.tolist() == [0.875, 2.0]
    rule = PCASGDPV()
    _, update = rule.step(rule.init(own.weights, 1), own, reads, lambda xs: torch.stack([x.sum() for x in xs]))
    assert update.weights.tolist() == [0.875, 2.0]


@pytest.mark.parametrize(
    ("losses", "theta"),
    [
        ((1.0, 2.0, 3.0), 0.0),
        ((3.0, 2.0, 3.0), 0.5),
        ((3.0, 2.0, 1.0), 1.0),
        ((1.0, 1.0, 2.0), 0.5),
        ((1.0, 2.0, 1.0), 1.0),
        ((1.0, float("inf"), float("nan")), 0.0),
        ((float("nan"), 2.0, float("inf")), 0.5),
        ((float("nan"), float("inf"), 9.0), 1.0),
        ((9.0, float("nan"), 9.0), 1.0),
    ],
)
def test_probing_takes_the_smallest_loss_the_largest_theta_among_equals_and_never_a_non_finite_loss(
    losses: tuple[float, ...], theta: float
) -> None:
    rule = PCASGDPV(candidates=(0.0, 0.5, 1.0), compensation=2.0)
    state, update = rule.step(rule.init(OWN.weights, 1), OWN, STALE, lambda _: torch.tensor(losses))
    assert state.theta == theta
    assert update.measures == {"theta": theta, "predicting": float(theta > 0), "choosing": 1.0}
    own = OWN._replace(coefficients={"theta": torch.tensor(theta), "lambda_0": torch.tensor(2.0)})
    assert torch.equal(update.weights, PCASGD(theta=0.5, compensation=2.0).step((), own, STALE)[1].weights)


@pytest.mark.parametrize("choice", range(3))
def test_a_pair_predicts_as_many_steps_as_it_says_and_stands_until_the_next_probe(choice: int) -> None:
    pairs = ((0.0, 0.0), (0.5, 1.0), (1.0, 1.5))
    rule = PCASGDPV(candidates=pairs, compensation=2.0, probe_every=2)
    late = STALE._replace(staleness=torch.tensor([3.0]), age=torch.tensor([3.0]))
    losses = torch.ones(3)
    losses[choice] = 0.5
    state, update = rule.step(rule.init(OWN.weights, 1), OWN, late, lambda _: losses)
    theta, steps = pairs[choice]
    same = PCASGD(theta=theta, reach=steps, compensation=2.0)
    own = OWN._replace(coefficients=OWN.coefficients | {"theta": torch.tensor(theta)})
    assert torch.equal(update.weights, same.step((), own, late)[1].weights)
    assert torch.equal(rule.step(state, OWN, late)[1].weights, update.weights)


@pytest.mark.parametrize("candidates", [((0.5, 2.0), (0.5, 1.0)), ((0.5, 1.0), (0.5, 1.0)), (0.5, (0.5, 1.0))])
def test_pairs_rise_too(candidates: tuple[tuple[float, float], ...]) -> None:
    with pytest.raises(ValidationError, match="allowed are two or more rising thetas"):
        PCASGDPV(candidates=candidates)
    assert PCASGDPV(candidates=((0.5, 1.0), 0.5, (1, 0))).candidates == ((0.5, 1.0), 0.5, (1.0, 0.0))


def test_borrowed_probes_are_for_probing() -> None:
    with pytest.raises(ValidationError, match="probe_data = 'shared': allowed with condition = 'descent' is own"):
        PCASGDPV(condition="descent", probe_data="shared")  # type: ignore[arg-type]


def test_the_candidates_are_handed_to_the_probe_in_order() -> None:
    seen: list[tuple[Tensor, ...]] = []

    def probe(candidates: tuple[Tensor, ...]) -> Tensor:
        seen.append(candidates)
        return torch.zeros(len(candidates))

    rule = PCASGDPV(compensation=2.0)
    rule.step(rule.init(OWN.weights, 1), OWN, STALE, probe)
    assert [x.tolist() for x in seen[0]] == [[0.875, 2.0], [0.875, 0.5]]


def test_the_last_choice_stands_between_probes_and_clipping_before_the_first() -> None:
    rule = PCASGDPV(probe_every=3)
    assert [rule.probes_at(step) for step in range(7)] == [True, False, False, True, False, False, True]
    state = rule.init(OWN.weights, 1)
    chosen = []
    for losses in [None, (2.0, 1.0), None, (1.0, 2.0), None]:
        probe = None if losses is None else lambda _, losses=losses: torch.tensor(losses)
        state, update = rule.step(state, OWN, STALE, probe)
        chosen.append(update.measures["theta"].item())
        expected = PASGD() if chosen[-1] else CASGD()
        assert torch.equal(update.weights, expected.step((), OWN, STALE)[1].weights)
    assert chosen == [0.0, 1.0, 1.0, 0.0, 0.0]


def test_a_step_without_unreliable_neighbors_changes_no_choice() -> None:
    rule = PCASGDPV()
    fresh = one_read([3.0, -1.0], [0.0, 0.0], [0.0, 0.0], 0.5, steps=0, reliable=True)
    state, update = rule.step(rule.init(OWN.weights, 1), OWN, fresh, lambda _: torch.zeros(2))
    assert state.theta == 0.0
    assert update.measures["choosing"] == 0.0


def test_only_the_probe_condition_asks_for_probes() -> None:
    assert not any(PCASGDPV(condition=c).probes_at(0) for c in CONDITIONS if c != "probe")
    assert not PCASGD().probes_at(0)


@pytest.mark.parametrize(("condition", "theta"), [("descent", 1.0), ("gradient", 0.0)])
def test_a_neighbor_downhill_is_followed_by_descent_and_dropped_by_gradient(condition: Condition, theta: float) -> None:
    # Clipping moves across the slope too, through the reliable neighbor; the unreliable one lies straight downhill.
    own = make_own([0.0, 0.0], [1.0, 0.0], 0.5, 0.1, lambda_0=0.0)
    zeros = (torch.zeros(2),) * 2
    steps = torch.tensor([0.0, 1.0])
    reads = Reads(
        (torch.tensor([0.0, 1.0]), torch.tensor([-9.0, 0.0])),
        zeros,
        zeros,
        torch.tensor([0.25, 0.25]),
        steps,
        steps,
        torch.tensor([True, False]),
    )
    rule = PCASGDPV(condition=condition)
    _, update = rule.step(rule.init(own.weights, 2), own, reads)
    assert update.measures["theta"] == theta


def test_no_pull_at_all_counts_as_zero_although_sums_are_rounded() -> None:
    """Clipping leaves no pull, predicting pulls uphill: clipping is better, by 0 against a negative cosine."""
    draw = generator(0, "test")
    x, u = (torch.from_numpy(draw.normal(size=1000)).float() for _ in range(2))
    own = Own(x, u, torch.tensor(1 / 3), torch.tensor(0.1), {"lambda_0": torch.tensor(0.0)})
    zeros = torch.zeros(1000)
    steps = torch.ones(2)
    reads = Reads((x + u,) * 2, (zeros,) * 2, (zeros,) * 2, torch.full((2,), 1 / 3), steps, steps, steps == 0)
    rule = PCASGDPV(condition="pull")
    assert rule.step(rule.init(x, 2), own, reads)[1].measures["theta"] == 0.0
    # And where predicting has no component along the slope at all, both are 0 and predicting is preferred.
    reads = reads._replace(weights=(x,) * 2)
    assert rule.step(rule.init(x, 2), own, reads)[1].measures["theta"] == 1.0


def test_smoothing_remembers_earlier_directions() -> None:
    rule = PCASGDPV(condition="smoothed")
    state = rule.init(OWN.weights, 1)
    for _ in range(2):
        state, _ = rule.step(state, OWN, STALE)
    np.testing.assert_allclose(state.smoothed, np.array([0.5, 0.0]) * (0.1 + 0.9 * 0.1), rtol=1e-6)
    assert PCASGDPV().init(OWN.weights, 1).smoothed.shape == (0,)


def test_clipping_asks_for_no_directions_and_no_history() -> None:
    assert (CASGD.needs_directions, CASGD.needs_drift, CASGD().age_max) == (False, False, 0)
    nothing = (torch.zeros(0),)
    bare = STALE._replace(directions=nothing, drift=nothing)
    assert torch.equal(CASGD().step((), OWN, bare)[1].weights, CASGD().step((), OWN, STALE)[1].weights)


def test_theta_is_a_number_a_curve_or_a_value_per_agent() -> None:
    assert PCASGD(theta=0.25).coefficients(3, 7) == {"lambda_0": 0.04, "theta": 0.25}
    assert PCASGD(theta={"name": "linear", "start": 1.0, "end": 0.0, "steps": 4}).coefficients(0, 1)["theta"] == 0.75
    per_agent = PCASGD(theta=[0.0, 0.5, 1.0])
    assert [per_agent.coefficients(agent, 9)["theta"] for agent in range(3)] == [0.0, 0.5, 1.0]


@pytest.mark.parametrize("theta", [1.5, -0.5, [0.5, 1.5], {"name": "linear", "start": 0.5, "end": 1.5, "steps": 3}])
def test_a_theta_outside_its_range_is_named_with_its_value_and_what_is_allowed(theta: object) -> None:
    bad = "-0.5" if theta == -0.5 else "1.5"
    with pytest.raises(ValidationError, match=rf"theta = {bad}: allowed are values in \[0, 1\]"):
        PCASGD(theta=theta)  # type: ignore[arg-type]


def test_thetas_per_agent_must_be_as_many_as_agents() -> None:
    rule = PCASGD(theta=(0.5, 0.5))
    rule.check(2)
    with pytest.raises(ValueError, match=r"theta = \[0.5, 0.5\]: allowed is one value for each of the 3 agents"):
        rule.check(3)


@pytest.mark.parametrize("candidates", [(0.5,), (1.0, 0.0), (0.0, 0.0), (0.0, 1.5), (-1.0, 1.0)])
def test_candidates_must_be_two_or_more_rising_thetas(candidates: tuple[float, ...]) -> None:
    with pytest.raises(
        ValidationError, match=r"candidates = .*: allowed are two or more rising thetas in \[0, 1\], or pairs"
    ):
        PCASGDPV(candidates=candidates)


def test_compensation_is_a_number_a_name_or_settings() -> None:
    algorithm = TypeAdapter[Algorithm](Algorithm)

    def parse(value: object) -> object:
        return algorithm.validate_python({"name": "p-asgd", "compensation": value}).compensation  # type: ignore[union-attr]

    assert parse(0.5) == ConstantCompensation(lambda_0=0.5)
    assert parse("adaptive") == AdaptiveCompensation(lambda_0=2.0, decay=0.95)
    assert parse({"name": "adaptive", "decay": 0.5}) == AdaptiveCompensation(decay=0.5)
    assert parse("relative") == RelativeCompensation(lambda_0=0.2)
    assert parse({"lambda_0": 0.5}) == ConstantCompensation(lambda_0=0.5)
    assert parse(None) is None
    for bad in [-0.1, {"name": "adaptive", "decay": 1.0}, {"name": "constant", "decay": 0.5}]:
        with pytest.raises(ValidationError):
            parse(bad)


def test_the_bound_of_the_reference_has_something_to_cut() -> None:
    bounded, free = (Method(theta=lambda i, t: 0.9, bound=0.5, bounded=cut) for cut in (True, False))
    scenarios = [random_scenario(seed) for seed in range(20)]
    assert sum(run_reference(bounded, one).weights != run_reference(free, one).weights for one in scenarios) >= 10


def test_a_relative_correction_is_as_long_as_it_says_over_vectors_of_several_blocks() -> None:
    u, drift = (torch.from_numpy(generator(k, "vectors").standard_normal(200_000)).float() for k in range(2))
    still = torch.zeros_like(u)
    compensation = RelativeCompensation(lambda_0=0.25)
    scales = compensation.scales(torch.tensor(0.25), (u, u, still), (drift, still, drift))
    correction = compensation.strength((), scales[0], 0) * u * u * drift
    assert correction.norm().item() == pytest.approx(0.25 * u.norm().item(), rel=1e-5)
    assert [scale.item() for scale in scales[1:]] == [0.0, 0.0]


@pytest.mark.parametrize(
    ("optimizer", "given", "expected"),
    [
        ({}, None, ConstantCompensation()),
        ("adamw", None, ConstantCompensation(lambda_0=0.0)),
        ("adamw", 0.04, ConstantCompensation()),
        ({"name": "torch", "optimizer": "torch.optim:RAdam"}, "relative", RelativeCompensation()),
    ],
)
def test_the_compensation_that_is_not_given_is_for_gradients_alone(optimizer: Any, given: Any, expected: Any) -> None:
    tree = {"engine": "local", "optimizer": optimizer, "algorithm": {"name": "p-asgd", "compensation": given}}
    algorithm = with_compensation(load_config(tree)).algorithm
    assert isinstance(algorithm, PASGD)
    assert algorithm.compensation == expected


def test_the_guard_of_the_reference_has_something_to_do() -> None:
    """Lest the comparison above be of guards that rest."""
    guarded, free = Method(bound=4.0, guard=True), Method(bound=4.0)
    scenarios = [random_scenario(seed) for seed in range(20)]
    assert sum(run_reference(guarded, one).thetas != run_reference(free, one).thetas for one in scenarios) >= 3
