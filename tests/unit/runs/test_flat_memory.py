"""What a run keeps of its rows, reports and metrics as they come: memory does not grow with agents times steps."""

import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from ray_pcasgd.records import StepReport
from ray_pcasgd.runs import metric_rows
from ray_pcasgd.runs.metric_rows import MetricRows
from ray_pcasgd.runs.plan.plan import make_plan
from ray_pcasgd.runs.record import RunRecord
from ray_pcasgd.runs.settings.loading import load_config
from ray_pcasgd.runs.storage.folder import RunFolder
from ray_pcasgd.schedule import row_log

AGENTS = 4
BLOCK_ROWS = 1024
"""A quarter of what they are, which makes the test as much shorter."""


def growth(take: Callable[[], None], number: int) -> float:
    """Return by how many bytes what is held grows with each call, from ``number`` calls to three times as many."""
    tracemalloc.start()
    try:
        held = []
        for calls in (number, 2 * number):
            for _ in range(calls):
                take()
            held.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    return (held[1] - held[0]) / (2 * number)


def test_what_a_run_holds_does_not_grow_with_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole blocks of rows, so that none is unpacked at either look: what is left are notes of each block.

    Times are random, so that even packed rows would be more than that; with a record for each, it were 645 bytes a row.
    """
    monkeypatch.setattr(row_log, "BLOCK_ROWS", BLOCK_ROWS)
    steps = 6 * BLOCK_ROWS // AGENTS
    settings = {"num_agents": AGENTS, "num_steps": steps, "evaluate_every": 10**6, "engine": "local"}
    settings |= {"storage_path": str(tmp_path), "compute": {"law": {"name": "exponential", "mean": 1.0}}}
    plan = make_plan(load_config(settings))
    record = RunRecord(plan, RunFolder.create(plan.config))

    rows = [row for row in plan.schedule if row is not None]  # beforehand, so that planning does not count

    def reports() -> Iterator[StepReport]:
        for row in rows:
            measures = {"theta": 0.5, "predicting": 1.0, "choosing": 1.0}
            yield StepReport(row, row.step + 1, 1.0 / (row.step + 1), measures, 1000, row.end)

    coming = reports()
    assert growth(lambda: record.take(next(coming)), 2 * BLOCK_ROWS) < 1.0
    assert len(record.rows) == 6 * BLOCK_ROWS
    record.folder.close()


def test_metrics_take_a_few_bytes_a_figure() -> None:
    names = [f"figure_{number}" for number in range(16)]
    table, step = MetricRows(), iter(range(10**6))

    def take() -> None:
        number = next(step)
        table.extend([{"agent": agent, "step": number, **dict.fromkeys(names, 0.5 * number)} for agent in range(64)])

    assert growth(take, 8 * 10) / 64 / (2 + len(names)) < 10.0
    assert len(table.frame()) == 64 * 3 * 8 * 10


def test_metrics_are_the_same_packed_and_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures that come later, an evaluation that is made once more, and a state in between."""
    monkeypatch.setattr(metric_rows, "_BLOCK_ROWS", 3)
    table, rows = MetricRows(), list[dict[str, Any]]()
    for step in range(1, 9):
        figures = {"test_loss": 0.1 * step} if step > 2 else {}
        late = {"theta": float(step)} if step > 5 else {}
        added = [{"agent": agent, "step": step, **figures, "bytes": 2.0**step, **late} for agent in (0, 1, pd.NA)]
        table.extend(added)
        rows += added
        if step in (4, 5):
            table.drop(step)
            rows = [row for row in rows if row["step"] != step]
        if step == 6:
            table = MetricRows.restored(table.state(), 2)
        expected = pd.DataFrame(rows).astype({"agent": "Int64", "step": "int64"})
        pd.testing.assert_frame_equal(table.frame(), expected)
        averaged = [row for row in rows if row["agent"] is pd.NA]
        assert [row["step"] for row in table.averaged()] == [row["step"] for row in averaged]
        last = table.last_averaged()
        assert last is not None
        assert {name: value for name, value in last.items() if name != "agent" and value == value} == {
            name: value for name, value in averaged[-1].items() if name != "agent"
        }
        assert list(table.evaluated()) == [(row["agent"], row["step"]) for row in rows if row["agent"] is not pd.NA]
        assert table.last_step == rows[-1]["step"]


def test_a_table_without_rows_is_empty() -> None:
    for table in (MetricRows(), MetricRows.restored(MetricRows().state(), 2)):
        assert table.frame().empty
        assert (table.averaged(), table.last_averaged(), table.last_step) == ([], None, 0)
