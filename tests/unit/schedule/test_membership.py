"""Who is away when: as settings and from files."""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from ray_pcasgd.schedule.membership import Absence, Away, Membership, away_times

ENTRIES: TypeAdapter[tuple[Absence, ...]] = TypeAdapter(Membership)


def away(given: Any, num_agents: int = 5) -> tuple[Away, ...]:
    return away_times(ENTRIES.validate_python(given), num_agents)


def test_entries_say_who_leaves_and_returns_when() -> None:
    entries = [
        {"agent": 3, "leaves": "20s", "returns": "45s"},
        {"agents": [1, 2], "leaves": 100},
        {"agent": 4, "returns": "500 ms"},
        {"agent": 3, "leaves": 60.5, "returns": 61},
    ]
    assert away(entries) == (
        Away(1, 100, math.inf),
        Away(2, 100, math.inf),
        Away(3, 20, 45),
        Away(3, 60.5, 61),
        Away(4, 0, 0.5),
    )
    assert away([]) == ()
    assert away({"agent": 0, "leaves": 3}) == (Away(0, 3, math.inf),)


def test_times_that_touch_are_one() -> None:
    entries = [{"agent": 0, "leaves": 5, "returns": 9}, {"agent": 0, "leaves": 2, "returns": 5}]
    assert away(entries) == (Away(0, 2, 9),)


def trace(folder: Path, *lines: str, header: str = "agent,start,end") -> dict[str, str]:
    (folder / "availability.csv").write_text("\n".join([header, *lines]) + "\n")
    return {"trace": str(folder / "availability.csv")}


def test_a_trace_says_when_agents_are_there(tmp_path: Path) -> None:
    entry = trace(tmp_path, "3, 0, 20", "3, 45,", "1, 10, 30", "1, 20, 40.5", "2, 0, 1e8")
    assert away(entry) == (
        Away(1, 0, 10),
        Away(1, 40.5, math.inf),
        Away(2, 1e8, math.inf),
        Away(3, 20, 45),
    )
    assert away([entry, {"agent": 0, "leaves": 7}])[0] == Away(0, 7, math.inf)


def test_a_trace_may_be_parquet_and_have_more_columns(tmp_path: Path) -> None:
    table = pd.DataFrame({"zone": ["a", "b"], "end": [4, 8], "agent": [2, 0], "start": [1, 0]})
    table.to_parquet(tmp_path / "there.parquet")
    assert away({"trace": str(tmp_path / "there.parquet")}) == (
        Away(0, 8, math.inf),
        Away(2, 0, 1),
        Away(2, 4, math.inf),
    )


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 10)), min_size=1, max_size=6))
def test_an_agent_is_away_where_no_line_of_its_trace_says_that_it_is_there(
    tmp_path_factory: pytest.TempPathFactory, lines: list[tuple[int, int]]
) -> None:
    entry = trace(tmp_path_factory.mktemp("trace"), *(f"0,{start},{start + length}" for start, length in lines))
    found = away(entry)
    for second in range(50):
        is_there = any(start <= second < start + length for start, length in lines)
        assert is_there != any(one.leaves <= second < one.returns for one in found)
    assert all(one.returns < other.leaves for one, other in pairwise(found))


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"leaves": 3}, "agent: is required, or agents, or trace; one of them"),
        ({"agent": 1, "agents": [2], "leaves": 3}, "agent: is required, or agents, or trace; one of them"),
        ({"agents": [2, 2], "leaves": 3}, "agents = [2, 2]: allowed is each once"),
        ({"agent": 1}, "leaves: is required, or returns, or both"),
        ({"agent": 1, "leaves": "20s", "returns": 20}, "returns = 20: allowed is later than leaves = 20"),
        ({"agent": 1, "leaves": "3 steps"}, "'3 steps': allowed are seconds, such as 20s, 500ms or 20"),
        ({"agent": 1, "leaves": "noon"}, "'noon': allowed are seconds, such as 20s, 500ms or 20"),
        ({"agent": 1, "leaves": "exponential(3s)"}, "'exponential(3s)': allowed are seconds, such as 20s, 500ms or 20"),
        ({"trace": "none.csv"}, "trace = 'none.csv': cannot be read ("),
        ({"trace": ".", "agent": 1}, "trace = '.': allowed without other settings; the file has them"),
        ({"trace": "."}, "trace = '.': is no file; allowed is CSV or Parquet"),
    ],
)
def test_wrong_entries_are_refused(entry: Any, expected: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ENTRIES.validate_python([entry])
    (error,) = caught.value.errors()
    assert error["msg"].removeprefix("Value error, ").startswith(expected)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], "has no rows; allowed is one or more"),
        (["0,5,5"], "row 1 is 0, 5, 5; allowed are an agent, and a start below its end, from 0 to 1e+09"),
        (["0,1,2", "0.5,1,2"], "row 2 is 0.5, 1, 2; allowed are an agent, and"),
        (["-1,1,2"], "row 1 is -1, 1, 2; allowed are an agent, and"),
        (["0,-1,2"], "row 1 is 0, -1, 2; allowed are an agent, and"),
        (["0,inf,"], "row 1 is 0, inf, inf; allowed are an agent, and"),
        (["0,1,2", ",1,2"], "row 2 has 'nan' in the column agent; allowed are numbers"),
        (["0,1,soon"], "row 1 has 'soon' in the column end; allowed are numbers"),
    ],
)
def test_wrong_traces_are_refused(lines: list[str], expected: str, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="trace") as caught:
        ENTRIES.validate_python(trace(tmp_path, *lines))
    assert expected in str(caught.value)
    with pytest.raises(ValidationError, match="has the columns agent, from, to; allowed are agent, start, end"):
        ENTRIES.validate_python(trace(tmp_path, "1,2,3", header="agent,from,to"))


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ([{"agent": 5, "leaves": 3}], "membership.0.agent: agent 5; allowed are 0 to 4"),
        ([{"agents": [0, -1], "leaves": 3}], "membership.0.agents: agent -1; allowed are 0 to 4"),
        (
            [{"agent": 1, "leaves": 3}, {"agents": [0, 1], "leaves": 2, "returns": 4}],
            "membership.0.agent: agent 1 is away from 2 to 4 s, and from 3 s on too; allowed are times apart",
        ),
    ],
)
def test_what_does_not_fit_a_run_is_refused(entries: Any, expected: str) -> None:
    with pytest.raises(ValueError, match="membership") as caught:
        away(entries)
    assert str(caught.value) == expected


def test_somebody_must_be_there() -> None:
    assert len(away([{"agents": [0, 1], "returns": 3}], 2)) == 2
    with pytest.raises(ValueError, match="no agent is ever there; allowed is that one is"):
        away([{"agents": [0, 1], "leaves": 0}], 2)
