"""Values over time, from a file."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from ray_pcasgd.schedule.delays import ComputeTimes, LinkDelay
from ray_pcasgd.schedule.law_trace import TraceLaw
from ray_pcasgd.schedule.laws import Law
from tests.unit.schedule.test_plan_peers import planner

SPEEDS = "second,factor,zone\n0,1,a\n3,2,b\n7,0.5,c\n"


def trace(folder: Path, content: str = SPEEDS, **settings: Any) -> TraceLaw:
    (folder / "trace.csv").write_text(content)
    law = TypeAdapter(Law).validate_python({"name": "trace", "path": str(folder / "trace.csv"), **settings})
    assert isinstance(law, TraceLaw)
    return law


def test_steps_take_as_long_as_the_trace_says_when_they_begin(tmp_path: Path) -> None:
    law = trace(tmp_path, column="factor", times=0.5)
    plan = planner(2, num_steps=11, compute=ComputeTimes(agents={1: law}))
    ends = [row.end for row in plan if row.agent == 1]
    assert ends == [0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 7.0, 7.25]
    assert law.expectation() == pytest.approx(0.5 * (3 * 1 + 4 * 2) / 7)
    assert law.only_value is None


@pytest.mark.parametrize(("unit", "expected"), [("seconds", [3, 4, 5, 6, 7]), ("steps", [3, 3, 4, 5, 6])])
def test_delays_follow_a_trace(unit: str, expected: list[int], tmp_path: Path) -> None:
    link = LinkDelay.model_validate({"delay": trace(tmp_path, "second,value\n0,0\n4,2\n"), "unit": unit})
    versions = [row.reads[0].version for row in planner(2, num_steps=9, links=(link,)) if row.agent == 0]
    # From version 4 on, which is sent at second 4, messages are two seconds, or steps, late.
    assert versions == [0, 1, 2, 3, *expected]


@given(st.lists(st.integers(0, 40), min_size=1, max_size=8, unique=True), st.floats(0, 50))
def test_the_value_that_holds_is_that_of_the_last_second_before(
    tmp_path_factory: pytest.TempPathFactory, seconds: list[int], moment: float
) -> None:
    lines = [f"{second},{100 + second}" for second in sorted(seconds)]
    law = trace(tmp_path_factory.mktemp("trace"), "\n".join(["second,value", *lines]))
    before = [second for second in seconds if second <= moment]
    assert law.sampler(np.random.default_rng(0))(moment) == 100 + (max(before) if before else min(seconds))
    assert 100 + min(seconds) <= law.expectation() <= 100 + max(seconds)
    assert law.only_value == (100 + seconds[0] if len(seconds) == 1 else None)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("second,value\n", "has no rows; allowed is one or more"),
        ("second,speed\n0,1\n", "has the columns second, speed; allowed are second, value"),
        (
            "second,value\n0,1\n0,2\n",
            "row 2 is 0, 2; allowed are seconds from 0 on, rising, and values from 0 to 1e+09",
        ),
        ("second,value\n-1,1\n", "row 1 is -1, 1; allowed are seconds from 0 on"),
        ("second,value\n0,-1\n", "row 1 is 0, -1; allowed are seconds from 0 on"),
        ("second,value\n0,1\n2,\n", "row 2 has 'nan' in the column value; allowed are numbers"),
        ("second,value\n0,fast\n", "row 1 has 'fast' in the column value; allowed are numbers"),
    ],
)
def test_what_is_no_trace_is_refused(content: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(ValidationError) as caught:
        trace(tmp_path, content)
    assert expected in str(caught.value)
