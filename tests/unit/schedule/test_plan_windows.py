"""Plans in windows of virtual time: the rows of the planner that goes event by event, to the bit."""

import contextlib
import dataclasses
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_pcasgd.records import Read, Row
from ray_pcasgd.schedule import plan_peers, plan_windows, window_times
from ray_pcasgd.schedule.barrier import AllBarrier, Barrier, BoundedBarrier, NoBarrier
from ray_pcasgd.schedule.delays import ComputeTimes, LinkDelay
from ray_pcasgd.schedule.hosts import Host
from ray_pcasgd.schedule.plan_peers import Planner, Simulation
from ray_pcasgd.schedule.segments import OutOfRangeError, bounds_of, running_maximum, through_queues
from ray_pcasgd.schedule.simulation import in_seconds, seconds_of
from ray_pcasgd.schedule.topology import Ring, StaticExponential
from ray_pcasgd.schedule.window_times import AgentTimes
from tests.speed import examples
from tests.unit.schedule.test_bytes import KILOBYTE, LIMITED, hosts
from tests.unit.schedule.test_plan_peers import BARRIERS, LAWS, law, planner, plans

EXPONENTIAL = law({"name": "exponential", "mean": 1})


def pieces(plan: Planner) -> Iterator[tuple[int, Any]]:
    return iter(plan.windows)


def in_windows(plan: Planner) -> list[Row]:
    """Return the rows of a plan, as far as windows go."""
    rows: list[Row] = []
    with contextlib.suppress(OutOfRangeError):  # from there on, the plan goes on one event after another
        for number, piece in pieces(plan):
            before = len(rows)
            rows += piece
            assert len(rows) == before + number
    return rows


def one_by_one(plan: Planner) -> list[Row]:
    return list(Simulation(plan).rows())


@st.composite
def plans_in_windows(draw: st.DrawFn) -> Planner:
    """Plans of which most gradients take some time."""
    plan = draw(plans(st.one_of(st.just(NoBarrier()), BARRIERS)))
    some_time = st.one_of(st.just(EXPONENTIAL), st.sampled_from([0.5, 1.0, 1.5]).map(law), LAWS)
    waits = not isinstance(plan.barrier, NoBarrier)
    return dataclasses.replace(
        plan,
        num_steps=draw(st.integers(1, 60)),
        compute=plan.compute.model_copy(update={"law": draw(some_time), "agents": {1: draw(some_time)}}),
        links=(*plan.links, *draw(LIMITED)),
        hosts=() if waits else draw(hosts(len(plan.neighbors))),
        message_bytes=draw(st.sampled_from([0, KILOBYTE, 777])),
        combines_first=not waits and draw(st.booleans()),
    )


@examples(30, 80)
@given(plans_in_windows(), st.sampled_from([1, 20, 1000]), st.sampled_from([1, 4, 32]), st.sampled_from([7, 10_000]))
def test_rows_equal_those_of_one_event_after_another(plan: Planner, reads: int, drawn: int, at_once: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        # Windows of few rows, which end in the midst of everything.
        patch.setattr(plan_windows, "_FEWEST_READS", reads)
        patch.setattr(plan_windows, "_MOST_READS", reads)
        patch.setattr(plan_windows, "_READS_OF_LINK", 1)
        patch.setattr(plan_windows, "_READS_AT_ONCE", at_once)
        patch.setattr(window_times, "_FEWEST", drawn)
        rows = in_windows(plan)
    expected = one_by_one(plan)
    assert rows == expected[: len(rows)]
    assert list(plan) == expected
    durations = [plan.compute.law.only_value, *(one.only_value for one in plan.compute.agents.values())]
    assert len(rows) == len(expected) or 0 in durations


def test_rows_are_records_of_plain_numbers() -> None:
    plan = planner(3, Ring(), compute=ComputeTimes(law=EXPONENTIAL), num_steps=30)
    rows = list(plan)
    assert rows == one_by_one(plan)
    assert {type(row) for row in rows} == {Row}
    assert {tuple(map(type, row)) for row in rows} == {(int, int, float, float, float, tuple, str, tuple)}
    assert {(type(read), *map(type, read)) for row in rows for read in row.reads} == {(Read, int, int, int, int)}


@pytest.mark.parametrize(
    "where",
    [
        {},
        {"links": (LinkDelay(delay=law(0.3), unit="seconds", bandwidth="100 kbit/s"),)},
        {"links": (LinkDelay(delay=EXPONENTIAL, unit="seconds"), LinkDelay(delay=law(3), between="clusters"))},
        {"hosts": tuple(Host(agents=(k, k + 1), up="100 kbit/s", down="50 kbit/s") for k in range(0, 16, 2))},
        {
            "hosts": tuple(Host(agents=(k,), down="50 kbit/s") for k in range(16)),
            "links": (LinkDelay(delay=law(1e9), unit="seconds", between=((0,), (4,))),),
        },
        {"barrier": AllBarrier(), "links": (LinkDelay(delay=EXPONENTIAL, unit="seconds", bandwidth="8 kbit/s"),)},
        {"barrier": BoundedBarrier(staleness=3), "links": (LinkDelay(delay=law(3), between="clusters"),)},
    ],
)
def test_many_agents_of_very_different_speeds(where: dict[str, Any]) -> None:
    compute = ComputeTimes(
        law=EXPONENTIAL, agents={3: law(0.05), 7: law(40), 11: law({"name": "pareto", "shape": 1.1, "scale": 0.1})}
    )
    plan = planner(16, StaticExponential(), compute=compute, num_steps=100, message_bytes=KILOBYTE, **where)
    assert in_windows(plan) == one_by_one(plan)


@pytest.mark.parametrize("barrier", [NoBarrier(), AllBarrier()])
@pytest.mark.parametrize("compute", [EXPONENTIAL, law(1)])
def test_agents_that_do_not_read_all_their_readers(barrier: Barrier, compute: Any) -> None:
    plan = planner(16, StaticExponential(), compute=ComputeTimes(law=compute), num_steps=60, barrier=barrier)
    directed = tuple(tuple(k for k in own if k > agent or k % 3) for agent, own in enumerate(plan.neighbors))
    plan = dataclasses.replace(plan, neighbors=directed)
    assert in_windows(plan) == one_by_one(plan)


def test_of_messages_that_come_to_a_downlink_at_once_the_one_sent_first_is_the_first() -> None:
    homes = tuple(Host(agents=tuple(range(k, k + 8)), down="80 kbit/s") for k in (0, 8))
    plan = planner(16, compute=ComputeTimes(law=law(1)), hosts=homes, message_bytes=KILOBYTE, num_steps=20)
    assert in_windows(plan) == one_by_one(plan)


@pytest.mark.parametrize("combines_first", [False, True])
@pytest.mark.parametrize("barrier", [NoBarrier(), AllBarrier()])
def test_steps_without_duration_end_in_one_round_after_another(
    barrier: Barrier, combines_first: bool, tmp_path: Path
) -> None:
    path = tmp_path / "seconds.csv"
    path.write_text("delay\n1\n0\n0\n1\n1\n0\n")
    compute = ComputeTimes(law=law({"name": "measured", "path": str(path)}), agents={0: law(0.5)})
    plan = planner(6, compute=compute, barrier=barrier, num_steps=40, combines_first=combines_first)
    if plan.has_windows:
        assert in_windows(plan) == one_by_one(plan)
    assert plan.has_windows == (not combines_first or barrier == NoBarrier())


@pytest.mark.parametrize(
    "where",
    [
        # There are not so many rounds in an instant.
        {"compute": ComputeTimes(law=law(0))},
        {"compute": ComputeTimes(law=law(0)), "combines_first": True},
        {"compute": ComputeTimes(law=law(1e7))},
        {"links": (LinkDelay(delay=law({"name": "pareto", "shape": 0.1, "scale": 1}), unit="seconds"),)},
        {"links": (LinkDelay(bandwidth="1 bit/s"),), "message_bytes": 10**9},
        {"links": (LinkDelay(bandwidth="1 bit/s", from_step=30),), "message_bytes": 10**9},
        {"hosts": (Host(agents=(0, 1), up="1 bit/s"),), "message_bytes": 10**9},
        {"barrier": AllBarrier(), "compute": ComputeTimes(law=law(0))},
        {"barrier": AllBarrier(), "compute": ComputeTimes(law=law({"name": "pareto", "shape": 0.1, "scale": 1}))},
        {"compute": ComputeTimes(law=law({"name": "pareto", "shape": 0.1, "scale": 1}))},
        {"barrier": BoundedBarrier(staleness=2), "links": (LinkDelay(delay=law(1e8), unit="seconds"),)},
    ],
)
def test_what_is_out_of_range_is_planned_one_event_after_another(where: dict[str, Any]) -> None:
    plan = planner(num_steps=60, **where)
    with pytest.raises(OutOfRangeError):
        list(pieces(plan))
    assert list(plan) == one_by_one(plan)


def test_agents_too_far_apart_are_planned_one_event_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two pairs do not hear of each other, and one of them is a thousand times as fast."""
    monkeypatch.setattr(plan_windows, "_FEWEST_READS", 50)
    monkeypatch.setattr(plan_windows, "_MOST_READS", 50)
    compute = ComputeTimes(law=EXPONENTIAL, agents={2: law(1e-3), 3: law(1e-3)})
    plan = planner(4, compute=compute, barrier=AllBarrier(), num_steps=300)
    plan = dataclasses.replace(plan, neighbors=((1,), (0,), (3,), (2,)))
    assert 0 < len(in_windows(plan)) < 1200
    monkeypatch.setattr(plan_peers, "_FEWEST_AGENTS", 4)
    assert list(plan) == one_by_one(plan)


def test_a_plan_goes_on_one_event_after_another_where_it_leaves_the_range(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "slow.csv"
    path.write_text("second,value\n0,1\n50,1e8\n")
    plan = planner(compute=ComputeTimes(law=law({"name": "trace", "path": str(path)})), num_steps=60)
    monkeypatch.setattr(plan_windows, "_FEWEST_READS", 100)
    monkeypatch.setattr(plan_windows, "_MOST_READS", 100)
    rows = in_windows(plan)
    assert 0 < len(rows) < 200
    assert list(plan) == one_by_one(plan)


def test_rows_come_as_they_are_asked_for() -> None:
    plan = planner(8, compute=ComputeTimes(law=EXPONENTIAL, agents={0: law(1e-3)}), num_steps=10**12)
    assert all(number <= 10_000 for number, _ in islice(pieces(plan), 20))
    assert next(iter(plan)).end == 1e-3


def test_a_window_has_no_more_rows_than_memory_is_for_where_agents_become_fast(tmp_path: Path) -> None:
    path = tmp_path / "fast.csv"
    path.write_text("second,value\n0,1\n50,1e-3\n")
    plan = planner(8, compute=ComputeTimes(law=law({"name": "trace", "path": str(path)})), num_steps=10**12)
    times = AgentTimes(plan, plan.rounds, 8)
    windows = [times.window(100, 10**12) for _ in range(60)]
    numbers = [int(window.counts.sum()) for window in windows if window is not None]
    assert len(numbers) == 60
    assert max(numbers) <= 1000
    # Windows become shorter, and have as many rows as are wanted again.
    assert 50 <= numbers[-1] <= 200


NUMBERS = st.integers(0, 5)
ANY_SIGN = st.integers(-5, 5)
LARGE = st.integers(2**60, 2**60 + 5)


@st.composite
def segments(draw: st.DrawFn, numbers: st.SearchStrategy[int]) -> list[list[int]]:
    return draw(st.lists(st.lists(numbers, max_size=6), min_size=1, max_size=8))


def joined(parts: list[list[int]]) -> np.ndarray:
    return np.array(list(chain.from_iterable(parts)), dtype=np.int64)


def bounds(parts: list[list[int]]) -> np.ndarray:
    return bounds_of(np.array([len(part) for part in parts]))


@examples(25, 60)
@given(st.one_of(segments(ANY_SIGN), segments(LARGE)))
def test_the_running_maximum_is_that_of_each_segment(parts: list[list[int]]) -> None:
    found = running_maximum(joined(parts), bounds(parts))
    assert found.tolist() == [max(part[: place + 1]) for part in parts for place in range(len(part))]


@examples(25, 60)
@given(st.one_of(segments(NUMBERS), segments(st.integers(0, 2**57))), st.data())
def test_queues_let_one_message_after_another_through(first: list[list[int]], data: st.DataObject) -> None:
    service = [[data.draw(NUMBERS) for _ in part] for part in first]
    free = np.array([data.draw(NUMBERS) for _ in first], dtype=np.int64)
    expected = []
    after = free.tolist()
    for queue, (came, takes) in enumerate(zip(first, service, strict=True)):
        for one, lasts in zip(came, takes, strict=True):
            begins = max(one, after[queue])
            after[queue] = begins + lasts
            expected.append((begins, after[queue]))
    begins_, ends = through_queues(joined(first), joined(service), bounds(first), free)
    assert list(zip(begins_.tolist(), ends.tolist(), strict=True)) == expected
    assert free.tolist() == after


def test_moments_are_the_same_in_seconds_one_by_one() -> None:
    # Floating-point numbers are close to these, but not close enough: divided, they round the other way.
    moments = [3, 10**9 + 1, 2**53, 73534100046874573, 88043958430787170]
    assert seconds_of(np.array(moments)).tolist() == [in_seconds(moment) for moment in moments]
    assert seconds_of(np.array(moments[:2])).tolist() == [in_seconds(moment) for moment in moments[:2]]
