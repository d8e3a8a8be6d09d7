"""What a server waits for: arrivals go in, decisions come out."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_pcasgd.rules.gatherer import Arrival, Gatherer, Position
from tests.unit.rules.test_gathering import gathering, wanted_k


def gatherer(value: Any, num_workers: int = 4) -> Gatherer:
    return Gatherer(gathering(value), num_workers)


def arrival(worker: int, version: int = 1, round_: int = 0, computed_at: int | None = None) -> Arrival:
    return Arrival(worker, version, round_ if computed_at is None else computed_at, round_)


def workers_of(taken: tuple[Arrival, ...]) -> list[int]:
    return [one.worker for one in taken]


@pytest.mark.parametrize(
    ("value", "k"),
    [
        ("sync", 4),
        ("asgd", 1),
        ({"name": "k-sync", "k": 3}, 3),
        ({"name": "k-batch-sync", "k": 3}, 3),
        ({"name": "k-async", "k": 2}, 2),
        ({"name": "k-batch-async", "k": 2}, 2),
        ({"name": "n-softsync", "n": 1}, 4),
        ({"name": "n-softsync", "n": 2}, 2),
        ({"name": "n-softsync", "n": 3}, 1),
        ({"name": "n-softsync", "n": 4}, 1),
        ({"name": "adasync", "initial_k": 2, "every_seconds": 1}, 2),
    ],
)
def test_an_update_is_due_with_the_k_th_gradient_and_takes_them_in_order(value: Any, k: int) -> None:
    own = gatherer(value)
    order = [2, 0, 3, 1]
    for place, worker in enumerate(order):
        assert own.version == place // k
        assert own.arrive(arrival(worker, version=1, round_=own.version))
        taken = own.take()
        assert workers_of(taken) == (order[place + 1 - k : place + 1] if (place + 1) % k == 0 else [])
    assert own.take() == ()


@pytest.mark.parametrize("name", ["k-sync", "k-batch-sync"])
def test_what_was_begun_before_an_update_comes_too_late(name: str) -> None:
    own = gatherer({"name": name, "k": 2})
    assert own.arrive(arrival(0))
    assert own.arrive(arrival(3))
    assert workers_of(own.take()) == [0, 3]
    assert not own.arrive(arrival(1))
    assert own.take() == ()
    # Computed at an older version, as links in steps have it, but begun after the update: it counts.
    assert own.arrive(arrival(1, version=2, round_=1, computed_at=0))
    assert own.arrive(arrival(0, version=2, round_=1))
    assert [one.computed_at for one in own.take()] == [0, 1]
    assert own.version == 2


@pytest.mark.parametrize("value", [{"name": "k-async", "k": 2}, {"name": "k-batch-async", "k": 2}, "asgd", "sync"])
def test_without_cancelling_a_late_gradient_counts(value: Any) -> None:
    own = gatherer(value)
    while own.version < 3:
        for worker in range(4):
            own.arrive(arrival(worker, version=own.version + 1, round_=own.version))
            own.take()
    assert own.arrive(arrival(1, version=9, round_=0))
    assert own.waiting[-1].computed_at == 0


def test_one_worker_fills_several_places_in_batch_policies() -> None:
    own = gatherer({"name": "k-batch-async", "k": 3})
    own.arrive(arrival(2, version=1))
    own.arrive(arrival(2, version=2))
    own.arrive(arrival(0, version=1))
    assert [one[:2] for one in own.take()] == [(2, 1), (2, 2), (0, 1)]


@pytest.mark.parametrize("name", ["k-batch-async", "k-batch-sync"])
def test_where_nobody_waits_an_update_may_take_more_gradients_than_there_are_workers(name: str) -> None:
    own = gatherer({"name": name, "k": 5}, num_workers=2)
    own.lose(1)
    for version in range(1, 5):
        own.arrive(arrival(0, version))
        assert own.take() == ()
    own.arrive(arrival(0, 5))
    assert len(own.take()) == 5


def test_a_cancelling_policy_forgets_what_is_left_over_and_others_keep_it() -> None:
    for name, left in (("k-batch-sync", []), ("k-batch-async", [3])):
        own = gatherer({"name": name, "k": 2})
        for worker in (1, 2, 3):
            own.arrive(arrival(worker))
        assert workers_of(own.take()) == [1, 2]
        assert workers_of(tuple(own.waiting)) == left


def test_a_lost_worker_is_not_waited_for() -> None:
    own = gatherer("sync", num_workers=3)
    own.arrive(arrival(0))
    own.arrive(arrival(2))
    assert own.take() == ()
    own.lose(1)
    assert workers_of(own.take()) == [0, 2]
    own.lose(0)
    own.lose(2)
    assert own.k == 1
    small = gatherer({"name": "k-async", "k": 2}, num_workers=4)
    small.lose(3)
    assert small.k == 2


@pytest.mark.parametrize(
    "value", ["sync", {"name": "quorum", "k": 3, "grace_seconds": 2.0}, {"name": "k-sync", "k": 3}]
)
def test_what_a_lost_worker_has_delivered_stands_for_nobody_else(value: Any) -> None:
    own = gatherer(value, num_workers=3)
    own.arrive(arrival(0))
    own.lose(0)
    own.arrive(arrival(1))
    assert own.take() == ()  # worker 2 is there
    own.arrive(arrival(2))
    assert workers_of(own.take()) == [0, 1, 2]
    assert own.k == 2


@pytest.mark.parametrize("name", ["k-async", "k-batch-async"])
def test_where_workers_wait_one_that_is_back_does_not_deliver_twice_for_an_update(name: str) -> None:
    own = gatherer({"name": name, "k": 2}, num_workers=3)
    own.arrive(arrival(0))
    own.lose(0)
    own.gain(0)
    own.arrive(arrival(0, version=3))
    assert [one[:2] for one in own.take()] == ([] if name == "k-async" else [(0, 1), (0, 3)])
    own.arrive(arrival(1))
    assert [one[:2] for one in own.take()] == ([(0, 3), (1, 1)] if name == "k-async" else [])


def test_a_quorum_s_update_takes_all_that_have_come_by_the_end_of_its_grace() -> None:
    own = gatherer({"name": "quorum", "k": 2, "grace_seconds": 3.0})
    for worker in (3, 0, 1):
        assert not own.is_in_grace or len(own.waiting) >= 2
        own.arrive(arrival(worker))
        assert own.take() == ()
    assert own.is_in_grace
    own.end_grace()
    assert workers_of(own.take()) == [3, 0, 1]
    # The next update has a grace of its own, which is over at once when all have come.
    for version in (1, 2):
        for worker in range(4):
            assert own.take() == ()
            own.arrive(arrival(worker, version + 1))
        assert len(own.take()) == 4
    assert own.version == 3


def test_a_lost_worker_is_not_waited_for_in_a_grace_either() -> None:
    own = gatherer({"name": "quorum", "k": 2, "grace_seconds": 3.0}, num_workers=3)
    own.arrive(arrival(0))
    own.arrive(arrival(2))
    assert own.take() == ()
    own.lose(1)
    assert workers_of(own.take()) == [0, 2]


def test_a_worker_that_is_back_is_waited_for_again() -> None:
    own = gatherer("sync", num_workers=3)
    for worker in range(3):
        own.lose(worker)
    assert own.k == 1
    for present in (1, 2, 3):
        own.gain(present - 1)
        assert own.k == present


def adaptive(base: str = "k-async", num_workers: int = 8, every: float = 10.0) -> Gatherer:
    return gatherer({"name": "adasync", "base": base, "every_seconds": every}, num_workers)


def feed(own: Gatherer, worker: int, version: int, loss: float) -> None:
    own.tell(worker, version, loss)
    own.arrive(arrival(worker, version, own.version))
    own.take()


def test_k_is_set_anew_when_it_is_due_from_the_losses_since_then() -> None:
    own = adaptive("k-batch-async")
    feed(own, 0, 1, 6.0)
    feed(own, 1, 1, 10.0)
    assert own.adapt(9.9)
    assert own.k == 1
    # F(w_0) = 8 = F(w): K stays. Then 8 / 2: K = sqrt(4).
    assert own.adapt(10.0)
    assert own.k == 1
    feed(own, 0, 2, 1.0)
    feed(own, 0, 3, 3.0)
    assert own.adapt(19.9)
    assert own.k == 1
    assert own.adapt(20.0)
    assert own.k == 2
    # Nothing has come since: K stays; and it stays where the loss rises again.
    assert own.adapt(45.0)
    assert own.k == 2
    feed(own, 1, 2, 100.0)
    assert own.adapt(50.0)
    assert own.k == 2
    # A loss of 0: all workers.
    feed(own, 1, 3, 0.0)
    assert own.adapt(60.0)
    assert own.k == 8


def test_the_first_loss_of_every_worker_counts_as_the_loss_at_the_start() -> None:
    own = adaptive("k-batch-async")
    feed(own, 0, 1, 4.0)
    assert own.adapt(10.0)
    feed(own, 1, 1, 12.0)  # comes in a later interval, and raises F(w_0) to 8
    feed(own, 0, 2, 0.0)
    feed(own, 0, 3, 0.0)
    feed(own, 0, 4, 0.0)
    feed(own, 0, 5, 0.0)
    feed(own, 0, 6, 0.0)  # the mean since then: 2
    assert own.adapt(20.0)
    assert own.k == 2


def test_k_waits_for_the_losses_of_what_has_arrived() -> None:
    own = adaptive("k-batch-async")
    own.arrive(arrival(0, 1))
    own.arrive(arrival(1, 1))
    own.tell(0, 1, 4.0)
    assert own.adapt(5.0)
    assert not own.adapt(10.0)
    own.tell(1, 1, 4.0)
    assert own.adapt(10.0)
    assert own.adapt(10.0)


@settings(max_examples=100)
@given(
    losses=st.lists(st.floats(1e-3, 10), min_size=6, max_size=6),
    shuffled=st.permutations(range(6)),
    early=st.integers(0, 6),
    base=st.sampled_from(("k-async", "k-batch-async")),
)
def test_the_order_in_which_losses_are_told_changes_nothing(
    losses: list[float], shuffled: list[int], early: int, base: str
) -> None:
    """Planned runs learn losses in whatever order rows are executed, some before their gradients have arrived."""
    keys = [(worker, version) for version in (1, 2) for worker in range(3)]
    found = []
    for order, told_first in ((list(range(6)), 0), (shuffled, early)):
        own = adaptive(base, every=1.0)
        for place in order[:told_first]:
            own.tell(*keys[place], losses[place])
        for half in (0, 1):
            for worker, version in keys[3 * half : 3 * half + 3]:
                own.arrive(arrival(worker, version, own.version))
                own.take()
            for place in order[told_first:]:
                if place // 3 == half:
                    own.tell(*keys[place], losses[place])
            assert own.adapt(half + 1.0)
            found.append((half, own.k))
    assert found[:2] == found[2:]


def test_losses_of_gradients_that_came_too_late_do_not_count() -> None:
    own = adaptive("k-batch-sync", num_workers=4)
    feed(own, 0, 1, 4.0)
    assert own.version == 1
    own.tell(1, 1, 1000.0)
    assert not own.arrive(arrival(1, 1, 0))
    feed(own, 0, 2, 4.0)
    assert own.adapt(10.0)
    feed(own, 0, 3, 1.0)
    assert own.adapt(20.0)
    # 4 / 1 = 4, and not 502 / 1.
    assert own.k == 2


@settings(max_examples=100)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.floats(0.01, 10), st.floats(0, 4)), max_size=40),
    st.integers(0, 40),
)
def test_one_that_goes_on_from_a_state_comes_to_the_same_k(told: list[tuple[int, float, float]], place: int) -> None:
    """Of what had not been taken, the losses have been told; only the gradients are lost."""
    whole, now, ks = adaptive(num_workers=4, every=5.0), 0.0, []
    for number, (worker, loss, seconds) in enumerate(told):
        if number == place:
            following = adaptive(num_workers=4, every=5.0)
            following.restore(whole.state())
            whole = following
        now += seconds
        feed(whole, worker, number + 1, loss)
        whole.adapt(now)
        whole.waiting = []
        ks.append(whole.k)
    assert ks == slow_ks(told)


def slow_ks(told: list[tuple[int, float, float]]) -> list[int]:
    """Return K after each loss: four workers, K-async, set anew every 5 s."""
    first: dict[int, float] = {}
    since: list[float] = []
    now, due, k, ks = 0.0, 5.0, 1, []
    for worker, loss, seconds in told:
        now += seconds
        first.setdefault(worker, loss)
        since.append(loss)
        while now >= due:
            if since:
                before = math.fsum(first.values()) / len(first)
                ratio = before / (math.fsum(since) / len(since))
                k = max(k, round(min(wanted_k("k-async", 1, 4, ratio), 4)))
                since = []
            due += 5.0
        ks.append(k)
    return ks


def test_k_does_not_rise_above_the_workers_that_are_left() -> None:
    own = adaptive("k-async", num_workers=4)
    feed(own, 0, 1, 4.0)
    assert own.adapt(10.0)
    own.lose(3)
    feed(own, 0, 2, 0.0)
    assert own.adapt(20.0)
    assert own.k == 3


@given(
    every=st.sampled_from([0.1, 1 / 3, 1.0, 7.5]),
    arrivals=st.lists(st.tuples(st.floats(0.01, 30), st.floats(0.1, 2)), min_size=1, max_size=12),
)
def test_intervals_without_losses_are_passed_over_one_by_one(every: float, arrivals: list[tuple[float, float]]) -> None:
    """Whatever the rounding of sums: an interval ends where it would if each had been looked at by itself."""
    own = adaptive(every=every)
    due, now = every, 0.0
    for version, (gap, loss) in enumerate(arrivals, 1):
        feed(own, 0, version, loss)
        now += gap
        assert own.adapt(now)
        while due <= now:
            due += every
        assert own.state()["adaptive"]["due"] == due


@pytest.mark.parametrize("every", [1e-9, 0.0005])
@pytest.mark.parametrize("now", [1.0, 3e3, 1e9, 1e170])
def test_intervals_far_shorter_than_the_time_between_gradients_take_no_time(every: float, now: float) -> None:
    own = adaptive(every=every)
    feed(own, 0, 1, 2.0)
    assert own.adapt(now)
    assert now < own.state()["adaptive"]["due"] <= now + max(2 * every, 1e-9 * now)
    assert own.adapt(now)


@settings(max_examples=50)
@given(advances=st.lists(st.integers(1, 4), max_size=30), num_workers=st.integers(1, 4), steps=st.integers(-1, 9))
def test_positions(advances: list[int], num_workers: int, steps: int) -> None:
    position = Position((2,) * num_workers)
    for count in advances:
        position.advance([0] * count)
    at_version = [2 * sum(advances[:version]) // num_workers for version in range(len(advances) + 1)]
    assert position.steps == at_version[-1]
    old = [version for version, at in enumerate(at_version) if steps <= 0 or at <= at_version[-1] - steps]
    assert position.version_before(steps) == max(old, default=0)
