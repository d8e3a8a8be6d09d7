"""What a live agent's actor rejects, apart from Ray."""

import math
import time
from functools import partial
from typing import Any

import numpy as np
import pytest

from ray_pcasgd.agents.mailbox import Answer, Header
from ray_pcasgd.engines.live.injection import InjectedDelays
from ray_pcasgd.engines.messages import Contents
from ray_pcasgd.engines.ray.actor import Actor, Found
from ray_pcasgd.engines.ray.live import moment
from ray_pcasgd.engines.ray.live_peer import PeerDriver
from ray_pcasgd.engines.ray.mail import Driving
from ray_pcasgd.records import Event, Read
from ray_pcasgd.runs.plan.plan import make_plan
from ray_pcasgd.runs.settings.loading import load_config
from ray_pcasgd.schedule.barrier import AllBarrier, NoBarrier

SETTINGS: dict[str, Any] = {
    "engine": "local",
    "num_agents": 3,
    "num_steps": 60,
    "links": [],
    "task": {"model": {"hidden": [4]}},
}
STEP = 0.02


@pytest.fixture
def agent() -> Actor:
    plan = make_plan(load_config(SETTINGS))
    injection = InjectedDelays(0, plan.config.compute, plan.config.links, plan.clusters, NoBarrier())
    scheduler: Any = None
    driving = Driving(60.0, 1, None, 20.0, 0.05, 2**16)
    actor = Actor(plan.specs[0], plan.data, driving, scheduler, partial(PeerDriver, injection=injection))
    actor.started_at = time.time()
    actor.begin()
    return actor


def contents(agent: Actor, value: float = 1.0) -> Contents:
    numbers = agent.participant.weights.numel()
    return Contents(*(np.full(size, value, np.float32) for size in (numbers, 0, numbers)))


def reads(agent: Actor) -> dict[int, Read]:
    driver = agent.driver
    assert isinstance(driver, PeerDriver)
    driver.policy.computed(time.time(), moment())
    return {found.read.neighbor: found.read for found in driver.find_reads()}


def events(agent: Actor, kind: str) -> list[Event]:
    return [one for one in agent.unsent if isinstance(one, Event) and one.kind == kind]


BAD_TIMES: list[Any] = [1e308, 10**400, math.nan, math.inf, -1.0, "now", None, True, [0.0]]


@pytest.mark.parametrize("value", BAD_TIMES, ids=lambda value: repr(value)[:12])
@pytest.mark.parametrize("field", ["sent_at", "step_seconds", "latency_seconds", "mass"])
def test_numbers_that_no_message_holds_are_rejected(agent: Actor, field: str, value: Any) -> None:
    header = Header(1, 3, time.time(), STEP)._replace(**{field: value})
    agent.receive(header, contents(agent))
    (event,) = events(agent, "message_rejected")
    assert field in event.detail
    assert len(event.detail) < 300
    assert reads(agent)[1].version == 0


@pytest.mark.parametrize("note", [Answer(1, 1), "text", 7, object()])
def test_between_peers_there_are_no_notes(agent: Actor, note: Any) -> None:
    agent.receive(Header(1, 3, time.time(), STEP, note=note), contents(agent))
    assert len(events(agent, "message_rejected")) == 1


@pytest.mark.parametrize("mark", [("x", 1, 1), (9, 1, 1), (1, "x", 1), (1, 1, -1), (1, 1, 10**400), (1, None, 1)])
def test_what_a_neighbor_says_of_a_cut_is_checked(agent: Actor, mark: Any) -> None:
    agent.take_mark(*mark)
    assert len(events(agent, "message_rejected")) == 1
    assert agent.marks == {1: {}, 2: {}}


def live_agent(agent: int = 0, **settings: Any) -> Actor:
    plan = make_plan(load_config(SETTINGS | settings))
    injection = InjectedDelays(0, plan.config.compute, plan.config.links, plan.clusters, AllBarrier())
    scheduler: Any = None
    driving = Driving(60.0, 1, None, 20.0, 0.05, 2**16)
    actor = Actor(plan.specs[agent], plan.data, driving, scheduler, partial(PeerDriver, injection=injection))
    actor.started_at = time.time()
    actor.begin()
    return actor


def differing(agent: int = 0) -> Actor:
    """A live agent that is sent differences, all of which travels."""
    return live_agent(agent, algorithm="choco-sgd")


def open_read(agent: Actor, version: int) -> float | None:
    """Return by how much what is read of agent 1 at a version is above where all begin; ``None``: it was refused."""
    found = agent.find(Read(1, version, 0, 0))
    assert found is not None
    received = agent.open_all([found])
    return round(float((received[0].weights - agent.participant.weights).mean()), 3) if received else None


def test_differences_are_added_in_order_whatever_is_read_of_them() -> None:
    agent = differing()

    def come(version: int, value: float, is_difference: bool = True) -> None:
        numbers = np.full(agent.participant.weights.numel(), value, np.float32)
        if not is_difference:
            numbers = numbers + agent.participant.weights.numpy()
        header = Header(1, version, time.time(), STEP, is_difference=is_difference)
        agent.receive(header, Contents(numbers, np.zeros(0, np.float32), None))

    for version in (1, 2, 3):
        come(version, 0.5)
    assert open_read(agent, 1) == 0.5
    assert open_read(agent, 3) == 1.5, "version 2 was taken in, too"
    assert open_read(agent, 3) == 1.5, "read once more"
    assert open_read(agent, 2) is None, "it is not known any more"
    come(5, 0.5)
    assert open_read(agent, 5) is None, "version 4 was lost"
    assert open_read(agent, 3) == 1.5
    come(6, 7.0, is_difference=False)
    come(7, 0.25)
    assert open_read(agent, 7) == 7.25, "a whole copy makes up for what was lost"
    assert isinstance(agent.driver, PeerDriver)
    agent.driver.strangers.add(1)
    come(8, 0.5)
    assert agent.mailbox.get(1, 8) is None, "it was sent before its sender was lost"
    come(9, 1.0, is_difference=False)
    come(10, 0.5)
    assert open_read(agent, 10) == 1.5


@pytest.mark.parametrize("weights", ["float32", "bf16"])
def test_who_comes_back_takes_whole_versions_alone(weights: str) -> None:
    agent = live_agent(algorithm="d-asgd", wire={"weights": weights, "fragments": 2})
    assert isinstance(agent.driver, PeerDriver)
    peer, header = agent.driver.agent, Header(1, 5, time.time(), STEP)
    whole, part = (agent.contents(one) for one in (peer.whole_message, peer.message(None)))
    first, second = agent.open_all([Found(Read(1, 5, 0, 0), header, one, None) for one in (whole, part)])
    assert agent.driver.is_whole(first)
    assert events(agent, "message_rejected") == []
    assert not agent.driver.is_whole(second)
    (event,) = events(agent, "message_rejected")
    assert "it holds a part; allowed for one that comes back is a whole version" in event.detail


def test_a_difference_is_refused_where_whole_weights_are_expected(agent: Actor) -> None:
    agent.receive(Header(1, 3, time.time(), STEP, is_difference=True), contents(agent))
    (event,) = events(agent, "message_rejected")
    assert "it is a difference" in event.detail
