"""Schedules of runs whose agents were killed before they had reported all of their steps."""

from pathlib import Path

from ray_pcasgd.records import Read, Row
from ray_pcasgd.runs.replayable import replayable
from ray_pcasgd.schedule.trace import read_rows, write_rows


class LivePairs:
    is_live = True
    servers = ()
    reading = "pairs"


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
    kept, events = replayable(rows, LivePairs())  # type: ignore[arg-type]
    assert [one[:2] for one in kept] == [(0, 0), (1, 0), (0, 1), (1, 5), (1, 6)]
    assert kept[2].reads == ()
    assert [event.detail for event in events] == [
        "1 steps of agent 1, after a step that was not reported, are left out of the schedule",
        "1 reads of unreported versions of agent 1 are left out of the schedule",
    ]
    write_rows(tmp_path / "schedule.parquet", kept, {})
    assert read_rows(tmp_path / "schedule.parquet")[0] == kept
