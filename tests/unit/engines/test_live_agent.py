"""What a live agent's actor rejects, apart from Ray."""

import math
import time
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ray_pcasgd.agents.differing import DifferingPeer
from ray_pcasgd.agents.mailbox import Answer, Header
from ray_pcasgd.engines.live.asking import Asking
from ray_pcasgd.engines.live.commands import LinkChanges
from ray_pcasgd.engines.live.decisions import Take
from ray_pcasgd.engines.live.injection import InjectedDelays
from ray_pcasgd.engines.loopback import LoopBackOutbox
from ray_pcasgd.engines.messages import Contents
from ray_pcasgd.engines.ray.actor import Actor, Found
from ray_pcasgd.engines.ray.live import moment
from ray_pcasgd.engines.ray.live_peer import PeerDriver
from ray_pcasgd.engines.ray.mail import Driving
from ray_pcasgd.records import Event, Read, Row
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


def sending(sender: Actor, reader: Actor) -> None:
    """Let a live agent take a step by itself, and send its version."""
    assert isinstance(sender.driver, PeerDriver)
    row = Row(1, sender.version, 0.0, 0.0, 0.0, ())
    assert sender.take(row, []) is not None
    sender.driver.policy.stepped(sender.version, moment())
    sender.driver.publish()


def opened(reader: Actor, version: int) -> Tensor | None:
    """Return what the driver of a live agent reads of agent 1 at a version; ``None``: it was refused."""
    assert isinstance(reader.driver, PeerDriver)
    received = reader.driver.open_all(reader.driver.find(Take((Read(1, version, 0, 0),))))
    return received[0].weights if received else None


def connected(steps: int) -> tuple[Actor, Actor]:
    """A live reader and one that sends it differences, agent 1; both within this process."""
    reader, sender = (live_agent(k, algorithm="choco-sgd", wire="bf16", num_steps=steps) for k in (0, 1))
    transport: Any = reader.transport
    reader.outbox, sender.outbox = (LoopBackOutbox(transport, {1: sender}), LoopBackOutbox(transport, {0: reader}))
    assert isinstance(sender.driver, PeerDriver)
    sender.driver.begin()
    return reader, sender


def test_who_has_lost_a_difference_asks_for_a_whole_copy_and_goes_on() -> None:
    reader, sender = connected(60)
    assert isinstance(reader.driver, PeerDriver)
    assert isinstance(sender.driver, PeerDriver)
    assert isinstance(sender.participant, DifferingPeer)
    whole = []
    for version in range(1, 8):
        sending(sender, reader)
        message = reader.mailbox.get(1, version)
        assert message is not None
        if not message.header.is_difference:
            whole.append(version)
        if version == 3:
            reader.mailbox.discard(1, 3)
            continue
        read = opened(reader, version)
        if version == 4:
            assert read is None
        else:
            assert read is not None
            assert torch.equal(read, sender.participant.public.weights)
    assert whole == [5]
    assert sender.driver.in_step.counted() == 1
    assert reader.driver.given == 0, "its sender has counted it"
    assert len(events(reader, "message_rejected")) == 1


@pytest.mark.parametrize("is_lost", ["as it came", "later"])
def test_who_has_lost_a_sender_s_last_difference_is_sent_its_whole_copy_at_once(is_lost: str) -> None:
    reader, sender = connected(4)
    assert isinstance(reader.driver, PeerDriver)
    assert isinstance(sender.participant, DifferingPeer)
    for version in range(1, 5):
        sending(sender, reader)
        if version == 3 and is_lost == "later":
            reader.mailbox.discard(1, 3)
    message = reader.mailbox.get(1, 4)
    assert message is not None
    assert message.header.final
    if is_lost == "as it came":
        reader.mailbox.put(message._replace(contents=None), 0.0)
    assert opened(reader, 4) is None
    read = opened(reader, 4)
    assert read is not None
    assert torch.equal(read, sender.participant.public.weights)
    assert reader.driver.given == 1, "its sender counts no more"


def test_a_sender_is_asked_again_only_where_no_answer_has_come_for_long() -> None:
    asking = Asking()
    asked = [number for number in range(1, 20) if asking.refuse(1)]
    assert asked == [1, 9, 17]
    assert asking.is_asked(1)
    assert asking.refuse(2)
    asking.follow(1)
    assert not asking.is_asked(1)
    assert asking.refuse(1)


def test_nobody_is_asked_over_a_link_that_is_cut_or_by_a_stranger() -> None:
    reader, sender = connected(60)
    assert isinstance(reader.driver, PeerDriver)
    assert isinstance(sender.driver, PeerDriver)
    for _ in range(2):
        sending(sender, reader)
    reader.mailbox.discard(1, 1)
    config = load_config(SETTINGS)
    cut = LinkChanges(isolated=(1,))
    reader.driver.set_links(InjectedDelays(0, config.compute, config.links, (0, 0, 0), AllBarrier(), cut))
    assert opened(reader, 2) is None
    assert not reader.driver.asking.is_asked(1)
    for stranger in (7, -1, "0", None, []):
        sender.send_whole(stranger)  # type: ignore[arg-type]
    sending(sender, reader)
    message = reader.mailbox.get(1, 3)
    assert message is not None
    assert message.header.is_difference


def test_a_difference_is_refused_where_whole_weights_are_expected(agent: Actor) -> None:
    agent.receive(Header(1, 3, time.time(), STEP, is_difference=True), contents(agent))
    (event,) = events(agent, "message_rejected")
    assert "it is a difference" in event.detail
