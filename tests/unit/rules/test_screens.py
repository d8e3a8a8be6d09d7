"""Screens against slow references in float64, written from the papers' formulas; and what attackers cannot do."""

import math
from typing import Literal, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ray_pcasgd.base.randomness import generator
from ray_pcasgd.records import Own, Reads
from ray_pcasgd.rules import DASGD, Bridge
from ray_pcasgd.rules.pcasgd import PASGD
from ray_pcasgd.rules.screens import (
    AnyScreen,
    Bulyan,
    CenteredClipping,
    GeometricMedian,
    Krum,
    Median,
    NearestNeighbors,
    Screen,
    TrimmedMean,
)
from ray_pcasgd.rules.votes import Votes
from tests.references.screens import krum, mixed, screened

Array = NDArray[np.float64]
PLAIN: tuple[Screen, ...] = (
    TrimmedMean(),
    Median(),
    Krum(),
    Bulyan(),
    NearestNeighbors(),
    CenteredClipping(),
    GeometricMedian(),
)
MIXED = ", mixed"
SCREENS: dict[str, Screen] = {
    **{screen.name: screen for screen in PLAIN},  # type: ignore[attr-defined]
    **{f"{screen.name}{MIXED}": type(screen)(nearest_neighbor_mixing=True) for screen in PLAIN},  # type: ignore[attr-defined]
}
every_screen = pytest.mark.parametrize("name", SCREENS)


def votes_of(center: Array, others: Array, shares: Array, center_votes: bool, missing: int = 0) -> Votes:
    """Return what a screen sees, with so many more that are not there, in between."""
    vectors = [torch.from_numpy(vector.astype(np.float32)) for vector in others]
    present, weights = [True] * len(others), list(shares)
    for place in range(missing):
        vectors.insert(2 * place, torch.full_like(vectors[0], 1e6 * (-1) ** place))
        present.insert(2 * place, False)
        weights.insert(2 * place, 0.0)
    own = torch.from_numpy(center.astype(np.float32))
    return Votes(own, tuple(vectors), torch.tensor(present), torch.tensor(weights, dtype=torch.float32), center_votes)


@every_screen
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_screen_is_its_reference(name: str, data: st.DataObject) -> None:
    """For any numbers of voters and attackers; who is missing, whatever it holds, changes no bit."""
    screen = SCREENS[name]
    attackers = data.draw(st.integers(0, 2))
    center_votes = isinstance(screen, NearestNeighbors) or data.draw(st.booleans())
    number = max(1, screen.least(attackers, center_votes)) + data.draw(st.integers(0, 4))
    if name == f"bulyan{MIXED}":  # of an even number, of which half are equal, as means are, rounding decides
        number += (number + center_votes) % 2 == 0
    draw = generator(data.draw(st.integers(0, 10_000)), "screens")
    size = data.draw(st.sampled_from([1, 5, 40]))
    center = draw.normal(size=size).astype(np.float32).astype(float)
    others = (center + draw.normal(size=(number, size)) * draw.choice([0.01, 1, 30], size=(number, 1))).astype(
        np.float32
    )
    shares = draw.dirichlet(np.ones(number + 1))[1:]
    votes = votes_of(center, others, shares, center_votes)
    found = screen.apply(votes, attackers)
    expected = screened(screen, center, others.astype(float), attackers, shares, center_votes)
    assert np.abs(found.vector.numpy() - expected).max() <= 1e-5 * max(1.0, np.abs(others).max())
    assert ((found.dropped >= 0) & (found.dropped <= 1)).all()
    more = votes_of(center, others, shares, center_votes, missing=2)
    again = screen.apply(more, attackers)
    assert torch.equal(again.vector, found.vector)
    assert torch.equal(again.dropped[more.present], found.dropped)


@every_screen
@pytest.mark.parametrize("attackers", [1, 2])
@pytest.mark.parametrize("far", [1e3, 1e6])
def test_as_many_attackers_as_it_stands_move_a_screen_no_further_than_the_honest_are_apart(
    name: str, attackers: int, far: float
) -> None:
    """Wherever they stand, and one more does so: with one attacker more than half the median goes anywhere."""
    screen = SCREENS[name]
    honest_count = screen.least(attackers, center_votes=True) - attackers
    draw = generator(0, "attackers", attackers)
    honest = draw.normal(size=(honest_count + 1, 30))
    lies = honest[0] + far * draw.normal(size=(attackers, 30))
    others = np.vstack([lies, honest[1:]])
    votes = votes_of(honest[0], others, np.full(len(others), 1 / (len(others) + 1)), center_votes=True)
    found = screen.apply(votes, attackers)
    largest = max(float(np.linalg.norm(a - b)) for a in honest for b in honest)
    assert float(np.linalg.norm(found.vector.numpy() - honest.mean(axis=0))) <= 2 * largest
    # A mean would be far beyond, so that the bound says something.
    assert float(np.linalg.norm(np.vstack([others, honest[:1]]).mean(axis=0))) > 10 * largest
    if not isinstance(screen, Median):
        assert (found.dropped[:attackers] > 0.5).all()


@every_screen
@pytest.mark.parametrize("attackers", [1, 2])
@pytest.mark.parametrize("center_votes", [True, False], ids=["peers", "server"])
@pytest.mark.parametrize("told", ["nan", "inf", "-inf", "1e30", "one nan"])
def test_what_is_not_finite_is_a_lie_like_any(name: str, attackers: int, center_votes: bool, told: str) -> None:
    """What comes out is what comes out where the same attackers send numbers that are as good as infinite."""
    screen = SCREENS[name]
    if isinstance(screen, NearestNeighbors) and not center_votes:
        pytest.skip("between peers alone")
    number = screen.least(attackers, center_votes)
    draw = generator(0, "not finite", attackers)
    honest = draw.normal(size=(number - attackers + 1, 30))
    lies = np.full((attackers, 30), float(told.split()[-1]))
    if told == "one nan":
        lies = honest[1] + 1e3 * np.abs(draw.normal(size=(attackers, 30)))
        lies[:, 3] = np.nan
    others = np.vstack([lies, honest[1:]])
    votes = votes_of(honest[0], others, np.full(len(others), 1 / (len(others) + 1)), center_votes)
    found = screen.apply(votes, attackers)
    largest = max(float(np.linalg.norm(a - b)) for a in honest for b in honest)
    assert float(np.linalg.norm(found.vector.numpy() - honest.mean(axis=0))) <= 2 * largest
    assert ((found.dropped >= 0) & (found.dropped <= 1)).all()
    if not isinstance(screen, Median):
        assert (found.dropped[:attackers] > 0.5).all()


@every_screen
@pytest.mark.parametrize("center_votes", [True, False], ids=["peers", "server"])
def test_where_all_are_lost_no_number_comes_out(name: str, center_votes: bool) -> None:
    """And not zeros, as which a run would go on that has diverged."""
    screen, lost = SCREENS[name], np.full((9, 5), math.nan)
    if isinstance(screen, NearestNeighbors) and not center_votes:
        pytest.skip("between peers alone")
    found = screen.apply(votes_of(lost[0], lost[1:], np.full(8, 1 / 9), center_votes), 1)
    assert not found.vector.isfinite().any()


@pytest.mark.parametrize("attackers", [0, 1, 2, 5])
def test_no_screen_asks_for_fewer_vectors_than_mixing_does(attackers: int) -> None:
    """A majority that is honest, n > 2b, or some honest vector's mean would have an attacker in it."""
    assert all(screen.ranked(attackers) > 2 * attackers for screen in PLAIN)


@pytest.mark.parametrize("name", ["nearest-neighbors", f"median{MIXED}"])
def test_who_is_there_and_lost_is_nearer_than_who_is_not_there(name: str) -> None:
    """Of six others four hold no numbers, which are more than are stood: no number comes out, and not the absents'."""
    center, others = np.zeros(5), np.ones((6, 5))
    others[2:] = math.nan
    found = SCREENS[name].apply(votes_of(center, others, np.full(6, 1 / 7), center_votes=True, missing=3), 1)
    assert found.vector.isnan().all()


def test_mixing_by_hand_and_who_has_no_part_is_left_out() -> None:
    """Of numbers on a line the n - b nearest of each are averaged."""
    values = np.array([[0.0], [1.0], [2.0], [4.0], [100.0]])
    assert mixed(values, 1)[:, 0].tolist() == [1.75, 1.75, 1.75, 1.75, 26.75]
    one = Krum(nearest_neighbor_mixing=True).apply(votes_of(np.zeros(1), values, np.full(5, 0.2), False), 1)
    assert one.vector.tolist() == [1.75]
    assert one.dropped.tolist() == [0, 0, 0, 0, 1]
    # With b = 2 the means are 1, 1, 2, 3, 3; clipped at 2, the last two count two thirds.
    line, clipping = np.arange(5.0)[:, None], CenteredClipping(nearest_neighbor_mixing=True)
    assert mixed(line, 2)[:, 0].tolist() == [1, 1, 2, 3, 3]
    part = clipping.apply(votes_of(np.zeros(1), line, np.full(5, 0.2), False), 2)
    assert part.vector.tolist() == pytest.approx([8 / 5])
    assert part.dropped.tolist() == pytest.approx([7 / 13, 4 / 13, 0, 6 / 13, 9 / 13])


def test_without_attackers_mixing_makes_every_screen_the_plain_mean() -> None:
    """All are each other's neighbors with b = 0, so that all means are equal."""
    draw = generator(0, "all near")
    center, others = draw.normal(size=20), draw.normal(size=(6, 20))
    whole = np.vstack([center, others]).mean(axis=0)
    for name, screen in SCREENS.items():
        if name.endswith(MIXED):
            found = screen.apply(votes_of(center, others, np.full(6, 1 / 7), center_votes=True), 0)
            np.testing.assert_allclose(found.vector.numpy(), whole, rtol=0, atol=1e-6)
            assert found.dropped.tolist() == [0.0] * 6


def test_without_attackers_the_trimmed_mean_is_d_asgd_of_equal_weights_to_the_bit() -> None:
    draw = generator(0, "plain")
    for number in range(1, 9):
        own, reads = inputs_of(draw, number, 70_000)
        _, expected = DASGD().step((), own, reads)
        _, update = Bridge(attackers=0).step((), own, reads)
        assert torch.equal(update.weights, expected.weights)
        assert update.of_neighbors["screened"].tolist() == [0.0] * number


def inputs_of(draw: np.random.Generator, number: int, size: int, late: int = 0) -> tuple[Own, Reads]:
    """Return an agent's inputs with equal mixing weights, where the last neighbors are late."""

    def vector(scale: float = 1.0) -> torch.Tensor:
        return torch.from_numpy(scale * draw.standard_normal(size, dtype=np.float32))

    share, x = torch.tensor(1 / (number + 1)), vector()
    staleness = torch.tensor([0.0] * (number - late) + [float(3 + k) for k in range(late)])
    own = Own(x, vector(), share, torch.tensor(0.1), {"lambda_0": torch.tensor(0.04)})
    each = range(number)
    reads = Reads(
        tuple(x + vector(0.1) for _ in each),
        tuple(vector() for _ in each),
        tuple(vector(0.01) for _ in each),
        share.expand(number),
        staleness,
        staleness,
        staleness == 0,
    )
    return own, reads


@pytest.mark.parametrize("attackers", [1, 3])
def test_too_few_neighbors_leave_the_local_step_and_it_says_so(attackers: int) -> None:
    draw = generator(0, "few")
    for screen in SCREENS.values():
        rule = Bridge(screen=screen, attackers=attackers)
        least = screen.least(attackers, center_votes=True)
        own, reads = inputs_of(draw, least, 20)
        _, enough = rule.step((), own, reads)
        assert enough.measures["alone"] == 0
        assert isinstance(screen, Krum) or (enough.of_neighbors["screened"] < 1).any()
        mixing = torch.where(torch.arange(least) == 0, 0.0, reads.mixing)
        _, few = rule.step((), own, reads._replace(mixing=mixing))
        assert few.measures["alone"] == 1
        assert torch.equal(few.weights, own.weights - own.step_size * own.direction)
        assert few.of_neighbors["screened"].tolist() == [1.0] * least


def test_late_neighbors_are_left_out_or_judged_by_what_they_are_predicted_to_be() -> None:
    """With ``predict``, as p-asgd predicts; with equal weights and b = 0, bridge is p-asgd but for rounding."""
    own, reads = inputs_of(generator(0, "late"), 6, 50, late=2)
    clipped = Bridge(screen=Median(), late="clip").step((), own, reads)[1]
    in_time = reads._replace(mixing=torch.where(reads.reliable, reads.mixing, 0.0))
    assert torch.equal(clipped.weights, Bridge(screen=Median()).step((), own, in_time)[1].weights)
    for prediction, compensation in [("direction", None), ("direction", "relative"), ("own-drift", None)]:
        settings = {"prediction": prediction, "compensation": compensation}
        _, expected = PASGD(**settings).step((), own, reads)  # type: ignore[arg-type]
        _, update = Bridge(attackers=0, late="predict", **settings).step((), own, reads)  # type: ignore[arg-type]
        torch.testing.assert_close(update.weights, expected.weights, rtol=0, atol=2e-6)
    kept = Bridge(attackers=0).step((), own, reads)[1]
    assert (kept.weights - update.weights).abs().max() > 1e-3


def test_a_prediction_is_the_paper_s_formula_number_by_number() -> None:
    """``p = x_k - eta tau (u_k + lambda u_k .* u_k .* drift)``; Krum returns one of them as it is."""
    own, reads = inputs_of(generator(1, "late"), 8, 30, late=8)
    own = own._replace(weights=own.weights + 50)  # lest Krum choose the agent's own, which is not predicted
    _, update = Bridge(screen=Krum(), attackers=2, late="predict").step((), own, reads)
    predictions = [
        x.numpy().astype(float)
        - 0.1 * tau * (u.numpy().astype(float) + 0.04 * u.numpy().astype(float) ** 2 * drift.numpy().astype(float))
        for x, u, drift, tau in zip(reads.weights, reads.directions, reads.drift, reads.staleness.tolist(), strict=True)
    ]
    x, u = own.weights.numpy().astype(float), own.direction.numpy().astype(float)
    expected = krum(x, np.array(predictions), 2, np.ones(8)) - 0.1 * u
    np.testing.assert_allclose(update.weights.numpy(), expected, rtol=0, atol=1e-5)


def test_prediction_keeps_a_late_honest_neighbor_that_a_screen_would_drop() -> None:
    """All agents go straight to one minimum; who is late lies behind, as an attacker would."""
    direction = torch.ones(40)
    draw = generator(0, "behind")
    noise = [torch.from_numpy(0.02 * draw.standard_normal(40, dtype=np.float32)) for _ in range(6)]
    staleness = torch.tensor([0.0, 0, 0, 0, 10, 10])
    own = Own(torch.zeros(40), direction, torch.tensor(1 / 7), torch.tensor(0.1), {"lambda_0": torch.tensor(0.0)})
    at = tuple(0.1 * float(tau) * direction + own_noise for tau, own_noise in zip(staleness, noise, strict=True))
    nothing = (torch.zeros(40),) * 6
    reads = Reads(at, (direction,) * 6, nothing, torch.full((6,), 1 / 7), staleness, staleness, staleness == 0)
    late_ones: tuple[Literal["keep", "predict"], ...] = ("keep", "predict")
    steps = {late: Bridge(screen=NearestNeighbors(), attackers=2, late=late).step((), own, reads) for late in late_ones}
    dropped = {late: update.of_neighbors["screened"] for late, (_, update) in steps.items()}
    assert dropped["keep"].tolist() == [0, 0, 0, 0, 1, 1]
    assert dropped["predict"][4:].sum() < 2
    assert math.isclose(float(dropped["predict"].sum()), 2)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"reach": 5}, "reach = 5: allowed with late = 'keep' is the default"),
        ({"late": "clip", "oldest_age": 3}, "oldest_age = 3: allowed with late = 'clip' is the default"),
        ({"bounded": True}, "bounded = True: allowed with late = 'keep' is the default"),
    ],
)
def test_settings_of_a_prediction_that_there_is_not_are_refused(values: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match="allowed with late") as caught:
        Bridge(**values)  # type: ignore[arg-type]
    assert told in str(caught.value)


def test_every_screen_is_tested_here() -> None:
    union = get_args(get_args(AnyScreen)[0])
    assert {type(screen) for screen in SCREENS.values()} == set(union)
