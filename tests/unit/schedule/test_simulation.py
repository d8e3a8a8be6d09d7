"""What all planners rest on: events in their order, messages that keep theirs, gradients one after another."""

from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from ray_pcasgd.schedule.delays import ComputeTimes, LinkDelay
from ray_pcasgd.schedule.laws import Law
from ray_pcasgd.schedule.simulation import Calendar, Channel, Computing, Timing, row_times

SECOND = 1_000_000_000


def law(value: Any) -> Any:
    return TypeAdapter(Law).validate_python(value)


def timing(compute: Any = 1.0, links: tuple[LinkDelay, ...] = (), seed: int = 0) -> Timing:
    return Timing(num_steps=1, compute=ComputeTimes(law=law(compute)), links=links, clusters=(0, 0), seed=seed)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 2)), max_size=30))
def test_events_come_by_moment_then_by_rank_then_as_they_were_entered(entered: list[tuple[int, int, int]]) -> None:
    calendar = Calendar[int]()
    for place, (moment, *rank) in enumerate(entered):
        calendar.enter(moment, place, *rank)
    # Sorting is stable.
    order = sorted(range(len(entered)), key=lambda place: entered[place])
    assert list(iter(calendar.pop, None)) == [(entered[place][0], place) for place in order]


@given(st.integers(0, 1000), st.lists(st.integers(0, 2 * SECOND), min_size=2, max_size=20))
def test_messages_arrive_in_the_order_in_which_they_were_sent(seed: int, gaps: list[int]) -> None:
    channel = Channel(timing(links=(LinkDelay(delay=law("exponential(3s)")),), seed=seed), 0, 1)
    now, arrivals = 0, []
    for version, gap in enumerate(gaps):
        now += gap
        arrivals.append(channel.send(version, now)[1])
        assert arrivals[-1] >= now
    assert all(before <= after for before, after in pairwise(arrivals))


def test_a_message_takes_the_links_latency_and_is_held_back_by_its_steps() -> None:
    links = (LinkDelay(delay=law(0.25), unit="seconds"), LinkDelay(delay=law(3), unit="steps"))
    channel = Channel(timing(links=links), 0, 1)
    assert channel.send(0, SECOND)[1] == SECOND + SECOND // 4
    assert channel.hold_steps(0, SECOND) == 3


def test_gradients_of_several_batches_take_as_long_as_one_after_another() -> None:
    one, three = (Computing(timing("exponential(1s)"), 0) for _ in range(2))
    now = 0
    for _ in range(3):
        now = one.ready_at(now)
    assert abs(three.ready_at(0, 3) - now) <= 3
    assert Computing(timing(0.5), 0).ready_at(SECOND) == SECOND + SECOND // 2


def test_rows_have_their_times_in_seconds() -> None:
    assert row_times(0, SECOND // 2, 3 * SECOND) == (0.0, 0.5, 3.0)
