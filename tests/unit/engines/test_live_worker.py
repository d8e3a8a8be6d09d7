"""What a live worker's actor decides, apart from Ray: whom it waits for, and when it is out of the run."""

from typing import Any

import pytest

from ray_pcasgd.agents.mailbox import Answer, Header, Message
from ray_pcasgd.agents.worker import WorkerSpec
from ray_pcasgd.engines.live.injection import InjectedDelays
from ray_pcasgd.engines.ray.shell import Driving, StoppedError
from ray_pcasgd.engines.ray.worker_live import LiveWorkerActor
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
ONE, OTHER = 2, 3
"""The servers."""


@pytest.fixture
def worker() -> LiveWorkerActor:
    plan = make_plan(load_config(SETTINGS))
    injection = InjectedDelays(0, plan.config.compute, plan.config.links, plan.clusters, NoBarrier())
    spec = plan.specs[0]
    assert isinstance(spec, WorkerSpec)
    scheduler: Any = None  # nothing is reported here
    actor = LiveWorkerActor(spec, plan.data, Driving(60.0, 1, None, None, None, 2**16), scheduler, injection)
    actor.begin()
    return actor


def tell(worker: LiveWorkerActor, server: int, version: int, answers: int, final: bool = False) -> None:
    """Let a server's answer arrive."""
    contents = worker.mailbox.get(server, 0)
    assert contents is not None
    header = Header(server, version, 0.0, 0.0, final=final, note=Answer(version, answers))
    worker.mailbox.put(Message(header, contents.contents), 0.0)


def test_a_server_that_has_taken_its_last_step_is_waited_for_no_more(worker: LiveWorkerActor) -> None:
    worker.worker.version = 5
    tell(worker, ONE, 3, answers=5)
    assert not worker.may_start()
    tell(worker, OTHER, 4, answers=2, final=True)
    assert worker.may_start()
    assert not worker.is_over()


def test_a_run_is_over_once_all_servers_have_taken_their_last_steps(worker: LiveWorkerActor) -> None:
    worker.worker.version = 5
    tell(worker, ONE, 4, answers=3, final=True)
    assert not worker.may_start()
    tell(worker, OTHER, 4, answers=2, final=True)
    assert worker.may_start()
    assert worker.is_over()
    worker.take_steps()
    assert worker.version == 5


def test_one_that_is_asked_to_leave_while_it_comes_back_has_left(worker: LiveWorkerActor) -> None:
    worker.worker.version = 5
    worker.is_returning = True
    worker.leave()
    with pytest.raises(StoppedError):
        worker.take_steps()
    worker.on_leave()
    assert [(event.kind, event.agent, event.step) for event in worker.unsent] == [("agent_left", 0, 5)]  # type: ignore[union-attr]
