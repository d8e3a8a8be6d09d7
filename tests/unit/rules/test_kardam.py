"""Kardam against a slow reference in float64, and what its filters hold; and screens at servers."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ray_pcasgd.base.randomness import generator
from ray_pcasgd.rules.correction import Late
from ray_pcasgd.rules.kardam import Kardam
from ray_pcasgd.rules.parameter_server import ParameterServer
from ray_pcasgd.rules.screens import NearestNeighbors
from ray_pcasgd.rules.server import Delivered, described
from tests.references.kardam import SlowKardam
from tests.references.screens import screened
from tests.unit.rules.test_screens import SCREENS

Array = NDArray[np.float64]
ETA = 0.05
SIZE = 6


def served(
    rule: Kardam, workers: int, seed: int, steps: int, noise: float, liars: int = 0, fresh: bool = False, stay: int = 0
) -> list[tuple[int, str]]:
    """Return which worker delivered, and what became of its gradient; asserts that the reference says the same.

    The loss is a quadratic; workers are of different speed, and liars send noise of their own. Where it is given, only
    so many workers ``stay`` for the steps in the middle.
    """
    draw = generator(seed, "kardam")
    curvature = draw.uniform(0.5, 1.5, size=SIZE)
    slow = SlowKardam(workers, rule.attackers, rule.window, SIZE)
    x = draw.normal(size=SIZE)
    computed_at, version = [(x, 0)] * workers, 0
    state = rule.init(torch.from_numpy(x), workers)
    speeds = draw.dirichlet(np.full(workers, 3.0))
    found = []
    for step in range(steps):
        there = stay if stay and steps // 3 <= step < 2 * steps // 3 else workers
        worker = int(draw.choice(there, p=speeds[:there] / speeds[:there].sum()))
        at, begun = (x, version) if fresh else computed_at[worker]
        gradient = curvature * at + noise * draw.normal(size=SIZE)
        if worker < liars:
            gradient = 20 * draw.normal(size=SIZE)
        numbers = (torch.tensor(float(value)) for value in (version - begun, ETA, workers))
        tau, eta, count = numbers
        where = [torch.from_numpy(vector) for vector in (gradient, x - at, x, at)]
        state, corrected = rule.apply(state, worker, Late(where[0], where[1], tau, eta, count, where[2], where[3]))
        accepted = slow.takes(worker, gradient, at, x)
        assert bool(rule.rejected(state)[worker]) == (not accepted)
        assert float(rule.rejected(state).sum()) == (not accepted)
        assert bool(rule.unfiltered(state)) == slow.unfiltered
        expected = math.exp(-0.2 * (version - begun)) * gradient if accepted else np.zeros(SIZE)
        np.testing.assert_allclose(corrected.numpy(), expected, rtol=1e-6, atol=1e-9)
        found.append((worker, "unfiltered" if slow.unfiltered else "accepted" if accepted else "rejected"))
        x, version = x - ETA * corrected.numpy(), version + 1
        computed_at[worker] = x, version
    return found


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_kardam_is_its_reference_and_no_f_workers_are_most_of_what_passes_both(data: st.DataObject) -> None:
    attackers = data.draw(st.integers(0, 2))
    workers = 3 * attackers + data.draw(st.integers(1, 4))
    rule = Kardam(attackers=attackers, window=data.draw(st.integers(1, 4)))
    noise = data.draw(st.sampled_from([0.0, 0.1, 3.0]))
    seed = data.draw(st.integers(0, 10_000))
    liars, stay = data.draw(st.integers(0, attackers)), data.draw(st.sampled_from([0, attackers + 1]))
    found = served(rule, workers, seed, 120, noise, liars, stay=stay)
    accepted = [worker for worker, what in found if what == "accepted"]
    assert accepted
    for place in range(len(accepted) - 2 * attackers):
        part = accepted[place : place + 2 * attackers + 1]
        counts = sorted((part.count(k) for k in range(workers)), reverse=True)
        assert sum(counts[:attackers]) <= attackers


def rejected_share(found: list[tuple[int, str]], liars: int, of_liars: bool) -> float:
    return float(np.mean([what == "rejected" for worker, what in found if (worker < liars) == of_liars]))


def sent_by(workers: Iterable[int], rule: Kardam, number: int, lie: float = 1.0) -> list[tuple[int, str]]:
    """Return what becomes of gradients that all grow alike, which workers send in this order; worker 0 may lie."""
    state, found, one = rule.init(torch.ones(2), number), [], torch.tensor(1.0)
    for step, worker in enumerate(workers):
        x = torch.full((2,), float(step))
        state, moved = rule.apply(
            state, worker, Late(x * (lie if worker == 0 else 1.0), 0 * x, 0 * one, one, one, x, x)
        )
        what = "rejected" if rule.rejected(state)[worker] else "unfiltered" if rule.unfiltered(state) else "accepted"
        assert moved.any() == (what != "rejected" and step > 0)
        found.append((worker, what))
    return found


def test_where_too_few_workers_are_left_training_goes_on_until_one_is_back() -> None:
    """Of four, two are left, where a third of the frequency filter's window has to be others."""
    found = sent_by([0, 1, 2, 3, *[0, 1] * 20, 2, 0, 1, 0, 1], Kardam(attackers=1), 4)
    whats = [what for _, what in found]
    assert whats[:6] == ["accepted"] * 6
    # Each of the two has sent n = 4 by the eighth.
    assert whats[6:13] == ["rejected"] * 7
    assert whats[13:44] == ["unfiltered"] * 31
    # Of the window 2, 1, 0 none is there twice, but for the two that follow.
    assert found[44:47] == [(2, "accepted"), (0, "accepted"), (1, "accepted")]
    assert whats[47:] == ["rejected"] * 2


def test_attackers_alone_never_set_the_frequency_filter_aside() -> None:
    """However often they send between two of the others; nor by what is not finite, nor where nobody else is left."""
    rule = Kardam(attackers=1)
    flood = [worker for honest in [1, 2, 3] * 8 for worker in (*[0] * 100, honest)]
    found = sent_by(flood, rule, 4)
    assert "unfiltered" not in {what for _, what in found}
    passed = [worker for worker, what in found if what == "accepted"]
    assert max(passed[place : place + 3].count(0) for place in range(len(passed))) == 1
    left_alone = sent_by([1, 2, 3, *[0] * 100], rule, 4)
    assert [what for _, what in left_alone[4:]] == ["rejected"] * 99
    with_one = sent_by([1, 2, 3, *[0, 1, 1] * 100], rule, 4, lie=math.nan)
    assert "unfiltered" not in {what for _, what in with_one}
    assert "unfiltered" in {what for _, what in sent_by([1, 2, 3, *[0, 1, 1] * 100], rule, 4)}


def test_it_tells_liars_from_the_honest_where_nobody_is_late_and_hardly_where_all_are() -> None:
    """The Lipschitz filter takes the server's weights for those at which the two gradients were computed.

    The honest are rejected for their frequency, since speeds differ; of liars almost all is rejected, if all is fresh.
    """
    shares = {
        fresh: np.mean(
            [
                [rejected_share(found, 1, of_liars=True), rejected_share(found, 1, of_liars=False)]
                for found in (served(Kardam(attackers=1), 7, seed, 600, 0.1, liars=1, fresh=fresh) for seed in range(3))
            ],
            axis=0,
        )
        for fresh in (True, False)
    }
    assert shares[True][0] > 0.9
    assert shares[True][0] > shares[True][1] + 0.4
    assert shares[False][0] < shares[False][1] + 0.15


@pytest.mark.parametrize("lie", [math.nan, math.inf, 1e30], ids=str)
def test_a_gradient_that_is_not_finite_never_passes_and_is_forgotten(lie: float) -> None:
    """Not the first either, when all others pass, nor after n rejections; the others go on as if it had not come."""
    rule, one = Kardam(attackers=1), torch.tensor(1.0)

    def accepted(lies: bool) -> list[bool]:
        draw, state, found = generator(0, "lies"), rule.init(torch.zeros(SIZE), 4), []
        for step in range(40):
            x = torch.full((SIZE,), 1.0 / (step + 1))
            for worker in range(0 if lies else 1, 4):
                gradient = torch.full((SIZE,), lie) if worker == 0 else x + torch.from_numpy(draw.normal(size=SIZE))
                late = Late(gradient.float(), torch.zeros(SIZE), one, one, one, x, x)
                state, corrected = rule.apply(state, worker, late)
                found.append((worker, not rule.rejected(state)[worker]))
                assert corrected.isfinite().all()
        assert all(tensor.isfinite().all() for tensor in state)
        assert not any(passed for worker, passed in found if worker == 0)
        return [bool(passed) for worker, passed in found if worker]

    assert accepted(lies=True) == accepted(lies=False)
    assert any(accepted(lies=True))


@pytest.mark.parametrize("name", [name for name, screen in SCREENS.items() if not isinstance(screen, NearestNeighbors)])
def test_a_screen_at_a_server_is_its_reference_and_too_few_gradients_move_nothing(name: str) -> None:
    attackers, workers, screen = 1, 9, SCREENS[name]
    rule = ParameterServer(gathering="sync", screen=screen, attackers=attackers)  # type: ignore[arg-type]
    draw = generator(0, "server screens")
    state, center = rule.init(torch.zeros(30), workers), np.zeros(30)
    for _ in range(3):
        gradients = draw.normal(size=(workers, 30)) * np.where(np.arange(workers) < attackers, 100, 1)[:, None]
        delivered = [given_by(worker, gradient) for worker, gradient in enumerate(gradients)]
        state, mean = rule.gather(state, torch.zeros(30), delivered)
        expected = screened(screen, center, gradients, attackers, np.full(workers, 1 / workers), center_votes=False)
        np.testing.assert_allclose(mean.numpy(), expected, rtol=1e-4, atol=1e-4)
        left_out = rule.left_out(state)
        assert left_out is not None
        assert left_out[0] > 0.5
        assert left_out.min() < 1
        center = expected
    few = delivered[: screen.least(attackers, center_votes=False) - 1]
    state, held = rule.gather(state, torch.zeros(30), few)
    left_out = rule.left_out(state)
    assert left_out is not None
    assert left_out.tolist() == [1.0] * len(few) + [0.0] * (workers - len(few))
    np.testing.assert_allclose(held.numpy(), mean.numpy(), atol=1e-4)


def test_what_a_run_is_called_says_that_gradients_are_mixed_first() -> None:
    screen = {"name": "krum", "nearest_neighbor_mixing": True}
    rule = ParameterServer(gathering="sync", screen=screen)  # type: ignore[arg-type]
    assert described(rule) == "server, gathering sync, correction none, screen krum, nearest-neighbor mixing"


def given_by(worker: int, gradient: Array) -> Delivered:
    one = torch.tensor(1.0)
    return Delivered(worker, Late(torch.from_numpy(gradient.astype(np.float32)), torch.zeros(0), one, one, one))


def test_a_worker_that_has_several_gradients_in_an_update_is_left_out_by_their_mean() -> None:
    rule = ParameterServer(gathering={"name": "k-batch-async", "k": 5}, screen="krum")  # type: ignore[arg-type]
    state = rule.init(torch.zeros(2), 3)
    places = [(0, 1.0), (1, 1.1), (0, 1.2), (2, 50.0), (1, 60.0)]
    state, mean = rule.gather(state, torch.zeros(2), [given_by(k, np.full(2, value)) for k, value in places])
    assert mean.tolist() == pytest.approx([1.1, 1.1])
    left_out = rule.left_out(state)
    assert left_out is not None
    assert left_out.tolist() == [1.0, 0.5, 1.0]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"correction": {"name": "kardam", "attackers": 3}}, "correction.attackers = 3: allowed are 0 to 2, below a"),
        ({"gathering": "sync", "correction": "kardam"}, "correction.name = 'kardam': allowed with gathering.name = "),
        (
            {"correction": "kardam", "screen": "median", "attackers": 0},
            "screen.name = 'median': allowed with correction",
        ),
        ({"screen": "median"}, "attackers = 1: with screen.name = 'median' an update takes 3 gradients or more"),
        ({"attackers": 1}, "attackers = 1: allowed with screen = null is null"),
        ({"gathering": "sync", "screen": "nearest-neighbors"}, "screen.name = 'nearest-neighbors': allowed is another"),
        ({"gathering": "malenia", "screen": "median"}, "screen.name = 'median': allowed is null, since gathering.name"),
        ({"gathering": "sync", "screen": "krum", "shards": 2}, "shards = 2: allowed with screen.name = 'krum' is 1"),
        (
            {"gathering": "sync", "screen": {"name": "median", "nearest_neighbor_mixing": True}, "shards": 2},
            "shards = 2: allowed with screen.nearest_neighbor_mixing = true is 1, since it looks at all parameters",
        ),
        ({"gathering": "sync", "screen": "bulyan", "attackers": 2}, "attackers = 2: with screen.name = 'bulyan' an"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_in_one_line(values: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match="allowed") as caught:
        ParameterServer(**values).check(8)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
