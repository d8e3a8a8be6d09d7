"""Commands and status travel as JSON, and are checked where they come."""

import json
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_pcasgd.engines.live.commands import Command, Heal, Isolate, Join, Leave, SetDelay, decoded, encoded
from ray_pcasgd.engines.ray.status import RunStatus, viewed
from ray_pcasgd.records import Event, Read, Row, StepReport
from ray_pcasgd.schedule.delays import LinkDelay
from ray_pcasgd.schedule.laws import ConstantLaw, Pareto

COMMANDS: list[Command] = [
    SetDelay(entry=LinkDelay(delay=ConstantLaw(value=20), links=((0, 1),))),
    SetDelay(entry=LinkDelay(delay=Pareto(shape=2, scale=0.1), unit="seconds", between=((0, 1), (2, 3)))),
    Isolate(agents=(2, 3)),
    Heal(),
    Leave(agent=1),
    Join(agent=4),
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: type(command).__name__)
def test_a_command_arrives_as_it_was(command: Command) -> None:
    assert decoded(encoded(command)) == command


WRONG: list[Any] = [
    None,
    5,
    b"{}",
    Heal(),
    "",
    "heal",
    "[]",
    "{}",
    '{"name": "shutdown"}',
    '{"name": "heal", "more": 1}',
    '{"name": "leave"}',
    '{"name": "leave", "agent": "x"}',
    '{"name": "leave", "agent": 1.5}',
    '{"name": "isolate", "agents": []}',
    '{"name": "delay", "entry": {"delay": -1}}',
    '{"name": "delay", "entry": {"delay": {"name": "measured", "path": "/etc/passwd"}}}',
    '{"name": "delay", "entry": {"delay": {"name": "trace", "path": "/etc/passwd"}}}',
    '{"name": "leave", "agent": ' + "9" * 5000 + "}",
    "[" * 100_000,
    json.dumps({"name": "isolate", "agents": list(range(100_000))}),
    pickle.dumps(Heal()).decode("latin-1"),
]


@pytest.mark.parametrize("text", WRONG, ids=lambda text: repr(text)[:40])
def test_what_is_no_command_is_refused_in_one_line(text: Any) -> None:
    with pytest.raises(ValueError, match=r"\S") as caught:
        decoded(text)
    assert len(str(caught.value).splitlines()) == 1


def status() -> RunStatus:
    run = RunStatus(
        {"run": "first", "algorithm": "pc-asgd", "mode": "live", "num_steps": 5, "num_servers": 0, "clusters": [0, 0]},
        2,
    )
    run.take(StepReport(Row(0, 0, 0.0, 1.0, 1.0, (Read(1, 0, 3, 1),)), 1, 0.5, {}, 0, 1.0))
    run.take(StepReport(Row(1, 0, 0.0, 1.0, 1.0, ()), 1, float("nan"), {}, 0, 1.0))
    run.take(Event("agent_lost", 1, 1, "agent 1 \x1b[2Jwas\nlost"))
    run.evaluated(5, {"test_accuracy": 0.5, "test_\x1b[2Jloss": 1, "test_mse": float("inf")})
    return run


def test_a_status_arrives_as_plain_data_without_what_a_terminal_would_obey() -> None:
    view = viewed(status().view())
    assert (view["run"], view["algorithm"], view["num_steps"]) == ("first", "pc-asgd", 5)
    assert view["agents"][0]["staleness"] == {1: 3}
    assert [one["loss"] for one in view["agents"]] == [0.5, None]
    assert [one["health"] for one in view["agents"]] == ["training", "lost"]
    assert view["events"] == [{"kind": "agent_lost", "agent": 1, "step": 1, "detail": "agent 1 [2Jwas lost"}]
    assert view["losses"] == [(1, 0.5)]
    assert view["tested"] == [{"step": 5, "figures": {"test_accuracy": 0.5, "test_ [2Jloss": 1.0}}]
    json.dumps(view, allow_nan=False)
    assert viewed("") == {}


@pytest.mark.parametrize("text", [None, {"run": "first"}, b"", "[]", "{", "{}", '{"run": 5}', "[" * 100_000], ids=repr)
def test_what_is_no_status_is_refused_in_one_line(text: Any) -> None:
    with pytest.raises(ValueError, match="the answer is not a run's status") as caught:
        viewed(text)
    assert len(str(caught.value).splitlines()) == 1


@given(st.data())
def test_a_status_whose_parts_are_of_another_kind_is_refused(data: st.DataObject) -> None:
    tree = json.loads(status().view())
    places = ["run", "num_steps", "agents", "events", "agent", "staleness", "detail", "losses", "tested"]
    place = data.draw(st.sampled_from(places))
    value = data.draw(
        st.sampled_from([[1], {"a": 1}, 1.5, "x", True, None, 10**30]).filter(lambda v: not isinstance(v, str))
    )
    if place == "agent":
        tree["agents"][0]["agent"] = value
    elif place == "staleness":
        tree["agents"][0]["staleness"] = value
    elif place == "detail":
        tree["events"][0]["detail"] = value
    else:
        tree[place] = value
    with pytest.raises(ValueError, match="the answer is not a run's status"):
        viewed(json.dumps(tree))
