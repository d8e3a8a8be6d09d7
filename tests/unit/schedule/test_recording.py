"""What live runs report whose agents are killed: which rows are added, and which left out, so that it replays."""

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from ray_pcasgd.records import Read, Row
from ray_pcasgd.runs.trainer import Trainer
from ray_pcasgd.schedule.ordering import in_causal_order
from ray_pcasgd.schedule.parquet import read_rows, write_rows
from ray_pcasgd.schedule.plan_servers import ServerPlanner
from ray_pcasgd.schedule.recording import replayable, with_unreported
from ray_pcasgd.schedule.row_log import RowLog
from tests.speed import examples
from tests.unit.schedule.test_plan_servers import plans, rows_of


def unreported(rows: list[Row], reported: dict[int, int]) -> list[Row]:
    """Return the rows without those of workers from a step on."""
    return [row for row in rows if row.step < reported.get(row.agent, row.step + 1)]


def where_computed(row: Row) -> tuple[int, int, tuple[tuple[int, int], ...]]:
    return row.agent, row.step, tuple((read.neighbor, read.version) for read in row.reads)


@examples(60, 200)
@given(plans(), st.dictionaries(st.integers(0, 4), st.integers(0, 20)))
def test_what_one_server_has_taken_is_known_to_the_last_version(
    tmp_path_factory: pytest.TempPathFactory, plan: ServerPlanner, reported: dict[int, int]
) -> None:
    rows, servers = rows_of(plan), range(plan.num_workers, plan.num_workers + plan.num_servers)
    known = unreported(rows, {k: step for k, step in reported.items() if k < plan.num_workers})
    completed = with_unreported(known, servers, plan.gathering.expires is not None)
    assert completed[: len(known)] == known
    taken = {read[:2] for row in rows if row.agent in servers for read in row.reads}
    assert taken <= {(row.agent, row.step + 1) for row in completed if row.kind == "step"}
    if plan.num_servers == 1:
        by_key = {row[:2]: row for row in rows}
        for row in completed[len(known) :]:
            original = by_key[row[:2]]
            if (row.agent, row.step + 1) in taken:
                assert where_computed(row) == where_computed(original)
                assert row.kind == "step"
                if plan.gathering.expires == 1:
                    assert row.reads[0].staleness == original.reads[0].staleness
            else:
                assert row.kind == "cancelled"
    path = tmp_path_factory.getbasetemp() / "completed.parquet"
    write_rows(path, in_causal_order(completed, with_directions=False), {})
    read_rows(path)


def test_by_hand_with_two_servers() -> None:
    """Worker 0 is killed; server 2 has taken its version 3, and server 1 nothing after version 1."""
    rows = [
        Row(0, 0, 0.0, 1.0, 1.0, (Read(1, 0, 0, 0), Read(2, 0, 0, 0))),
        Row(1, 0, 1.0, 1.0, 1.0, (Read(0, 1, 0, 0),)),
        Row(2, 0, 1.0, 1.0, 1.0, (Read(0, 1, 0, 0),)),
        Row(2, 1, 4.0, 4.0, 4.0, (Read(0, 3, 1, 1),)),
    ]
    assert with_unreported(rows, (1, 2), expires=False)[4:] == [
        Row(0, 1, 1.0, 1.0, 1.0, (Read(1, 0, 0, 0), Read(2, 0, 0, 0)), "cancelled"),
        Row(0, 2, 1.0, 4.0, 4.0, (Read(1, 0, 0, 0), Read(2, 0, 0, 0))),
    ]


def test_one_that_came_back_is_completed_up_to_its_end_before() -> None:
    back = Row(0, 7, 5.0, 5.0, 5.0, (Read(1, 2, 0, 0),), "rejoined")
    rows = [
        Row(1, 0, 1.0, 1.0, 1.0, (Read(0, 1, 0, 0),)),
        Row(1, 1, 2.0, 2.0, 2.0, (Read(0, 2, 0, 0),)),
        back,
        Row(1, 2, 9.0, 9.0, 9.0, (Read(0, 9, 0, 0),)),
    ]
    completed = with_unreported(rows, (1,), expires=False)[4:]
    assert [(row.step, row.kind, row.reads[0].version) for row in completed] == [
        (0, "step", 0),
        (1, "step", 1),
        (8, "step", 2),
    ]


@pytest.mark.parametrize("workers_step", [False, True])
def test_a_worker_s_return_that_was_not_reported_is_known_where_it_matters(workers_step: bool) -> None:
    """Version 3 and its successor were never delivered: the worker died, and died again before it had said so."""
    rows = [
        Row(0, 0, 0.0, 1.0, 1.0, (Read(1, 0, 0, 0),)),
        Row(1, 0, 1.0, 1.0, 1.0, (Read(0, 1, 0, 0),)),
        Row(1, 6, 9.0, 9.0, 9.0, (Read(0, 4, 2, 2),)),
    ]
    completed = with_unreported(rows, (1,), expires=False, workers_step=workers_step)[3:]
    assert [(row.step, row.kind, row.reads[0].version) for row in completed] == [
        (1, "cancelled", 0),
        (2, "rejoined", 4) if workers_step else (2, "cancelled", 0),
        (3, "step", 4),
    ]


def with_return(rows: list[Row], step: int) -> list[Row]:
    """Return the rows of a run whose worker 0 was lost in a step, and is back with what it reads in the next."""
    (after,) = (row for row in rows if row[:2] == (0, step + 1))
    back = {(0, step): after._replace(step=step, kind="rejoined")}
    changed = [back.get(row[:2], row) for row in rows]
    return [row._replace(reads=tuple(r for r in row.reads if r[:2] != (0, step + 1))) for row in changed]


def test_a_return_is_replayed_to_the_same_bits(tmp_path: Path) -> None:
    """What workers remember beside the weights of their server is lost, and only a row that says so repeats it."""
    algorithm = {"name": "elastic-averaging", "gathering": {"name": "k-async", "k": 2}}
    planned = Trainer(settings_of(algorithm, tmp_path)).fit()
    rows, metadata = read_rows(Path(planned.path) / "schedule.parquet")
    returned = with_return(rows, 5)
    known = unreported(returned, {0: 3})
    completed = with_unreported(known, (3,), expires=False, workers_step=True)
    assert len(completed) == len(known) + len([row for row in rows if row.agent == 0 and 3 <= row.step < 24])
    assert replay_alike([returned, completed], metadata, algorithm, tmp_path, num_steps=22)
    without = with_unreported(known, (3,), expires=False)
    assert not replay_alike([returned, without], metadata, algorithm, tmp_path, num_steps=22)


@pytest.mark.parametrize(
    "algorithm",
    [
        {"name": "server"},
        {"name": "server", "gathering": {"name": "k-batch-sync", "k": 2}},
        {"name": "elastic-averaging", "period": 2},
    ],
)
def test_a_completed_schedule_replays_to_the_same_bits(algorithm: dict[str, Any], tmp_path: Path) -> None:
    whole = Trainer(settings_of(algorithm, tmp_path)).fit()
    rows, metadata = read_rows(Path(whole.path) / "schedule.parquet")
    known = unreported(rows, {0: 2, 2: 5})
    assert len(known) < len(rows) - 10
    cancels = algorithm.get("gathering", {}).get("name") == "k-batch-sync"
    assert replay_alike([rows, with_unreported(known, (3,), cancels)], metadata, algorithm, tmp_path)


def settings_of(algorithm: dict[str, Any], folder: Path) -> dict[str, Any]:
    return {
        "engine": "local",
        "num_agents": 3,
        "num_steps": 24,
        "evaluate_every": 12,
        "task": {"model": {"hidden": [8]}},
        "compute": {"law": {"name": "exponential", "mean": 1}},
        "links": [],
        "algorithm": algorithm,
        "storage_path": str(folder),
    }


def replay_alike(
    schedules: list[list[Row]], metadata: dict[str, str], algorithm: dict[str, Any], folder: Path, **changes: Any
) -> bool:
    """Replay two schedules, and return whether the same weights come of them."""
    weights = []
    for rows in schedules:
        write_rows(folder / "rows.parquet", in_causal_order(rows, with_directions=False), metadata)
        result = Trainer(settings_of(algorithm, folder), schedule=str(folder / "rows.parquet"), **changes).fit()
        assert result.error is None
        weights.append(load_file(Path(result.path) / "model.safetensors"))
    first, second = weights
    return all(first[name].equal(second[name]) for name in first)


def row(agent: int, step: int, end: float, *reads: tuple[int, int], kind: str = "step") -> Row:
    found = tuple(Read(neighbor, version, 0, 0) for neighbor, version in reads)
    return Row(agent, step, end, end, end, found, kind)  # type: ignore[arg-type]


def test_steps_after_one_that_was_not_reported_are_left_out_until_the_agent_has_come_back(tmp_path: Path) -> None:
    """Agent 1 was killed in an evaluation, after its step 1, while agent 0 averaged with it at its step 2."""
    rows = [
        row(0, 0, 1.0),
        row(1, 0, 1.0),
        row(0, 1, 3.0, (1, 2)),
        row(1, 2, 3.0, (0, 1), kind="passive"),
        row(1, 5, 4.0, (0, 2), kind="rejoined"),
        row(1, 6, 5.0),
    ]
    log, events = replayable(RowLog(rows), is_live=True, with_directions=False)
    kept = list(log)
    assert [one[:2] for one in kept] == [(0, 0), (1, 0), (0, 1), (1, 5), (1, 6)]
    assert kept[2].reads == ()
    assert [event.detail for event in events] == [
        "1 steps of agent 1, after a step that was not reported, are left out of the schedule",
        "1 reads of unreported versions of agent 1 are left out of the schedule",
    ]
    write_rows(tmp_path / "schedule.parquet", kept, {})
    assert read_rows(tmp_path / "schedule.parquet")[0] == kept


@pytest.mark.parametrize("flows", [False, True])
def test_an_answer_that_was_not_reported_is_told_of_where_it_depends_on_its_moment(flows: bool) -> None:
    """Agent 1 was killed after it had answered at its version 1, and before it reported that."""
    rows = [
        row(1, 0, 1.0, (0, 0), kind="passive"),
        row(0, 0, 1.0, (1, 0)),
        row(0, 1, 2.0, (1, 1)),
        row(0, 2, 3.0),
        row(1, 1, 4.0, (0, 3), kind="rejoined"),
    ]
    log, events = replayable(RowLog(rows), is_live=True, with_directions=False, flows=flows)
    assert len(list(log)) == len(rows)
    assert [event[:3] for event in events] == ([("reads_unrecorded", 1, 1)] if flows else [])
    assert all("1 answers of agent 1 replay as they were before" in event.detail for event in events)


def test_a_partner_s_step_may_be_by_another_clock_than_the_averaging(tmp_path: Path) -> None:
    """It is ahead by 5 seconds, or far behind."""
    passive = row(1, 0, 1.0, (0, 0), kind="passive")
    for start, ready in [(5.0, 6.0), (-9.0, -8.0)]:
        rows = [passive._replace(start=start, ready=ready), row(0, 0, 1.0, (1, 0))]
        write_rows(tmp_path / "schedule.parquet", rows, {})
        assert read_rows(tmp_path / "schedule.parquet")[0] == rows
        assert rows[0].waited_seconds == 0.0
    for start, ready, end in [(2.0, 1.0, 3.0), (0.0, 1.0, math.inf), (0.0, math.inf, 1.0), (math.nan, 1.0, 1.0)]:
        write_rows(tmp_path / "schedule.parquet", [passive._replace(start=start, ready=ready, end=end)], {})
        with pytest.raises(ValueError, match="allowed are rising times"):
            read_rows(tmp_path / "schedule.parquet")
