"""What a live agent's actor reads and rejects, apart from Ray."""

import math
import time
from typing import Any

import numpy as np
import pytest

from ray_pcasgd.agents.mailbox import Answer, Header
from ray_pcasgd.agents.peer import AgentSpec
from ray_pcasgd.engines.live.injection import InjectedDelays
from ray_pcasgd.engines.ray.live import LiveAgentActor
from ray_pcasgd.engines.ray.shell import Driving
from ray_pcasgd.engines.transport import Contents
from ray_pcasgd.records import Event, Read
from ray_pcasgd.runs.plan.plan import make_plan
from ray_pcasgd.runs.settings.loading import load_config
from ray_pcasgd.schedule.barrier import NoBarrier

SETTINGS: dict[str, Any] = {
    "engine": "local",
    "num_agents": 3,
    "num_steps": 60,
    "links": [],
    "task": {"model": {"hidden": [4]}},
}
STEP = 0.02


@pytest.fixture
def agent() -> LiveAgentActor:
    return made()


def made(**settings: Any) -> LiveAgentActor:
    plan = make_plan(load_config(SETTINGS | settings))
    injection = InjectedDelays(0, plan.config.compute, plan.config.links, plan.clusters, NoBarrier())
    spec = plan.specs[0]
    assert isinstance(spec, AgentSpec)
    scheduler: Any = None
    actor = LiveAgentActor(spec, plan.data, Driving(60.0, 1, None, 20.0, 0.05, 2**16), scheduler, injection)
    actor.started_at = time.time()
    actor.begin()
    actor.step_seconds = STEP
    return actor


def contents(agent: LiveAgentActor, value: float = 1.0) -> Contents:
    numbers = agent.agent.weights.numel()
    return Contents(*(np.full(size, value, np.float32) for size in (numbers, 0, numbers)))


def tell(agent: LiveAgentActor, sender: int, version: int, sent_at: float, **more: Any) -> None:
    agent.receive(Header(sender, version, sent_at, STEP, **more), contents(agent))


def reads(agent: LiveAgentActor) -> dict[int, Read]:
    return {read.neighbor: read for read in agent.choose_reads(frozenset(), agent.version)}


def events(agent: LiveAgentActor, kind: str) -> list[Event]:
    return [one for one in agent.unsent if isinstance(one, Event) and one.kind == kind]


BAD_TIMES: list[Any] = [1e308, 10**400, math.nan, math.inf, -1.0, "now", None, True, [0.0]]


@pytest.mark.parametrize("value", BAD_TIMES, ids=lambda value: repr(value)[:12])
@pytest.mark.parametrize("field", ["sent_at", "step_seconds", "latency_seconds", "mass"])
def test_numbers_that_no_message_holds_are_rejected(agent: LiveAgentActor, field: str, value: Any) -> None:
    header = Header(1, 3, time.time(), STEP)._replace(**{field: value})
    agent.receive(header, contents(agent))
    (event,) = events(agent, "message_rejected")
    assert field in event.detail
    assert len(event.detail) < 300
    assert reads(agent)[1].version == 0


@pytest.mark.parametrize("note", [Answer(1, 1), "text", 7, object()])
def test_between_peers_there_are_no_notes(agent: LiveAgentActor, note: Any) -> None:
    agent.receive(Header(1, 3, time.time(), STEP, note=note), contents(agent))
    assert len(events(agent, "message_rejected")) == 1


@pytest.mark.parametrize("mark", [("x", 1, 1), (9, 1, 1), (1, "x", 1), (1, 1, -1), (1, 1, 10**400), (1, None, 1)])
def test_what_a_neighbor_says_of_a_cut_is_checked(agent: LiveAgentActor, mark: Any) -> None:
    agent.take_mark(*mark)
    assert len(events(agent, "message_rejected")) == 1
    assert agent.marks == {1: {}, 2: {}}


def test_an_agent_that_was_stopped_leaves_out_what_it_knows_from_before(agent: LiveAgentActor) -> None:
    """One of its neighbors has been heard of since its pause, and the other one not yet."""
    now = time.time()
    for version in range(1, 6):
        tell(agent, 1, version, now - 10.0 + STEP * version)
        tell(agent, 2, version, now - 0.5 + STEP * version)
    agent.trackers[1]._transits.extend([0.001] * 60)
    agent.trackers[2]._transits.extend([0.001] * 60)
    assert set(reads(agent)) == {2}
    assert events(agent, "neighbor_silent")
    agent.held_up = True
    assert set(reads(agent)) == set()
    tell(agent, 2, 41, now + 1.0)
    assert reads(agent)[2].version == 41


def test_a_neighbor_that_is_done_is_read_however_long_ago_that_was(agent: LiveAgentActor) -> None:
    tell(agent, 1, 59, time.time() - 99.0)
    tell(agent, 1, 60, time.time() - 98.0, final=True)
    agent.held_up = True
    read = reads(agent)[1]
    assert (read.version, read.staleness) == (60, 0)
    assert not events(agent, "neighbor_silent")


def test_a_few_short_steps_are_no_silence(agent: LiveAgentActor) -> None:
    agent.step_seconds = 0.003
    now = time.time()
    for version in range(1, 40):
        agent.receive(Header(1, version, now - 0.5 + 0.003 * version, 0.003), contents(agent))
    agent.trackers[1]._transits.extend([0.001] * 90)
    assert 1 in reads(agent)
    assert not events(agent, "neighbor_silent")


def read_at(agent: LiveAgentActor, step: int) -> dict[int, Read]:
    return {read.neighbor: read for read in agent.choose_reads(frozenset(), step)}


def test_a_neighbor_that_is_far_behind_is_not_read_until_it_has_caught_up(agent: LiveAgentActor) -> None:
    tell(agent, 1, 20, time.time())
    tell(agent, 2, 17, time.time())
    assert set(read_at(agent, 20)) == {1}
    tell(agent, 2, 18, time.time())
    assert set(read_at(agent, 20)) == {1, 2}
    assert set(read_at(agent, 3)) == {1, 2}


def test_of_a_neighbor_that_stays_behind_there_is_an_event(agent: LiveAgentActor) -> None:
    for step in range(3, 60):
        tell(agent, 1, step, time.time())
        read_at(agent, step)
    (event,) = events(agent, "neighbor_behind")
    assert event.detail.startswith("agent 2 is 52 steps behind")


def test_without_a_limit_a_neighbor_is_read_however_far_it_is_behind(agent: LiveAgentActor) -> None:
    agent.driving = agent.driving._replace(max_lag=None)
    tell(agent, 2, 1, time.time())
    assert read_at(agent, 59)[2].version == 1


def test_what_was_read_of_a_neighbor_that_is_done_is_not_read_again(agent: LiveAgentActor) -> None:
    tell(agent, 1, 59, time.time())
    assert [read_at(agent, 30)[1].version for _ in range(2)] == [59, 59]
    tell(agent, 1, 60, time.time(), final=True)
    assert read_at(agent, 31)[1].version == 60
    assert 1 not in read_at(agent, 32)
    assert agent.newest()[1] == 60


def test_push_sum_keeps_the_share_of_a_neighbor_that_is_at_its_last_step_already() -> None:
    agent = made(algorithm="sgp-overlap")
    agent.agent.place(58, agent.agent.snapshot())
    tell(agent, 1, 59, time.time())
    tell(agent, 2, 58, time.time())
    assert not agent.can_reach(1)
    assert agent.can_reach(2)
    agent.agent.place(59, agent.agent.snapshot())
    tell(agent, 2, 59, time.time())
    assert agent.can_reach(2)
