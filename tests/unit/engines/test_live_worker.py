"""What a live worker's actor does, apart from Ray; what it decides is tested in ``live/test_worker.py``."""

from functools import partial
from typing import Any

import pytest

from ray_pcasgd.agents.mailbox import Answer, Header, Message
from ray_pcasgd.engines.live.injection import InjectedDelays
from ray_pcasgd.engines.ray.actor import Actor
from ray_pcasgd.engines.ray.live_worker import WorkerDriver
from ray_pcasgd.engines.ray.mail import Driving, StoppedError
from ray_pcasgd.runs.plan.plan import make_plan
from ray_pcasgd.runs.settings.loading import load_config
from ray_pcasgd.schedule.barrier import NoBarrier

SETTINGS: dict[str, Any] = {
    "engine": "local",
    "num_agents": 2,
    "num_steps": 4,
    "evaluate_every": 4,
    "links": [],
    "task": {"model": {"hidden": [4]}},
    "algorithm": {"name": "server", "shards": 2},
}
SERVERS = (2, 3)


@pytest.fixture
def worker() -> Actor:
    plan = make_plan(load_config(SETTINGS))
    injection = InjectedDelays(0, plan.config.compute, plan.config.links, plan.clusters, NoBarrier())
    scheduler: Any = None  # nothing is reported here
    driving = Driving(60.0, 1, None, None, None, 2**16)
    actor = Actor(plan.specs[0], plan.data, driving, scheduler, partial(WorkerDriver, injection=injection))
    actor.begin()
    return actor


def test_a_worker_takes_no_step_once_all_servers_have_taken_their_last_ones(worker: Actor) -> None:
    for server in SERVERS:
        start = worker.mailbox.get(server, 0)
        assert start is not None
        header = Header(server, 4, 0.0, 0.0, final=True, note=Answer(4, 0))
        worker.mailbox.put(Message(header, start.contents), 0.0)
    worker.take_steps()
    assert worker.version == 0


def test_one_that_is_asked_to_leave_while_it_comes_back_has_left(worker: Actor) -> None:
    driver = worker.driver
    assert isinstance(driver, WorkerDriver)
    driver.worker.version = driver.policy.rejoin([4], 0)
    worker.leave()
    with pytest.raises(StoppedError):
        worker.take_steps()
    worker.on_leave()
    assert [(event.kind, event.agent, event.step) for event in worker.unsent] == [("agent_left", 0, 5)]  # type: ignore[union-attr]


def test_a_worker_that_was_stopped_takes_no_step(worker: Actor) -> None:
    worker.leave()
    with pytest.raises(StoppedError):
        worker.take_steps()
    assert worker.version == 0
