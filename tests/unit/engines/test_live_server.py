"""What a live server's actor keeps and rejects, apart from Ray; its decisions: ``live/test_server.py``."""

import math
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_pcasgd.agents.mailbox import Answer, Delivery, Header, Message
from ray_pcasgd.agents.server import Server
from ray_pcasgd.engines.live.decisions import Wait
from ray_pcasgd.engines.live.injection import InjectedDelays
from ray_pcasgd.engines.live.server import ServerPolicy
from ray_pcasgd.engines.messages import Contents
from ray_pcasgd.engines.ray.actor import Actor
from ray_pcasgd.engines.ray.live import moment
from ray_pcasgd.engines.ray.live_server import ServerDriver
from ray_pcasgd.engines.ray.mail import Driving
from ray_pcasgd.records import Event
from ray_pcasgd.runs.plan.plan import Plan, make_plan
from ray_pcasgd.runs.settings.loading import load_config
from ray_pcasgd.schedule.barrier import NoBarrier

NUM_WORKERS = 3


def plan_of(gathering: Any, delay: int) -> Plan:
    settings = {
        "engine": "local",
        "num_agents": NUM_WORKERS,
        "num_steps": 100,
        "links": [{"delay": delay}] if delay else [],
        "task": {"model": {"hidden": [4]}},
        "algorithm": {"name": "server", "gathering": gathering, "correction": "dc-asgd-a"},
    }
    return make_plan(load_config(settings))


PLANS = {
    (name, delay): plan_of(gathering, delay)
    for name, gathering in {"asgd": "asgd", "2-batch-async": {"name": "k-batch-async", "k": 2}}.items()
    for delay in (0, 1, 4)
}


class RecordingDriver(ServerDriver):
    """Keeps what it would send."""

    def answer(self, headers: Mapping[int, Header], whole: Collection[int]) -> None:
        self.answers = [*getattr(self, "answers", []), *headers.items()]
        super().answer(headers, whole)


class Served(NamedTuple):
    """A server's actor, and its driver."""

    actor: Actor
    driver: RecordingDriver

    @property
    def server(self) -> Server:
        return self.driver.server

    @property
    def policy(self) -> ServerPolicy:
        return self.driver.policy


def server_of(plan: Plan) -> Served:
    injection = InjectedDelays(0, plan.config.compute, plan.config.links, plan.clusters, NoBarrier())
    scheduler: Any = None
    driving = Driving(60.0, 1, None, None, None, 2**16)
    make = partial(RecordingDriver, injection=injection)
    actor = Actor(plan.specs[NUM_WORKERS], plan.data, driving, scheduler, make)
    actor.sent_at = math.inf  # nothing is reported here
    assert isinstance(actor.driver, RecordingDriver)
    return Served(actor, actor.driver)


def deliver(server: Served, worker: int, version: int) -> None:
    """Let a gradient arrive that was computed at the version which the worker was told to read."""
    note = Delivery(server.policy.given[worker], server.server.version, 1.0)
    header = Header(worker, version, 0.0, 0.0, note=note)
    contents = server.driver.contents
    server.actor.mailbox.put(Message(header, contents[max(contents)].contents(None)), 0.0)
    turn(server)


@pytest.mark.parametrize("key", PLANS, ids=str)
@settings(max_examples=25)
@given(order=st.lists(st.integers(0, NUM_WORKERS - 1), min_size=20, max_size=40))
def test_the_gap_is_known_of_whatever_version_a_worker_reads(key: tuple[str, int], order: list[int]) -> None:
    server = server_of(PLANS[key])
    for number, worker in enumerate(order):
        deliver(server, worker, order[: number + 1].count(worker))
    assert server.server.version == len(order) // (1 if key[0] == "asgd" else 2)
    if not key[1]:
        # And no more is kept than what workers compute at, what waits, and the newest.
        assert len(server.server.history) <= NUM_WORKERS + len(server.policy.losses) + 1
        assert list(server.driver.contents) == [server.server.version]


# Messages that are not what they must be: the examples of the issue, and whatever else.

BAD_NOTES: dict[str, Any] = {
    "none": None,
    "a server's": Answer(1, 1),
    "text": "gradient",
    "text as a version": Delivery("0", 0, 1.0),  # type: ignore[arg-type]
    "text as a loss": Delivery(0, 0, "1.0"),  # type: ignore[arg-type]
    "a loss that is no number": Delivery(0, 0, math.nan),
    "a loss of 400 digits": Delivery(0, 0, 10**400),
    "true as a version": Delivery(True, True, 1.0),
    "a version to come": Delivery(0, 10**6, 1.0),
    "computed at a version to come": Delivery(7, 7, 1.0),
    "begun before it was computed at": Delivery(0, -1, 1.0),
    "a version of 400 digits": Delivery(0, 10**400, 1.0),
}
BAD_VERSIONS: list[Any] = [0, -1, 2, 10**6, 2**40, 10**400, "1", 1.0, True, None]


def gradient(server: Served, value: float = 0.01, size: int | None = None, kind: Any = np.float32) -> Contents:
    number = server.server.weights.numel() if size is None else size
    return Contents(np.full(number, value, kind), np.zeros(0, np.float32), None)


def turn(server: Served) -> None:
    """Let the server do what there is to do, as its training thread does."""
    while not isinstance(decision := server.policy.decide(moment()), Wait):
        server.driver.act(decision)


def rejections(server: Served) -> list[str]:
    return [one.detail for one in server.actor.unsent if isinstance(one, Event) and one.kind == "message_rejected"]


@pytest.mark.parametrize("name", BAD_NOTES)
def test_a_note_that_is_not_what_it_must_be_ends_no_run(name: str) -> None:
    server = server_of(PLANS["asgd", 0])
    before = server.server.weights
    header = Header(0, 1, 0.0, 0.0, note=BAD_NOTES[name])
    server.actor.receive(header, gradient(server))
    turn(server)
    assert server.server.version == 0
    assert server.server.weights is before
    assert len(rejections(server)) == 1
    good = Header(1, 1, 0.0, 0.0, note=Delivery(0, 0, 1.0))
    server.actor.receive(good, gradient(server))
    turn(server)
    assert server.server.version == 1


@pytest.mark.parametrize("version", BAD_VERSIONS, ids=lambda version: repr(version)[:12])
def test_a_version_that_cannot_be_the_next_one_is_rejected(version: Any) -> None:
    server = server_of(PLANS["asgd", 0])
    server.actor.receive(Header(0, version, 0.0, 0.0, note=Delivery(0, 0, 1.0)), gradient(server))
    turn(server)
    assert server.server.version == 0
    assert len(rejections(server)) == 1
    assert server.actor.newest_of(0) == 0
    for number in (1, 2):
        server.actor.receive(
            Header(0, number, 0.0, 0.0, note=Delivery(server.policy.given[0], server.actor.version, 1.0)),
            gradient(server),
        )
        turn(server)
    assert server.server.version == 2


def test_a_gradient_that_comes_twice_is_taken_once() -> None:
    server = server_of(PLANS["2-batch-async", 0])
    for _ in range(3):
        server.actor.receive(Header(0, 1, 0.0, 0.0, note=Delivery(0, 0, 1.0)), gradient(server))
    turn(server)
    assert server.server.version == 0
    assert list(server.policy.losses) == [(0, 1)]
    assert server.actor.rejected[0] == 2


@pytest.mark.parametrize(
    "contents",
    [
        lambda server: gradient(server, math.nan),
        lambda server: gradient(server, math.inf),
        lambda server: gradient(server, size=3),
        lambda server: gradient(server, kind=np.float64),
        lambda server: "gradient",
        lambda server: None,
        lambda server: Contents([1, 2], np.zeros(0, np.float32), None),
    ],
)
def test_a_gradient_that_is_not_what_it_must_be_is_answered_and_never_applied(contents: Any) -> None:
    server = server_of(PLANS["asgd", 0])
    server.actor.receive(Header(0, 1, 0.0, 0.0, note=Delivery(0, 0, 1.0)), contents(server))
    turn(server)
    assert server.server.version == 0
    assert len(rejections(server)) == 1
    # Its worker waits for an answer, and goes on with the next one.
    assert [(worker, header.note) for worker, header in server.driver.answers] == [(0, Answer(0, 1))]
    server.actor.receive(Header(0, 2, 0.0, 0.0, note=Delivery(0, 0, 1.0)), gradient(server))
    turn(server)
    assert server.server.version == 1


ANYTHING = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**30), 10**30), st.floats(), st.text(max_size=4), st.just(10**400)
)
NOTES = st.one_of(ANYTHING, st.builds(Delivery, *[ANYTHING] * 3), st.builds(Answer, *[ANYTHING] * 2))
BAD_HEADERS = st.builds(
    Header, st.one_of(st.integers(0, 4), ANYTHING), ANYTHING, ANYTHING, ANYTHING, ANYTHING, note=NOTES
)
BAD_CONTENTS = st.one_of(
    ANYTHING,
    st.builds(
        Contents,
        st.one_of(
            ANYTHING, st.sampled_from([np.ones(3, np.float32), np.ones((2, 2)), np.full(294, np.nan, np.float32)])
        ),
        st.one_of(ANYTHING, st.just(np.zeros(0, np.float32))),
        st.none(),
    ),
)


@pytest.mark.parametrize("key", PLANS, ids=str)
@settings(max_examples=60)
@given(order=st.lists(st.one_of(st.integers(0, NUM_WORKERS - 1), st.tuples(BAD_HEADERS, BAD_CONTENTS)), max_size=30))
def test_whatever_comes_besides_the_server_takes_the_same_steps(key: tuple[str, int], order: list[Any]) -> None:
    disturbed, quiet = server_of(PLANS[key]), server_of(PLANS[key])
    sent = [0] * NUM_WORKERS
    for item in order:
        if isinstance(item, tuple):
            disturbed.actor.receive(*item)
            turn(disturbed)
            continue
        sent[item] += 1
        for server in (disturbed, quiet):
            note = Delivery(server.policy.given[item], server.actor.version, 1.0)
            server.actor.receive(Header(item, sent[item], 0.0, 0.0, note=note), gradient(server, 0.01 * (1 + item)))
            turn(server)
    assert disturbed.actor.version == quiet.actor.version
    assert torch.equal(disturbed.server.weights, quiet.server.weights)
    assert disturbed.policy.newest == quiet.policy.newest
