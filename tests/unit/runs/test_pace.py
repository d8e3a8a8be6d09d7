"""How fast agent-steps come."""

import pytest

from ray_pcasgd.runs.pace import Pace


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
