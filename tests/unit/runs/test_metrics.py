"""From step reports to rows of metrics: which rows come when, and what stands in them."""

import math
from typing import Any

import pandas as pd
import pytest
import torch

from ray_pcasgd.records import Read, Row, Snapshot, StepReport
from ray_pcasgd.runs.metrics import MetricsTable


def report(
    agent: int,
    step: int,
    loss: float = 1.0,
    staleness: tuple[int, ...] = (),
    measures: dict[str, float] | None = None,
    weights: float | None = None,
    waited: float = 0.0,
) -> StepReport:
    """Return a report; with weights it is one of an evaluation."""
    reads = tuple(Read(k, 0, s, s) for k, s in enumerate(staleness))
    evaluates = weights is not None
    return StepReport(
        row=Row(agent, step, float(step), step + 1.0, step + 1.0 + waited, reads),
        progress=step + 1,
        loss=loss,
        measures=measures or {},
        bytes_sent=100,
        wall_seconds=10.0 * step + agent,
        snapshot=Snapshot(torch.tensor([weights or 0.0]), torch.zeros(0), {}) if evaluates else None,
        evaluation={"accuracy": 0.5 + agent / 10} if evaluates else None,
    )


class Evaluated:
    """Figures that are there at once, or later."""

    def __init__(self, snapshot: Snapshot, is_there: bool = True) -> None:
        self.accuracy = float(snapshot.weights[0])
        self.is_there = is_there

    def figures(self, wait: bool) -> dict[str, float] | None:
        return {"accuracy": self.accuracy} if self.is_there or wait else None


def evaluated_weight(snapshot: Snapshot, step: int) -> Evaluated:
    return Evaluated(snapshot)


def settled(monitor: MetricsTable) -> list[dict[str, Any]]:
    return [row for rows in monitor.settled() for row in rows]


def feed(monitor: MetricsTable, *reports: StepReport) -> list[dict[str, Any]]:
    rows = []
    for one in reports:
        monitor.take(one)
        rows += settled(monitor)
    return rows


def test_an_evaluation_is_complete_once_every_agent_has_reported_it() -> None:
    monitor = MetricsTable(2, evaluated_weight)
    first = feed(monitor, report(0, 0), report(0, 1, weights=0.0), report(0, 2), report(0, 3, weights=0.5))
    assert first == []
    assert monitor.frame().empty
    assert monitor.latest is None
    rows = feed(monitor, report(1, 0), report(1, 1, weights=0.5))
    assert [(row["agent"], row["step"]) for row in rows[:2]] == [(0, 2), (1, 2)]
    assert rows[2]["agent"] is pd.NA
    assert [row["test_accuracy"] for row in rows] == [0.5, 0.6, 0.25]
    assert [row["consensus_distance"] for row in rows] == [0.25, 0.25, 0.25]
    assert monitor.latest is not None
    assert float(monitor.latest.mean.weights) == 0.25
    rows = feed(monitor, report(1, 2), report(1, 3, weights=1.0))
    assert [row["step"] for row in rows] == [4, 4, 4]
    frame = monitor.frame()
    assert len(frame) == 6
    assert frame["agent"].isna().tolist() == [False, False, True] * 2


def test_a_row_tells_of_the_steps_since_the_evaluation_before() -> None:
    monitor = MetricsTable(1, evaluated_weight)
    first, *_ = feed(
        monitor,
        report(0, 0, loss=1.0, staleness=(0, 4), measures={"theta": 0.25}, waited=0.5),
        report(0, 1, loss=3.0, staleness=(7,), measures={"theta": 0.75}, waited=0.25, weights=1.0),
    )
    assert first["train_loss"] == 2.0
    assert first["staleness_mean"] == pytest.approx(11 / 3)
    assert first["staleness_max"] == 7.0
    assert first["theta"] == 0.5
    assert (first["seconds"], first["wall_seconds"]) == (2.25, 10.0)
    assert (first["waited_seconds"], first["bytes_sent"]) == (0.75, 200.0)
    second, *_ = feed(monitor, report(0, 2, loss=5.0, staleness=(1,), waited=1.0, weights=1.0))
    assert (second["train_loss"], second["staleness_max"]) == (5.0, 1.0)
    assert math.isnan(second["theta"])
    # Sums over the whole run, unlike the means.
    assert (second["waited_seconds"], second["bytes_sent"]) == (1.75, 300.0)


def test_between_rows_it_is_waited_unless_a_live_agent_says_how_long_it_really_did() -> None:
    """Evaluations and sending lie between its rows too, and were counted as waiting."""
    rows = [report(0, 2 * step, weights=1.0) for step in range(3)]  # one second each, and one between them
    planned = MetricsTable(1, evaluated_weight, combines_first=True)
    assert [row["waited_seconds"] for row in feed(planned, *rows)[::2]] == [0.0, 1.0, 2.0]
    live = MetricsTable(1, evaluated_weight, combines_first=True)
    rows = [row._replace(waited_seconds=seconds) for row, seconds in zip(rows, (0.5, 0.0, 0.25), strict=True)]
    assert [row["waited_seconds"] for row in feed(live, *rows)[::2]] == [0.5, 0.5, 0.75]


def test_the_predicting_share_counts_steps_at_which_there_was_a_choice() -> None:
    monitor = MetricsTable(1, evaluated_weight)
    choices = [(1.0, 1.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0), (0.0, 0.0), (0.0, 1.0), (0.0, 1.0)]
    reports = [
        report(0, step, measures={"predicting": predicting, "choosing": choosing}, weights=0.0 if step == 6 else None)
        for step, (predicting, choosing) in enumerate(choices)
    ]
    row, averaged = feed(monitor, *reports)
    expected = sum(p * c for p, c in choices) / sum(c for _, c in choices)
    assert row["predicting_share"] == averaged["predicting_share"] == expected == 0.4


def test_the_averaged_row_leaves_out_what_is_not_there() -> None:
    monitor = MetricsTable(3, evaluated_weight)
    choosing = {"predicting": 1.0, "choosing": 1.0, "theta": 0.5}
    *_, averaged = feed(
        monitor,
        report(0, 0, weights=0.0),
        report(1, 0, staleness=(3,), measures=choosing, weights=0.0),
        report(2, 0, staleness=(1,), measures={"predicting": 0.0, "choosing": 1.0}, weights=0.0),
    )
    assert (averaged["staleness_mean"], averaged["staleness_max"]) == (2.0, 3.0)
    assert (averaged["theta"], averaged["predicting_share"]) == (0.5, 0.5)
    alone = MetricsTable(1, evaluated_weight)
    *_, averaged = feed(alone, report(0, 0, weights=0.0))
    for name in ("staleness_mean", "staleness_max", "theta", "predicting_share"):
        assert math.isnan(averaged[name])


def test_a_loss_that_is_not_finite_stays_in_its_row() -> None:
    monitor = MetricsTable(1, evaluated_weight)
    row, _ = feed(monitor, report(0, 0, loss=math.inf), report(0, 1, weights=math.nan))
    assert row["train_loss"] == math.inf
    assert math.isnan(row["consensus_distance"])


def test_agents_that_have_left_are_not_waited_for() -> None:
    monitor = MetricsTable(3, evaluated_weight)
    feed(monitor, report(0, 0, weights=1.0), report(1, 0, weights=2.0))
    assert feed(monitor, report(0, 1, weights=5.0)) == []
    monitor.leave(2)
    rows = settled(monitor)
    assert [(row["agent"], row["step"]) for row in rows[:2]] == [(0, 1), (1, 1)]
    assert rows[2]["test_accuracy"] == 1.5
    monitor.leave(1)
    rows = settled(monitor)
    assert [row["step"] for row in rows] == [2, 2]
    assert rows[1]["test_accuracy"] == 5.0
    rows = feed(monitor, report(0, 2, weights=7.0))
    assert [row["test_accuracy"] for row in rows] == [0.5, 7.0]


def test_one_that_comes_back_takes_part_in_the_newest_evaluation_after_all() -> None:
    monitor = MetricsTable(3, evaluated_weight)
    monitor.leave(2)
    feed(monitor, report(0, 0, weights=1.0), report(1, 0, weights=2.0))
    feed(monitor, report(0, 1, weights=3.0), report(1, 1, weights=5.0))
    resumed = MetricsTable(3, evaluated_weight)
    resumed.restore(monitor.state())
    for one in (monitor, resumed):
        one.come_back(2, 1)
        # An older evaluation is what it was, and so is the model.
        assert feed(one, report(2, 0, weights=9.0)) == []
        assert one.latest is not None
        assert float(one.latest.mean.weights) == 4.0
        rows = feed(one, report(2, 1, weights=10.0))
        assert [(row["step"], row["test_accuracy"]) for row in rows] == [(2, 0.5), (2, 0.6), (2, 0.7), (2, 6.0)]
        assert float(one.latest.mean.weights) == 6.0
        one.finish()
        frame = one.frame()
        assert frame[frame["agent"].isna()]["test_accuracy"].tolist() == [1.5, 6.0]
        assert frame.groupby("step").size().tolist() == [4, 4]


def test_where_it_is_known_when_one_comes_back_evaluations_do_not_depend_on_the_order_of_reports() -> None:
    """Agent 2 leaves after step 1 and is back at step 3, and waited for from there on, whenever others report."""
    others = [report(agent, step, weights=2.0 * (step + agent)) for step in range(4) for agent in range(2)]
    before, after = report(2, 0, weights=4.0), [report(2, step, weights=2.0 * step + 4) for step in (2, 3)]

    def frame(first: int, second: int) -> pd.DataFrame:
        """Agent 2 reports and leaves after so many reports of the others, and is back after so many more."""
        monitor = MetricsTable(3, evaluated_weight)
        feed(monitor, *others[:first], before)
        monitor.leave(2, back_at=3)
        feed(monitor, *others[first : first + second])
        monitor.come_back(2, 3)
        feed(monitor, *after, *others[first + second :])
        assert monitor.finish() == []
        return monitor.frame()

    whole = frame(2, 2)
    assert whole.groupby("step").size().tolist() == [4, 3, 4, 4]
    assert whole[whole["agent"].isna()]["test_accuracy"].tolist() == [2.0, 3.0, 6.0, 8.0]
    for first, second in ((0, 0), (2, 0), (2, 6), (8, 0), (4, 3)):
        assert frame(first, second).equals(whole), (first, second)


def test_what_no_longer_completes_comes_at_the_end_without_an_averaged_model() -> None:
    monitor = MetricsTable(2, evaluated_weight)
    feed(monitor, report(0, 0, weights=1.0), report(1, 0, weights=1.0), report(1, 1, weights=1.0))
    feed(monitor, report(1, 2, weights=1.0))
    rows = monitor.finish()
    assert [(row["agent"], row["step"]) for row in rows] == [(1, 2), (1, 3)]
    assert monitor.finish() == []
    assert monitor.frame()["step"].tolist() == [1, 1, 1, 2, 3]
    assert monitor.latest is not None


def test_figures_that_come_late_change_no_row_and_no_order() -> None:
    late: list[Evaluated] = []

    def begun(snapshot: Snapshot, step: int) -> Evaluated:
        late.append(Evaluated(snapshot, is_there=False))
        return late[-1]

    reports = [report(agent, step, weights=step + agent / 4) for step in range(3) for agent in range(2)]
    at_once, later = MetricsTable(2, evaluated_weight), MetricsTable(2, begun)
    feed(at_once, *reports)
    assert feed(later, *reports) == []
    assert later.latest is None
    resumed = MetricsTable(2, begun)
    resumed.restore(later.state())
    late[1].is_there = True
    assert settled(later) == []  # those before it come first
    late[0].is_there = True
    assert [row["step"] for row in settled(later)] == [1, 1, 1, 2, 2, 2]
    assert later.latest is not None
    assert float(later.latest.mean.weights) == 1.125
    for one in (later, resumed):
        rest = [rows[-1]["step"] for rows in one.settled(wait=True)]
        assert rest == ([3] if one is later else [1, 2, 3])
        assert one.frame().equals(at_once.frame())


def test_one_that_comes_back_takes_part_in_an_evaluation_whose_figures_are_still_to_come() -> None:
    monitor = MetricsTable(2, lambda snapshot, step: Evaluated(snapshot, is_there=False))
    monitor.leave(1)
    feed(monitor, report(0, 0, weights=1.0))
    monitor.come_back(1, 1)
    feed(monitor, report(1, 0, weights=4.0))
    ((*agents, averaged),) = monitor.settled(wait=True)
    assert [row["agent"] for row in agents] == [0, 1]
    assert averaged["test_accuracy"] == 2.5


def test_the_frame_keeps_agents_as_whole_numbers() -> None:
    monitor = MetricsTable(1, evaluated_weight)
    feed(monitor, report(0, 0, weights=1.0))
    frame = monitor.frame()
    assert str(frame["agent"].dtype) == "Int64"
    assert str(frame["step"].dtype) == "int64"
    assert frame["agent"].isna().tolist() == [False, True]
