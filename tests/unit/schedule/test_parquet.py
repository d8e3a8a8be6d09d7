import random
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_pcasgd.base.rounds import Rounds
from ray_pcasgd.records import Read, Row
from ray_pcasgd.schedule.barrier import NoBarrier
from ray_pcasgd.schedule.delays import ComputeTimes
from ray_pcasgd.schedule.laws import Exponential
from ray_pcasgd.schedule.network import build_network
from ray_pcasgd.schedule.parquet import (
    FORMAT,
    check_fits,
    first_difference,
    read_rows,
    rows_up_to,
    trace_hash,
    write_rows,
)
from ray_pcasgd.schedule.plan_peers import Planner
from ray_pcasgd.schedule.row_log import RowLog
from ray_pcasgd.schedule.topology import Complete, Metropolis

NEIGHBORS = build_network(Complete(), Metropolis(), 3, 0).neighbors
METADATA = {"mode": "planned", "run": "ö, \n"}


def planned(seed: int = 0, num_steps: int = 6) -> list[Row]:
    return list(
        Planner(
            neighbors=NEIGHBORS,
            num_steps=num_steps,
            compute=ComputeTimes(law=Exponential(mean=1)),
            links=(),
            clusters=(0, 0, 0),
            barrier=NoBarrier(),
            seed=seed,
        )
    )


def changed(rows: Sequence[Row], place: int, **fields: object) -> list[Row]:
    return [row._replace(**fields) if n == place else row for n, row in enumerate(rows)]


def changed_read(rows: Sequence[Row], place: int, **fields: int) -> list[Row]:
    first, *others = rows[place].reads
    return changed(rows, place, reads=(first._replace(**fields), *others))


def test_rows_and_metadata_survive_a_file(tmp_path: Path) -> None:
    rows = planned()
    write_rows(tmp_path / "schedule.parquet", rows, METADATA)
    assert read_rows(tmp_path / "schedule.parquet") == (rows, METADATA)


def test_shares_that_were_held_survive_a_file_and_count(tmp_path: Path) -> None:
    rows = changed(ROWS, 4, held=tuple(k for k in range(3) if k != ROWS[4].agent))
    write_rows(tmp_path / "schedule.parquet", rows, {"reading": "every"})
    assert read_rows(tmp_path / "schedule.parquet") == (rows, {"reading": "every"})
    assert trace_hash(rows) != trace_hash(ROWS)
    difference = first_difference(ROWS, rows)
    assert difference is not None
    assert "held" in difference
    # Files of runs that held nothing are as they always were.
    write_rows(tmp_path / "schedule.parquet", ROWS, {})
    assert pq.read_table(tmp_path / "schedule.parquet").schema.metadata[b"format"] == FORMAT.encode()


def test_a_lone_agent_and_no_rows_survive_a_file(tmp_path: Path) -> None:
    for rows in ([], [Row(0, 0, 0.0, 0.1, 0.1, ())]):
        write_rows(tmp_path / "schedule.parquet", rows, {})
        assert read_rows(tmp_path / "schedule.parquet") == (rows, {})


def test_a_file_is_plain_parquet(tmp_path: Path) -> None:
    rows = planned()
    write_rows(tmp_path / "schedule.parquet", rows, METADATA)
    table = pq.read_table(tmp_path / "schedule.parquet")
    assert table.column_names == [
        "agent",
        "step",
        "start",
        "ready",
        "end",
        "neighbors",
        "versions",
        "staleness",
        "ages",
        "kind",
    ]
    assert table["versions"].to_pylist() == [[read.version for read in row.reads] for row in rows]


def test_broken_files_are_refused_and_never_misread(tmp_path: Path) -> None:
    path = tmp_path / "schedule.parquet"
    rows = planned(num_steps=3)
    write_rows(path, rows, {})
    whole = path.read_bytes()
    draw = random.Random(0)
    named = []
    for trial in range(150):
        broken = bytearray(whole)
        if trial % 10:
            broken[draw.randrange(len(broken))] ^= draw.randrange(1, 256)
        else:
            broken = broken[: draw.randrange(len(broken))]
        path.write_bytes(broken)
        try:
            found, _ = read_rows(path)
        except ValueError as error:
            named.append(str(path) in str(error))
        else:
            assert found == rows
    assert len(named) > 50
    assert all(named)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "schedule.parquet"
    with pytest.raises(ValueError, match=r"schedule\.parquet.*no such file"):
        read_rows(path)
    pq.write_table(pa.table({"agent": [0], "step": [0]}), path)
    with pytest.raises(ValueError, match=r"schedule\.parquet.*is no schedule"):
        read_rows(path)
    write_rows(path, planned(), {})
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({"format": "ray_pcasgd schedule 999"}), path)
    with pytest.raises(ValueError, match=r"schedule\.parquet.*is no schedule"):
        read_rows(path)
    pq.write_table(table.drop_columns("ages"), path)
    with pytest.raises(ValueError, match=r"schedule\.parquet.*is no schedule"):
        read_rows(path)


ROWS = planned()
CONTRADICTIONS: dict[str, list[Row]] = {
    "out of turn; allowed is step 1": [row for row in ROWS if row[:2] != (1, 1)],
    "agent 0 at step 0 is out of turn; allowed is step 1": [ROWS[0]._replace(agent=0, step=0, reads=())] * 2,
    "rising times": changed(ROWS, 4, ready=ROWS[4].start - 1),
    "agent -1": changed(ROWS, 0, agent=-1),
    "nan": changed(ROWS, 4, end=float("nan")),
    "inf": changed(ROWS, 4, end=float("inf")),
    "times -inf": changed(ROWS, 4, start=-float("inf")),
    "rising numbers other than its own": changed(ROWS, 4, reads=ROWS[4].reads[::-1]),
    "numbers other than its own": changed_read(ROWS, 4, neighbor=ROWS[4].agent),
    "numbers from 0 on": changed_read(ROWS, 4, staleness=-1),
    "and an age up to the step": changed_read(ROWS, 4, age=ROWS[4].step + 1),
    "held back the agents [2, 0]": changed(ROWS, 4, held=(2, 0)),
    "held back the agents [-1]": changed(ROWS, 4, held=(-1,)),
    "rising numbers but its own": changed(ROWS, 4, held=(ROWS[4].agent,)),
    "which takes 6 steps": changed_read(ROWS, 4, version=7),
    "which takes 0 steps": [Row(0, 0, 0.0, 1.0, 1.0, (Read(1, 1, 0, 0),))],
}


@pytest.mark.parametrize("said", CONTRADICTIONS)
def test_rows_that_contradict_themselves_are_refused(said: str, tmp_path: Path) -> None:
    path = tmp_path / "schedule.parquet"
    write_rows(path, CONTRADICTIONS[said], {})
    with pytest.raises(ValueError, match=r"schedule\.parquet") as caught:
        read_rows(path)
    assert said in str(caught.value)


def test_lists_of_different_lengths_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "schedule.parquet"
    write_rows(path, ROWS, {})
    table = pq.read_table(path)
    ages = pa.array([[0]] * len(ROWS), table["ages"].type)
    pq.write_table(table.set_column(8, table.schema.field("ages"), ages), path)
    with pytest.raises(ValueError, match=r"reads of agent \d at step 0 are incomplete"):
        read_rows(path)


def test_the_hash_counts_reads_and_neither_times_nor_order() -> None:
    rows = planned()
    later = [row._replace(start=row.start + 1, ready=row.ready + 1, end=row.end + 1e-12) for row in rows]
    assert trace_hash(rows) == trace_hash(later[::-1])
    assert first_difference(rows, later[::-1]) is None
    others = [
        changed_read(rows, 9, version=rows[9].reads[0].version + 1),
        changed_read(rows, 9, staleness=rows[9].reads[0].staleness + 1),
        changed_read(rows, 9, age=rows[9].reads[0].age + 1),
        changed(rows, 9, reads=rows[9].reads[1:]),
        rows[:9] + rows[10:],
        planned(seed=1),
    ]
    assert len({trace_hash(rows), *map(trace_hash, others)}) == 7
    assert all(first_difference(rows, other) for other in others)


def test_the_first_difference_is_the_one_of_the_earliest_step() -> None:
    rows = planned()
    late = max(range(len(rows)), key=lambda n: rows[n].step)
    early = next(n for n, row in enumerate(rows) if row[:2] == (2, 1))
    other = changed_read(changed_read(rows, late, age=0, version=0), early, version=5, age=1)
    said = first_difference(rows, other)
    assert said is not None
    assert said.startswith("agent 2 at step 1")
    assert "version=5" in said
    assert "\n" not in said
    missing = first_difference(rows, [row for row in rows if row[:2] != (0, 3)])
    assert missing is not None
    assert missing.startswith("agent 0 at step 3")
    assert "no row" in missing


def test_a_schedule_that_fits() -> None:
    check_fits(planned(), NEIGHBORS, Rounds(6))
    check_fits([Row(0, 0, 0.0, 1.0, 1.0, ())], ((),), Rounds(1))


def test_a_schedule_without_a_step_of_some_agent_is_named() -> None:
    rows = [row for row in planned() if row.agent != 1]
    with pytest.raises(ValueError, match="num_steps = 6: allowed with the schedule is up to 0, what agent 1 takes"):
        check_fits(rows, NEIGHBORS, Rounds(6))


def test_a_schedule_is_good_for_fewer_steps_while_nobody_reads_beyond_them() -> None:
    rows = [Row(i, t, float(t), t + 1.0, t + 1.0, (Read(1 - i, t, 0, 0),)) for t in range(6) for i in range(2)]
    check_fits(rows, ((1,), (0,)), Rounds(4))
    ahead = changed_read(rows, 6, version=5)
    check_fits(ahead, ((1,), (0,)), Rounds(6))
    with pytest.raises(
        ValueError, match=r"num_steps = 4: .* agent 0 reads version 5 of agent 1 at step 3; allowed is 6"
    ):
        check_fits(ahead, ((1,), (0,)), Rounds(4))
    check_fits(ahead, ((1,), (0,)), Rounds(3))


@pytest.mark.parametrize(
    ("neighbors", "num_steps", "said"),
    [
        (((1,), (0,)), 6, "num_agents = 2: allowed with the schedule is 3"),
        (((1,), (0, 2), (1, 3), (2,)), 6, "num_agents = 4: allowed with the schedule is 3"),
        (NEIGHBORS, 7, "num_steps = 7: allowed with the schedule is up to 6, what agent 0 takes in it"),
        (((1,), (0, 2), (1,)), 6, "agents 0 and 2 are no neighbors"),
    ],
)
def test_a_schedule_that_does_not_fit(neighbors: tuple[tuple[int, ...], ...], num_steps: int, said: str) -> None:
    rows = sorted(planned(), key=lambda row: row.agent)
    with pytest.raises(ValueError, match=r"^(num_agents|num_steps|topology)") as caught:
        check_fits(rows, neighbors, Rounds(num_steps))
    assert said in str(caught.value)


def test_rows_up_to_versions_leave_out_what_others_have_read_of_later_ones() -> None:
    rows = [
        Row(0, 0, 0, 1, 1, ()),
        Row(1, 0, 0, 1, 1, (Read(0, 1, 0, 0),)),
        Row(0, 1, 1, 2, 2, ()),
        Row(1, 1, 1, 2, 2, (Read(0, 2, 0, 0),)),
        Row(1, 2, 2, 3, 3, ()),
    ]
    kept, left_out = rows_up_to(RowLog(rows), (1, 2))
    assert [*kept] == [rows[0], rows[1], rows[3]._replace(reads=())]
    assert left_out == 1
