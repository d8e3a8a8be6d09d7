from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_pcasgd.base.randomness import generator
from ray_pcasgd.schedule.barrier import AllBarrier, Barrier, BoundedBarrier, NoBarrier, Proceed, SampledBarrier, WaitFor
from tests.speed import examples

NEWEST = st.dictionaries(st.integers(0, 9), st.integers(0, 12), max_size=6)


def decide(barrier: Barrier, step: int, newest: dict[int, int], seed: int = 0) -> Proceed | WaitFor:
    return barrier.decide(step, newest, generator(seed, "barrier", 0))


def test_none_never_waits_and_reads_everything() -> None:
    assert decide(NoBarrier(), 5, {1: 0, 2: 9}) == Proceed(frozenset())


def test_all_waits_for_the_own_step_and_caps_at_it() -> None:
    assert decide(AllBarrier(), 5, {1: 4, 2: 5, 3: 0}) == WaitFor({1: 5, 3: 5})
    assert decide(AllBarrier(), 5, {1: 5, 2: 9}) == Proceed(frozenset({1, 2}))


def test_bounded_waits_for_who_is_too_far_behind_and_caps_nothing() -> None:
    assert decide(BoundedBarrier(staleness=2), 5, {1: 2, 2: 3, 3: 9}) == WaitFor({1: 3})
    assert decide(BoundedBarrier(staleness=2), 5, {1: 3, 2: 9}) == Proceed(frozenset())


@pytest.mark.parametrize("barrier", [NoBarrier(), AllBarrier(), BoundedBarrier(staleness=0), SampledBarrier(beta=2)])
def test_a_lone_agent_proceeds(barrier: Barrier) -> None:
    assert decide(barrier, 3, {}) == Proceed(frozenset())


@examples(40, 100)
@given(st.integers(0, 12), NEWEST, st.integers(0, 8), st.integers(0, 100))
def test_sampled_applies_its_base_to_beta_neighbors(step: int, newest: dict[int, int], beta: int, seed: int) -> None:
    for base in (AllBarrier(), BoundedBarrier(staleness=2)):
        decision = decide(SampledBarrier(beta=beta, base=base), step, newest, seed)
        needed = step - (2 if isinstance(base, BoundedBarrier) else 0)
        behind = {k for k, version in newest.items() if version < needed}
        if isinstance(decision, WaitFor):
            assert decision.versions == dict.fromkeys(decision.versions, needed)
            assert set(decision.versions) <= behind
            assert 0 < len(decision.versions) <= beta
        else:
            drawn = min(beta, len(newest))
            assert drawn <= len(newest) - len(behind)
            assert len(decision.capped) == (drawn if isinstance(base, AllBarrier) else 0)
            assert not decision.capped & behind
        if beta == 0:
            assert decision == Proceed(frozenset())
        if beta >= len(newest):
            assert decision == decide(base, step, newest)


def test_sampled_draws_afresh_and_evenly() -> None:
    draws = generator(0, "barrier", 0)
    newest = dict.fromkeys((1, 4, 5, 8), 7)
    counts: Counter[int] = Counter()
    pairs = set()
    for _ in range(1200):
        decision = SampledBarrier(beta=2).decide(7, newest, draws)
        assert isinstance(decision, Proceed)
        counts.update(decision.capped)
        pairs.add(decision.capped)
    assert len(pairs) == 6
    assert all(540 < counts[k] < 660 for k in newest)


def test_sampled_does_not_depend_on_the_order_of_the_neighbors() -> None:
    forwards, backwards = {1: 0, 2: 7, 3: 0, 4: 7}, {4: 7, 3: 0, 2: 7, 1: 0}
    for seed in range(20):
        barrier = SampledBarrier(beta=2)
        assert decide(barrier, 7, forwards, seed) == decide(barrier, 7, backwards, seed)
