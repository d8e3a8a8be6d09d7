import random
from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ray_pcasgd.records import Read, Row
from ray_pcasgd.schedule import row_log
from ray_pcasgd.schedule.barrier import NoBarrier
from ray_pcasgd.schedule.delays import ComputeTimes
from ray_pcasgd.schedule.laws import Exponential
from ray_pcasgd.schedule.network import build_network
from ray_pcasgd.schedule.ordering import in_causal_order
from ray_pcasgd.schedule.parquet import first_difference, trace_hash
from ray_pcasgd.schedule.plan_peers import Planner
from ray_pcasgd.schedule.recording import replayable
from ray_pcasgd.schedule.row_log import RowLog
from ray_pcasgd.schedule.topology import Complete, Metropolis, Ring
from tests.speed import examples
from tests.unit.schedule.slow_recording import slow_order, slow_replayable
from tests.unit.schedule.test_parquet import changed, changed_read, planned


def executable(rows: Sequence[Row]) -> bool:
    """Whether every row follows what it needs."""
    done: dict[int, int] = {}
    for row in rows:
        if row.step != done.get(row.agent, 0):
            return False
        if any(done.get(read.neighbor, 0) < read.version + (read.staleness > 0) for read in row.reads):
            return False
        done[row.agent] = row.step + 1
    return True


@examples(25, 60)
@given(st.integers(0, 1000), st.lists(st.floats(-4, 4), min_size=3, max_size=3))
def test_skewed_clocks_change_the_order_and_nothing_else(seed: int, skew: list[float]) -> None:
    rows = planned(seed)
    assert in_causal_order(rows) == rows
    skewed = [row._replace(end=row.end + skew[row.agent]) for row in rows]
    random.Random(seed).shuffle(skewed)
    ordered = in_causal_order(skewed)
    assert executable(ordered)
    assert sorted(ordered) == sorted(skewed)


@examples(25, 60)
@given(st.integers(0, 1000), st.integers(1, 12))
def test_only_impossible_staleness_is_given_up(seed: int, count: int) -> None:
    draw = random.Random(seed)
    rows = planned(seed)
    for _ in range(count):
        place = draw.randrange(len(rows))
        rows = changed_read(rows, place, staleness=draw.randrange(3))
    ordered = in_causal_order(rows)
    assert executable(ordered)
    assert first_difference(_fresh(rows), _fresh(ordered)) is None
    before = {(row.agent, row.step): row.reads for row in rows}
    for row in ordered:
        for was, read in zip(before[row.agent, row.step], row.reads, strict=True):
            assert read.staleness in (was.staleness, 0)
    given_up = [n for n, row in enumerate(ordered) if row.reads != before[row.agent, row.step]]
    if not given_up:
        assert sorted(ordered) == sorted(rows)
    # Any single one of them back in its place makes a cycle again, or asks for a row that is not there.
    for n in given_up:
        restored = changed(ordered, n, reads=before[ordered[n].agent, ordered[n].step])
        assert trace_hash(in_causal_order(restored)) != trace_hash(restored)


def _fresh(rows: Sequence[Row]) -> list[Row]:
    return [row._replace(reads=tuple(read._replace(staleness=0) for read in row.reads)) for row in rows]


def row(agent: int, step: int, end: float, *reads: tuple[int, int, int]) -> Row:
    return Row(agent, step, end - 1, end, end, tuple(Read(k, v, staleness, 0) for k, v, staleness in reads))


def test_a_cycle_is_broken_where_clocks_contradict_it_most() -> None:
    # Each waits for the direction that the other computes after it; agent 1's read lies the furthest before it.
    rows = [row(0, 0, 5.0, (1, 0, 1)), row(1, 0, 1.0, (0, 0, 1))]
    assert in_causal_order(rows) == [row(1, 0, 1.0, (0, 0, 0)), row(0, 0, 5.0, (1, 0, 1))]


def test_what_waits_for_a_cycle_is_left_as_it_is() -> None:
    rows = [row(2, 0, 0.5, (0, 0, 1)), row(0, 0, 5.0, (1, 0, 1)), row(1, 0, 1.0, (0, 0, 1))]
    assert in_causal_order(rows)[-1] == rows[0]


def test_a_read_of_who_has_stopped_counts_as_fresh() -> None:
    rows = [row(0, 0, 1.0), row(1, 0, 2.0, (0, 1, 4)), row(1, 1, 3.0, (0, 1, 5))]
    assert in_causal_order(rows) == [row(0, 0, 1.0), row(1, 0, 2.0, (0, 1, 0)), row(1, 1, 3.0, (0, 1, 0))]


def test_rows_that_cannot_be_executed_come_last() -> None:
    rows = [row(1, 0, 1.0, (0, 5, 0)), row(1, 1, 2.0), row(2, 0, 3.0, (1, 1, 0)), row(0, 0, 9.0, (2, 0, 1))]
    assert in_causal_order(rows) == [row(0, 0, 9.0, (2, 0, 0)), rows[0], rows[1], rows[2]]
    circular = [row(0, 0, 1.0, (1, 1, 0)), row(1, 0, 2.0, (0, 1, 0)), row(2, 0, 3.0)]
    assert in_causal_order(circular) == [circular[2], circular[0], circular[1]]


def test_many_agents_are_ordered_quickly() -> None:
    """A recording in which half of all rows read of an agent that stopped at once; quadratic time would show."""
    rows = [row(0, 0, 0.5)]
    rows += [row(i, t, t + 1.0, (0, 1, t + 1)) for t in range(2000) for i in range(1, 6)]
    ordered = in_causal_order(rows)
    assert executable(ordered)
    assert len(ordered) == len(rows)


def readers(rows: Sequence[Row], draw: random.Random) -> int:
    return draw.choice([place for place, row in enumerate(rows) if row.reads])


def disturbed(seed: int) -> list[Row]:
    """Return rows as a live run might report them: clocks that are wrong, staleness that is, rows that were lost."""
    draw = random.Random(seed)
    num_agents = draw.choice([3, 5, 6])
    rows = list(
        Planner(
            neighbors=build_network(
                Complete() if draw.random() < 0.5 else Ring(), Metropolis(), num_agents, 0
            ).neighbors,
            num_steps=draw.choice([2, 4, 6]),
            compute=ComputeTimes(law=Exponential(mean=1)),
            links=(),
            clusters=(0,) * num_agents,
            barrier=NoBarrier(),
            seed=seed,
        )
    )
    skew = [draw.uniform(-4, 4) * draw.choice([0, 1]) for _ in range(num_agents)]
    jumps = draw.choice([0, 0, 3])
    rows = [row._replace(end=row.end + skew[row.agent] + draw.uniform(-jumps, jumps)) for row in rows]
    if draw.random() < 0.3:
        rows = [row._replace(end=float(round(row.end))) for row in rows]
    for _ in range(draw.choice([0, 12, 60])):
        rows = changed_read(rows, readers(rows, draw), staleness=draw.randrange(3))
    for _ in range(draw.choice([0, 0, 1, 3])):
        rows = changed_read(rows, readers(rows, draw), version=draw.randrange(8))
    for _ in range(draw.choice([0, 0, 1, 2])):
        agent, begin, number = draw.randrange(num_agents), draw.randrange(4), draw.choice([1, 2])
        back = draw.choice([begin + number, begin + number + 1, None])
        rows = [
            row._replace(kind="rejoined") if row[:2] == (agent, back) else row
            for row in rows
            if row.agent != agent or not begin <= row.step < begin + number
        ]
    if draw.random() < 0.5:
        draw.shuffle(rows)
    return rows


@examples(100, 1000)
@given(st.integers(0, 10**6), st.booleans())
@example(141, True)  # two cycles at once, and an agent whose clock jumps
@example(884, True)
def test_rows_are_ordered_as_by_a_graph_of_all_that_they_need(seed: int, with_directions: bool) -> None:
    rows = disturbed(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_log, "BLOCK_ROWS", 4)
        patch.setattr(row_log, "_RECENT_BLOCKS", 2)
        assert in_causal_order(rows, with_directions) == slow_order(rows, with_directions)
        kept, _ = replayable(RowLog(rows), is_live=True, with_directions=with_directions)
        assert list(kept) == slow_replayable(rows, with_directions)
