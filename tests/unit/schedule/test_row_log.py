"""Rows as a run keeps them: packed, in a file, and the same as they were."""

import os
import pickle
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_pcasgd.records import Read, Row
from ray_pcasgd.schedule import row_log
from ray_pcasgd.schedule.parquet import read_rows, trace_hash, write_rows
from ray_pcasgd.schedule.row_block import Sizes, decoded, joined, packed
from ray_pcasgd.schedule.row_log import RowLog, restored

NUM_AGENTS = 5
agents, numbers = st.integers(0, NUM_AGENTS - 1), st.integers(0, 2**31 - 1)
times = st.floats(allow_nan=False, allow_infinity=False)
kinds = st.sampled_from(["step", "cancelled", "passive", "rejoined"])
some_rows = st.lists(
    st.builds(
        Row,
        agents,
        numbers,
        times,
        times,
        times,
        st.lists(st.builds(Read, agents, numbers, numbers, numbers), max_size=4).map(tuple),
        kinds,
        st.lists(agents, max_size=3).map(tuple),
    ),
    max_size=30,
    unique_by=lambda row: row[:2],
)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a few rows, sorted in several parts."""
    monkeypatch.setattr(row_log, "BLOCK_ROWS", 4)
    monkeypatch.setattr(row_log, "BLOCK_READS", 6)
    monkeypatch.setattr(row_log, "_SORTED_ROWS", 3)


@given(some_rows)
def test_rows_come_out_as_they_went_in(rows: list[Row]) -> None:
    log = RowLog()
    for number, row in enumerate(rows):
        assert not log.has(*row[:2])
        log.append(row)
        assert log.has(*row[:2])
        assert len(log) == number + 1
    assert list(log) == rows
    assert [row for block in log.blocks() for row in block.rows()] == rows
    assert list(log.by_agent()) == sorted(rows, key=lambda row: row[:2])
    assert trace_hash(log) == trace_hash(rows)
    assert log.has_held == any(row.held for row in rows)
    assert [list(log.of_agent(agent)) for agent in range(NUM_AGENTS)] == [
        sorted((row for row in rows if row.agent == agent), key=lambda row: row.step) for agent in range(NUM_AGENTS)
    ]
    again = restored(log.encoded(), NUM_AGENTS)
    assert list(again) == list(pickle.loads(pickle.dumps(log))) == rows
    assert again.has_held == log.has_held
    assert {agent: list(steps) for agent, steps in again.steps.items()} == {
        agent: list(steps) for agent, steps in log.steps.items()
    }


@given(some_rows, st.lists(st.tuples(agents, numbers), max_size=9))
def test_a_log_lacks_versions_that_no_row_has_come_to(rows: list[Row], versions: list[tuple[int, int]]) -> None:
    log = RowLog(rows)
    known = {(agent, 0) for agent in range(NUM_AGENTS)} | {(row.agent, row.step + 1) for row in rows}
    looked_for = [*versions, *((row.agent, row.step) for row in rows), *((row.agent, row.step + 1) for row in rows)]
    whose, which = (
        np.array(own, dtype=np.int64) for own in (zip(*looked_for, strict=True) if looked_for else ((), ()))
    )
    assert log.lacks(whose, which).tolist() == [version not in known for version in looked_for]


@given(some_rows, st.data())
def test_a_block_has_the_rows_and_reads_that_are_chosen(rows: list[Row], data: st.DataObject) -> None:
    block = packed(rows)
    places = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=9)) if rows else []
    assert list(block.select(np.array(places, dtype=int)).rows()) == [rows[place] for place in places]
    kept = [[data.draw(st.booleans()) for _ in row.reads] for row in rows]
    flat = np.array([one for own in kept for one in own], dtype=bool)
    assert list(block.with_reads(flat).rows()) == [
        row._replace(reads=tuple(read for read, is_kept in zip(row.reads, own, strict=True) if is_kept))
        for row, own in zip(rows, kept, strict=True)
    ]
    assert list(joined([block, block]).rows()) == [*rows, *rows]


def planned(number: int) -> Iterator[Row]:
    """Yield rows of four agents in turn, each of which reads two others."""
    for place in range(number):
        agent, step = place % 4, place // 4
        others = sorted(((agent + 1) % 4, (agent + 2) % 4))
        end = 0.37 * place
        yield Row(agent, step, end, end + 0.1, end + 0.2, tuple(Read(k, step, 0, 0) for k in others))


def test_a_state_has_the_rows_up_to_then_whatever_comes_after() -> None:
    rows = list(planned(23))
    log = RowLog(rows)
    state = log.encoded()
    for row in list(planned(60))[23:]:
        log.append(row)
    assert list(restored(state, NUM_AGENTS)) == rows
    again = restored(state, NUM_AGENTS)
    for row in list(planned(60))[23:]:
        again.append(row)
    assert list(again) == list(log) == list(planned(60))


def test_rows_stay_in_memory_while_the_file_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full, that takes a part of what it is given, and that has room again."""
    write = os.pwrite
    log = RowLog()
    for number, row in enumerate(planned(60)):
        if number == 10:
            monkeypatch.setattr(os, "pwrite", lambda file, data, place: write(file, data[:5], place))
        if number == 20:
            monkeypatch.setattr(os, "pwrite", write)
        log.append(row)
    assert list(log) == list(planned(60))
    assert list(restored(log.encoded(), NUM_AGENTS)) == list(planned(60))


def test_rows_stay_in_memory_where_there_is_no_place_for_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(**_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(row_log.tempfile, "TemporaryFile", fails)
    log = RowLog(planned(60))
    assert list(log) == list(planned(60))
    assert list(restored(log.encoded(), NUM_AGENTS)) == list(planned(60))


def test_the_file_has_no_name_and_is_closed_with_the_log() -> None:
    folder = tempfile.gettempdir()

    def open_files() -> set[str]:
        return {target for target in map(_target, Path("/proc/self/fd").iterdir()) if target.startswith(folder)}

    before = open_files()
    log = RowLog(planned(60))
    (own,) = open_files() - before
    assert "(deleted)" in own
    assert not Path(own).exists()
    del log
    assert open_files() == before


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:
        return ""


def damaged(sizes: Sizes, data: np.ndarray) -> list[tuple[Sizes, np.ndarray]]:
    rows, reads, held = sizes
    return [
        (sizes, data[:-3]),
        (sizes, data[:0]),
        (Sizes(rows - 1, reads, held), data),
        (Sizes(rows + 1, reads, held), data),
        (Sizes(rows, reads, held + 4), data),
        (Sizes(-1, reads, held), data),
        (Sizes(2**40, reads, held), data),
        (Sizes(rows, 2.0, held), data),  # type: ignore[arg-type]
    ]


def test_damaged_blocks_are_refused() -> None:
    (block,) = RowLog(planned(3)).encoded()
    assert list(restored([block], NUM_AGENTS)) == list(planned(3))
    for other in damaged(*block):
        with pytest.raises(ValueError, match="block of rows"):
            restored([other], NUM_AGENTS)


ROW = Row(0, 3, 0.0, 1.0, 2.0, (Read(1, 3, 0, 0),))


@pytest.mark.parametrize(
    "row",
    [
        ROW._replace(agent=NUM_AGENTS),
        ROW._replace(agent=-1),
        ROW._replace(step=-1),
        ROW._replace(end=float("inf")),
        ROW._replace(start=float("nan")),
        ROW._replace(reads=(Read(NUM_AGENTS, 0, 0, 0),)),
        ROW._replace(reads=(Read(1, -1, 0, 0),)),
        ROW._replace(reads=(Read(1, 0, -1, 0),)),
        ROW._replace(reads=(Read(1, 0, 0, -1),)),
        ROW._replace(held=(NUM_AGENTS,)),
    ],
)
def test_rows_that_are_none_of_the_run_are_refused(row: Row) -> None:
    block = packed([row])
    with pytest.raises(ValueError, match="rows have"):
        restored([(block.sizes, np.frombuffer(block.encoded(), dtype=np.uint8))], NUM_AGENTS)


def test_rows_of_an_unknown_kind_or_with_other_numbers_of_reads_are_refused() -> None:
    block = packed([ROW, ROW])
    for other in (
        block._replace(kind=np.array([0, 9], dtype=np.uint8)),
        block._replace(num_reads=np.array([3, -1], dtype=np.int32)),
        block._replace(num_reads=np.array([1, 2], dtype=np.int32)),
        block._replace(num_held=np.array([1, -1], dtype=np.int32)),
        block._replace(num_held=np.array([1, 0], dtype=np.int32)),
    ):
        with pytest.raises(ValueError, match="block of rows"):
            decoded(block.sizes, other.encoded())


def test_row_groups_follow_each_other_in_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    log = RowLog(planned(60))
    write_rows(tmp_path / "one.parquet", log, {"a": "b"})
    monkeypatch.setattr("ray_pcasgd.schedule.parquet._GROUP_ROWS", 7)
    write_rows(tmp_path / "many.parquet", log, {"a": "b"})
    assert [pq.ParquetFile(tmp_path / f"{name}.parquet").num_row_groups for name in ("one", "many")] == [1, 7]
    one, many = (read_rows(tmp_path / f"{name}.parquet") for name in ("one", "many"))
    assert one == many == (list(planned(60)), {"a": "b"})


def test_rows_that_are_there_are_all_yielded_while_more_are_added() -> None:
    first, more = ([Row(0, step, 0.0, 0.0, 1.0, (), "step", ()) for step in range(*ends)] for ends in ((0, 6), (6, 11)))
    log = RowLog(first)
    rows, blocks = iter(log), log.blocks()
    yielded, block = [next(rows)], next(blocks)
    for row in more:
        log.append(row)
    assert [*yielded, *rows] == first
    assert [*block.rows(), *(row for later in blocks for row in later.rows())] == first
