"""Curves of a status keep what they stand for, however long the run."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_pcasgd.engines.ray.status import RunStatus, viewed
from ray_pcasgd.engines.ray.status_curves import Evaluation, LossCurve, with_tested
from ray_pcasgd.records import Event, Row, StepReport


@given(st.lists(st.tuples(st.integers(0, 10**6), st.floats(-1e3, 1e3)), min_size=1))
def test_a_loss_curve_has_few_points_in_order_whose_range_is_that_of_the_losses(taken: list[tuple[int, float]]) -> None:
    curve = LossCurve(most_points=8)
    for step, loss in taken:
        curve.take(step, loss)
    points = curve.points()
    assert 0 < len(points) <= 8
    assert [step for step, _ in points] == sorted({step for step, _ in points})
    assert points[-1][0] >= max(step for step, _ in taken)
    losses = [loss for _, loss in taken]
    assert all(min(losses) - 1e-6 <= loss <= max(losses) + 1e-6 for _, loss in points)


def test_stretches_that_grow_together_have_the_mean_of_all_their_losses() -> None:
    curve = LossCurve(most_points=2)
    for step in range(8):
        curve.take(step, float(step))
    assert curve.points() == [(3, 1.5), (7, 5.5)]


def test_test_figures_keep_their_newest_and_no_step_twice() -> None:
    curve: list[Evaluation] = []
    for step in range(1, 101):
        curve = with_tested(curve, step, {"test_loss": float(step), "test_mse": math.nan}, most_points=10)
        assert len(curve) <= 10
        assert curve[-1] == Evaluation(step, {"test_loss": float(step)})
    again = with_tested(curve, 100, {"test_loss": 7.0}, most_points=10)
    assert again[:-1] == curve[:-1]
    assert again[-1].figures == {"test_loss": 7.0}


@pytest.mark.parametrize(("num_servers", "expected"), [(0, [(3, 1.0), (7, 2.0)]), (1, [(7, 2.0)])])
def test_beside_servers_theirs_is_the_runs_loss(num_servers: int, expected: list[tuple[int, float]]) -> None:
    status = RunStatus({"num_steps": 9, "num_servers": num_servers}, 2)
    status.take(StepReport(Row(0, 2, 0.0, 1.0, 1.0, ()), 3, 1.0, {}, 0, 1.0))
    status.take(StepReport(Row(1, 6, 0.0, 1.0, 1.0, ()), 7, 2.0, {}, 0, 1.0))
    assert status._losses.points() == expected


def test_the_loss_goes_as_far_as_half_of_the_agents_and_not_with_the_fastest() -> None:
    about = {
        "run": "first",
        "algorithm": "d-asgd",
        "mode": "live",
        "num_steps": 9,
        "num_servers": 0,
        "clusters": [0] * 4,
    }
    run = RunStatus(about, 4)
    # The last one, alone, is far ahead with a small loss; the first one is slow.
    for agent, last in enumerate((1, 3, 4, 8)):
        for step in range(1, last + 1):
            run.take(StepReport(Row(agent, step - 1, 0.0, 1.0, 1.0, ()), step, float(4 - agent), {}, 0, 1.0))
    assert [step for step, _ in viewed(run.view())["losses"]] == [1, 2, 3]
    for agent in (1, 2):  # of those that are left, one has taken 8 steps
        run.take(Event("agent_lost", agent, 3, "lost"))
    assert [step for step, _ in viewed(run.view())["losses"]] == [1]
