"""How fast agent-steps come."""

from typing import Any

import pytest

from ray_pcasgd.records import Row
from ray_pcasgd.runs.pace import Pace, overlap


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
        ([], (), 1.0),
    ],
)
def test_agents_overlap_where_they_run_at_the_same_time(taken: list[Row], servers: Any, share: float) -> None:
    assert overlap(taken, servers) == pytest.approx(share)
