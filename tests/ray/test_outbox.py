"""Messages to a neighbor that does not take them."""

import threading
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import ray
import torch

from ray_pcasgd.agents.dense_wire import Float32, Int4
from ray_pcasgd.agents.mailbox import Header
from ray_pcasgd.engines.live.window import FEWEST
from ray_pcasgd.engines.messages import Contents
from ray_pcasgd.engines.ray.transport import RayTransport

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
    def receive(self, header: Header, contents: Contents, *pieces: Any) -> None:
        self.gate.wait()
        self.versions.append(header.version)

    @ray.method(concurrency_group="mail")
    def take_mark(self, sender: int, cut: int, sent: int) -> None:
        self.gate.wait()


def gated() -> Any:
    remote: Any = ray.remote(num_cpus=0, concurrency_groups={"mail": 1})(Gated)
    return remote.remote()


NUMBERS = 40_000
"""As float32 they travel in pieces."""


@pytest.mark.parametrize(("wire", "inline_bytes"), [(Float32(), 10**6), (Int4(), 0)], ids=["in pieces", "in the store"])
def test_what_is_in_flight_is_what_travels_until_it_is_there(wire: Any, inline_bytes: int) -> None:
    slow, quick = gated(), gated()
    transport = RayTransport(inline_bytes)
    outbox = transport.outbox({1: slow, 2: quick})
    vector = wire.encode(torch.ones(NUMBERS), (0, "weights", 0, 1))
    with_direction = transport.publish(vector, torch.zeros(3), vector)
    bare = transport.publish(vector, torch.zeros(0))
    assert outbox.bytes_in_flight() == 0
    for version, contents in ((1, with_direction), (2, bare), (3, None)):
        outbox.send({k: Header(0, version, 0.0, 0.0) for k in (1, 2)}, contents, may_skip=False)
    outbox.mark(0, 1)
    for_one = 3 * wire.num_bytes(NUMBERS) + 3 * 4
    assert outbox.bytes_in_flight() == 2 * for_one
    ray.get(quick.open.remote())
    while outbox.bytes_in_flight() > for_one:
        threading.Event().wait(0.01)
    assert outbox.bytes_in_flight() == for_one
    ray.get(slow.open.remote())
    outbox.flush()
    assert outbox.bytes_in_flight() == 0
    for one in (slow, quick):
        ray.kill(one)


def test_what_was_sent_to_a_neighbor_that_is_gone_is_not_in_flight() -> None:
    actor = gated()
    transport = RayTransport(0)
    outbox = transport.outbox({1: actor})
    outbox.send({1: Header(0, 1, 0.0, 0.0)}, transport.publish(torch.ones(5), torch.zeros(0)), may_skip=False)
    assert outbox.bytes_in_flight() == 20
    ray.kill(actor)
    outbox.flush()
    assert outbox.bytes_in_flight() == 0


@pytest.mark.parametrize("in_pairs", [False, True])
def test_a_neighbor_that_was_stopped_is_not_flooded_and_learns_of_the_end(in_pairs: bool) -> None:
    actor = gated()
    outbox = RayTransport(0).outbox({1: actor})
    contents = Contents(np.zeros(2, np.float32), np.zeros(0, np.float32), None)
    for version in range(1, 1001):
        outbox.send({1: Header(0, version, 0.0, 0.0)}, contents, may_skip=True, in_pairs=in_pairs)
    outbox.send({1: Header(0, 1001, 0.0, 0.0, final=True)}, contents, may_skip=False, in_pairs=in_pairs)
    ray.get(actor.open.remote())
    outbox.flush()
    versions = ray.get(actor.received.remote())
    assert versions[-1] == 1001
    assert len(versions) <= FEWEST + 2
    assert versions == sorted(versions)
    # Once it takes messages again, it is sent the next ones.
    for version in range(1002, 1012):
        outbox.send({1: Header(0, version, 0.0, 0.0)}, contents, may_skip=True, in_pairs=in_pairs)
        outbox.flush()
    assert ray.get(actor.received.remote())[len(versions) :] == list(range(1002, 1012))
    if in_pairs:
        gaps = [a for a, b in pairwise(versions) if b != a + 1]
        assert all(version - 1 in versions for version in gaps if version > 1)
    ray.kill(actor)
