"""How fast agent-steps come."""

import json
from pathlib import Path
from typing import Any

import pytest

from ray_pcasgd.records import Row
from ray_pcasgd.runs.pace import Pace, overlap
from ray_pcasgd.runs.plan.plan import make_plan
from ray_pcasgd.runs.run import Run
from ray_pcasgd.runs.settings.loading import load_config
from ray_pcasgd.runs.storage.folder import RunFolder
from ray_pcasgd.schedule.row_log import RowLog


@pytest.mark.parametrize(("steps", "rate"), [(1, 0.5), (4, 2.0)])
def test_the_first_row_s_steps_took_none_of_the_time(steps: int, rate: float) -> None:
    pace = Pace()
    assert pace.rate is None
    pace.count(10.0, steps)
    assert pace.rate_at(11.0) is None
    for now in (12.0, 14.0):
        pace.count(now, steps)
    assert (pace.number, pace.rate) == (3 * steps, rate)
    assert pace.rate_at(18.0) == rate / 2


def rows(*spans: tuple[int, float, float]) -> list[Row]:
    return [Row(agent, number, start, end, end, ()) for number, (agent, start, end) in enumerate(spans)]


@pytest.mark.parametrize(
    ("taken", "servers", "share"),
    [
        (rows((0, 0, 2), (0, 2, 10)), (), 1.0),
        (rows((0, 0, 10), (1, 0, 10)), (), 1.0),
        (rows((0, 0, 10), (1, 20, 30), (2, 40, 41)), (), 0.0),
        (rows((0, 0, 10), (1, 6, 8), (2, 7, 9)), (), (0.3 + 1 + 1) / 3),
        (rows((0, 0, 10), (1, 10, 20), (2, 0, 30)), (2,), 0.0),
        ([*rows((0, 0, 10), (1, 10, 20)), Row(1, 2, 5, 20, 20, (), "passive")], (), 0.0),
        ([], (), 1.0),
    ],
)
def test_agents_overlap_where_they_run_at_the_same_time(taken: list[Row], servers: Any, share: float) -> None:
    assert overlap(taken, servers) == pytest.approx(share)


@pytest.mark.parametrize(
    ("mode", "second", "is_said"), [("live", 20.0, True), ("live", 1.0, False), ("planned", 20.0, False)]
)
def test_a_live_run_says_that_its_agents_hardly_overlapped(
    mode: str, second: float, is_said: bool, tmp_path: Path
) -> None:
    engine = {"name": "ray", "mode": mode}
    plan = make_plan(load_config({"num_agents": 2, "engine": engine, "storage_path": str(tmp_path)}))
    run = Run(plan, RunFolder.create(plan.config))
    run.rows = RowLog(rows((0, 0, 10), (1, second, second + 10)))
    run.note_overlap()
    events = run.folder.path / "events.jsonl"
    told = [json.loads(line) for line in events.read_text().splitlines()] if events.exists() else []
    assert [event["kind"] for event in told] == ["noticed"] * is_said
    if is_said:
        assert told[0]["detail"].startswith("agents hardly ran at the same time: 0 % of an agent's time")
    run.folder.close()
