"""What a schedule's file says of its run, as texts and back."""

from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_pcasgd.schedule.info import ScheduleInfo

INFOS = st.builds(
    ScheduleInfo,
    run=st.text(),
    mode=st.sampled_from(["planned", "live"]),
    algorithm=st.text(),
    reading=st.sampled_from(["newest", "news", "every", "pairs", ""]),
    num_agents=st.none() | st.integers(1, 10**6),
    num_servers=st.integers(0, 1000),
    seed=st.none() | st.integers(0, 2**63 - 1),
    gathering=st.text(),
    left=st.frozensets(st.integers(0, 10**6)),
)


@given(INFOS)
def test_texts_come_back_as_what_they_were_made_of(info: ScheduleInfo) -> None:
    assert ScheduleInfo.from_metadata({**info.to_metadata(), "rate": "1"}) == info


def test_texts_are_those_that_files_have_always_had() -> None:
    info = ScheduleInfo(
        run="pc-asgd-1",
        mode="live",
        algorithm="pc-asgd",
        reading="newest",
        num_agents=4,
        seed=7,
        left=frozenset({10, 2}),
    )
    assert list(info.to_metadata().items()) == [
        ("run", "pc-asgd-1"),
        ("mode", "live"),
        ("algorithm", "pc-asgd"),
        ("reading", "newest"),
        ("num_agents", "4"),
        ("num_servers", "0"),
        ("seed", "7"),
        ("left", "2 10"),
    ]
    with_server = replace(info, gathering='{"name": "asgd"}').to_metadata()
    assert with_server.pop("gathering") == '{"name": "asgd"}'
    assert with_server == info.to_metadata()
    assert len(with_server) == len(fields(info)) - 1


def test_what_a_file_does_not_say_has_its_default() -> None:
    assert ScheduleInfo.from_metadata({}) == ScheduleInfo()


@pytest.mark.parametrize("name", ["num_agents", "num_servers", "seed"])
@pytest.mark.parametrize("text", ["", "x", "-1", "1.0", "1" * 20, "\u0661"])
def test_what_is_no_number_is_refused_in_one_line(name: str, text: str) -> None:
    with pytest.raises(ValueError, match=rf"^{name} = '.*'; allowed is a whole number$"):
        ScheduleInfo.from_metadata({name: text})
