"""When a server updates: arrivals in, decisions out."""

import itertools
import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_pcasgd.schedule.gathering import (
    ASGD,
    AdaSync,
    Arrival,
    Gatherer,
    Gathering,
    KAsync,
    KBatchAsync,
    KBatchSync,
    KSync,
    NSoftsync,
    Sync,
)


def arrival(worker: int, version: int = 1, round: int = 0) -> Arrival:
    return Arrival(worker, version, round, round)


def updates(gathering: Gathering, arrivals: list[Arrival], num_workers: int = 4) -> list[list[int]]:
    """Return the workers of each update."""
    gatherer = Gatherer(gathering, num_workers)
    taken = []
    for one in arrivals:
        gatherer.arrive(one)
        if update := gatherer.take():
            taken.append([each.worker for each in update])
    return taken


def test_each_policy_waits_for_its_own_number() -> None:
    each_once = [arrival(worker) for worker in (2, 0, 3, 1)]
    assert updates(Sync(), each_once) == [[2, 0, 3, 1]]
    assert updates(ASGD(), each_once) == [[2], [0], [3], [1]]
    assert updates(KAsync(k=2), each_once) == [[2, 0], [3, 1]]
    assert updates(KBatchAsync(k=3), each_once) == [[2, 0, 3]]
    assert updates(NSoftsync(n=2), each_once) == [[2, 0], [3, 1]]
    assert updates(NSoftsync(n=3), each_once) == [[2], [0], [3], [1]]


def test_n_softsync_with_n_workers_updates_on_each_gradient_and_one_learner_may_fill_two_slots() -> None:
    """Section 4, point 4."""
    assert updates(NSoftsync(n=4), [arrival(1, 1), arrival(1, 2)]) == [[1], [1]]
    assert updates(NSoftsync(n=2), [arrival(1, 1), arrival(1, 2)]) == [[1, 1]]


@pytest.mark.parametrize("gathering", [KSync(k=2), KBatchSync(k=2)])
def test_what_was_begun_before_an_update_is_too_late_where_it_cancels(gathering: Gathering) -> None:
    gatherer = Gatherer(gathering, 4)
    assert gatherer.arrive(arrival(0))
    assert gatherer.arrive(arrival(1))
    assert [one.worker for one in gatherer.take()] == [0, 1]
    assert not gatherer.arrive(arrival(2, round=0))
    assert gatherer.arrive(arrival(3, round=1))
    assert [one.worker for one in gatherer.waiting] == [3]


def test_what_is_left_over_stays_unless_the_update_cancels_it() -> None:
    for gathering, left in ((KAsync(k=2), [2]), (KSync(k=2), [])):
        gatherer = Gatherer(gathering, 4)
        for worker in range(3):
            gatherer.arrive(arrival(worker))
        gatherer.take()
        assert [one.worker for one in gatherer.waiting] == left


def test_a_lost_worker_is_not_waited_for() -> None:
    gatherer = Gatherer(Sync(), 3)
    gatherer.arrive(arrival(0))
    gatherer.arrive(arrival(2))
    assert gatherer.take() == ()
    gatherer.lose()
    assert [one.worker for one in gatherer.take()] == [0, 2]


@pytest.mark.parametrize(
    ("gathering", "words"),
    [
        (KSync(k=5), "k = 5: allowed are 1 to the number of workers, 4"),
        (NSoftsync(n=5), "n = 5: allowed are 1 to the number of workers, 4"),
        (AdaSync(initial_k=4, every_seconds=1), "initial_k = 4: allowed are values below the number of workers, 4"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(gathering: Gathering, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        gathering.check(4)


@given(
    base=st.sampled_from(["k-sync", "k-batch-sync", "k-async", "k-batch-async"]),
    workers=st.integers(2, 40),
    data=st.data(),
    ratio=st.floats(0.01, 1e6),
)
def test_adasync_solves_its_equation(base: Any, workers: int, data: Any, ratio: float) -> None:
    first = data.draw(st.integers(1, workers - 1))
    policy = AdaSync(base=base, initial_k=first, every_seconds=1)
    chosen = policy.adapted(workers, first, ratio)
    if "batch" in base:
        exact = min(workers, first * math.sqrt(ratio))
    else:
        # By bisection on K^2 / (P - K), which rises from 0 to infinity.
        wanted = ratio * first**2 / (workers - first)
        low, high = 0.0, float(workers)
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if middle**2 < wanted * (workers - middle) else (low, middle)
        exact = low
    assert abs(chosen - max(first, exact)) <= 0.5 + 1e-6
    assert first <= chosen <= workers


def test_adasync_never_falls_and_takes_a_vanishing_loss_for_all_workers() -> None:
    policy = AdaSync(base="k-async", initial_k=1, every_seconds=1)
    assert policy.adapted(8, 5, 0.5) == 5
    assert policy.adapted(8, 1, math.inf) == 8
    assert AdaSync(base="k-batch-async", every_seconds=1).adapted(8, 1, math.inf) == 8


def test_adasync_asks_for_losses_and_takes_them_in_any_order() -> None:
    losses = {(worker, version): 4.0 / version for worker in range(4) for version in (1, 2, 3)}
    chosen = set()
    for order in itertools.islice(itertools.permutations(losses), 0, 20_000_000, 2_000_000):
        gatherer = Gatherer(AdaSync(base="k-batch-async", initial_k=1, every_seconds=10), 4)
        for key in losses:
            gatherer.arrive(Arrival(*key, 0, 0))
            gatherer.take()
        assert gatherer.adapt(9.9)
        assert gatherer.k == 1
        shuffled = random.Random(str(order)).sample(list(losses), len(losses))
        for key in shuffled[:-1]:
            gatherer.tell(*key, losses[key])
        assert not gatherer.adapt(10.0)
        gatherer.tell(*shuffled[-1], losses[shuffled[-1]])
        assert gatherer.adapt(10.0)
        chosen.add(gatherer.k)
    # F(w_0) = 4, the mean of all is 4 (1 + 1/2 + 1/3) / 3, and the root of their ratio rounds to 1.
    assert chosen == {round(math.sqrt(3 / (1 + 1 / 2 + 1 / 3)))}


def test_adasync_keeps_k_where_nothing_has_come() -> None:
    gatherer = Gatherer(AdaSync(base="k-async", initial_k=2, every_seconds=1), 4)
    assert gatherer.adapt(5.5)
    assert gatherer.k == 2
