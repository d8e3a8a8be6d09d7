"""Messages to a neighbor that does not take them."""

import threading
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import ray

from ray_pcasgd.agents.mailbox import Header
from ray_pcasgd.engines.messages import Contents
from ray_pcasgd.engines.ray.transport import MOST_PENDING, RayTransport

pytestmark = pytest.mark.usefixtures("ray_cluster")


class Gated:
    """Takes no message until it is let."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.versions: list[int] = []

    def open(self) -> None:
        self.gate.set()

    def received(self) -> list[int]:
        return self.versions

    @ray.method(concurrency_group="mail")
    def receive(self, header: Header, contents: Contents) -> None:
        self.gate.wait()
        self.versions.append(header.version)


@pytest.mark.parametrize("in_pairs", [False, True])
def test_a_neighbor_that_was_stopped_is_not_flooded_and_learns_of_the_end(in_pairs: bool) -> None:
    remote: Any = ray.remote(num_cpus=0, concurrency_groups={"mail": 1})
    gated: Any = remote(Gated).remote()
    outbox = RayTransport(0).outbox({1: gated})
    contents = Contents(np.zeros(2, np.float32), np.zeros(0, np.float32), None)
    for version in range(1, 1001):
        outbox.send({1: Header(0, version, 0.0, 0.0)}, contents, may_skip=True, in_pairs=in_pairs)
    outbox.send({1: Header(0, 1001, 0.0, 0.0, final=True)}, contents, may_skip=False, in_pairs=in_pairs)
    ray.get(gated.open.remote())
    outbox.flush()
    versions = ray.get(gated.received.remote())
    assert versions[-1] == 1001
    assert len(versions) <= MOST_PENDING + 2
    assert versions == sorted(versions)
    # Once it takes messages again, it is sent the next ones.
    for version in range(1002, 1012):
        outbox.send({1: Header(0, version, 0.0, 0.0)}, contents, may_skip=True, in_pairs=in_pairs)
        outbox.flush()
    assert ray.get(gated.received.remote())[len(versions) :] == list(range(1002, 1012))
    if in_pairs:
        gaps = [a for a, b in pairwise(versions) if b != a + 1]
        assert all(version - 1 in versions for version in gaps if version > 1)
    ray.kill(gated)
