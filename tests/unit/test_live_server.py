"""What a live server's actor keeps, apart from Ray: whatever versions its workers read, it can still correct for."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_pcasgd.engines.ray.injection import Injection
from ray_pcasgd.engines.ray.server_live import LiveServerActor
from ray_pcasgd.engines.ray.shell import Driving
from ray_pcasgd.loading import load_config
from ray_pcasgd.mailbox import Delivery, Header, Message
from ray_pcasgd.plan import Plan, make_plan
from ray_pcasgd.schedule.barrier import NoBarrier
from ray_pcasgd.server import ServerSpec

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


def server_of(plan: Plan) -> LiveServerActor:
    injection = Injection(0, plan.config.compute, plan.config.links, plan.clusters, NoBarrier())
    spec = plan.specs[NUM_WORKERS]
    assert isinstance(spec, ServerSpec)
    scheduler: Any = None
    server = LiveServerActor(spec, plan.data, Driving(60.0, 1, None, None, 2**16), scheduler, injection)
    server.sent_at = math.inf  # nothing is reported here
    return server


def deliver(server: LiveServerActor, worker: int, version: int) -> None:
    """Let a gradient arrive that was computed at the version which the worker was told to read."""
    note = Delivery(server.given[worker], server.server.version, 1.0)
    header = Header(worker, version, 0.0, 0.0, note=note)
    server.mailbox.put(Message(header, server.contents[max(server.contents)]), 0.0)
    server.arrive(header)


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
        assert len(server.server.history) <= NUM_WORKERS + len(server.gatherer.waiting) + 1
        assert list(server.contents) == [server.server.version]
