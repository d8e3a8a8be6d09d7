"""Messages to a neighbor that does not take them."""

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import ray
import torch

from ray_pcasgd.agents.dense_wire import Float32, Int4
from ray_pcasgd.agents.mailbox import Header
from ray_pcasgd.engines.messages import Contents
from ray_pcasgd.engines.ray.outbox import door_of
from ray_pcasgd.engines.ray.telling import once_there
from ray_pcasgd.engines.ray.transport import RayTransport
from ray_pcasgd.engines.shared.door import Door
from ray_pcasgd.engines.shared.link import connected

pytestmark = pytest.mark.usefixtures("ray_cluster")


class Gated:
    """Takes each message in only once it is let."""

    def __init__(self) -> None:
        self.allowed = threading.Semaphore(0)
        self.changed = threading.Condition()
        self.versions: list[int] = []
        self.door = Door(ray.get_runtime_context().get_actor_id() or "", self)

    def close(self) -> None:
        """Begin anew, once nothing is under way."""
        self.allowed = threading.Semaphore(0)
        self.versions = []

    def let(self, messages: int) -> None:
        self.allowed.release(messages)

    def open(self) -> None:
        self.let(10**6)

    def received(self) -> list[int]:
        return self.versions

    def wait_for(self, version: int) -> list[int]:
        with self.changed:
            assert self.changed.wait_for(lambda: version in self.versions, LONGEST_SECONDS), self.versions
            return self.versions

    @ray.method(concurrency_group="mail")
    def receive(self, header: Header, contents: Contents, *pieces: Any) -> None:
        self.take_in(header, contents)

    def take_in(self, header: Header, contents: Contents | None) -> None:
        self.allowed.acquire()
        with self.changed:
            self.versions.append(header.version)
            self.changed.notify_all()

    @ray.method(concurrency_group="mail")
    def take_mark(self, sender: int, cut: int, sent: int) -> None:
        self.note_mark(sender, cut, sent)

    def note_mark(self, neighbor: int, cut: int, sent: int) -> None:
        self.allowed.acquire()


def gated() -> Any:
    remote: Any = ray.remote(num_cpus=0, concurrency_groups={"mail": 1})(Gated)
    return remote.remote()


LONGEST_SECONDS = 60.0
"""Guards against hangs."""
CONTENTS = Contents(np.zeros(2, np.float32), np.zeros(0, np.float32), None)
NUMBERS = 40_000
"""As float32 they travel in pieces."""


@pytest.fixture(scope="module")
def shared(ray_cluster: None) -> Iterator[Any]:
    """An actor that tests use, one after another: each begins with ``close``, and leaves nothing behind."""
    made = gated()
    yield made
    ray.kill(made)


class Nobody:
    """Takes nothing in."""

    def take_in(self, header: Header, contents: Contents | None) -> None:
        raise AssertionError(header)

    def note_mark(self, neighbor: int, cut: int, sent: int) -> None:
        raise AssertionError(neighbor)


@pytest.fixture(params=["calls", "links"])
def door(request: pytest.FixtureRequest) -> Door | None:
    """The sender's, where messages go over links."""
    return None if request.param == "calls" else Door(uuid.uuid4().hex, Nobody())


@pytest.fixture
def actor(shared: Any) -> Any:
    ray.get(shared.close.remote())
    return shared


@pytest.mark.parametrize(("wire", "inline_bytes"), [(Float32(), 10**6), (Int4(), 0)], ids=["in pieces", "in the store"])
def test_what_is_in_flight_is_what_travels_until_it_is_there(wire: Any, inline_bytes: int, door: Door | None) -> None:
    slow, quick = gated(), gated()
    transport = RayTransport(inline_bytes, door)
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


def test_what_was_sent_to_a_neighbor_that_is_gone_is_not_in_flight(door: Door | None) -> None:
    actor = gated()
    transport = RayTransport(0, door)
    outbox = transport.outbox({1: actor})
    outbox.send({1: Header(0, 1, 0.0, 0.0)}, transport.publish(torch.ones(5), torch.zeros(0)), may_skip=False)
    assert outbox.bytes_in_flight() == 20
    ray.kill(actor)
    outbox.flush()
    assert outbox.bytes_in_flight() == 0


@pytest.mark.parametrize("in_pairs", [False, True])
def test_a_neighbor_that_was_stopped_is_not_flooded_and_learns_of_the_end(
    in_pairs: bool, actor: Any, door: Door | None
) -> None:
    outbox = RayTransport(0, door).outbox({1: actor})
    for version in range(1, 1001):
        outbox.send({1: Header(0, version, 0.0, 0.0)}, CONTENTS, may_skip=True, in_pairs=in_pairs)
    outbox.send({1: Header(0, 1001, 0.0, 0.0, final=True)}, CONTENTS, may_skip=False, in_pairs=in_pairs)
    ray.get(actor.open.remote())
    outbox.flush()
    versions = ray.get(actor.received.remote())
    assert versions == [1, 2, 1001]
    # Once it takes messages again, it is sent the next ones.
    for version in range(1002, 1012):
        outbox.send({1: Header(0, version, 0.0, 0.0)}, CONTENTS, may_skip=True, in_pairs=in_pairs)
        outbox.flush()
    assert ray.get(actor.received.remote())[len(versions) :] == list(range(1002, 1012))


def offer(outbox: Any, versions: range, in_pairs: bool = False) -> list[int]:
    """Offer versions to neighbor 1, which may be skipped; return those that were sent at once."""
    return [
        version
        for version in versions
        if outbox.send({1: Header(0, version, 0.0, 0.0)}, CONTENTS, may_skip=True, in_pairs=in_pairs).to
    ]


def late(outbox: Any) -> int:
    """Wait until messages have been sent that had to wait; return how many."""
    while not (sent := outbox.send({}, CONTENTS, may_skip=True)).late:
        threading.Event().wait(0.01)
    number: int = sent.late
    return number


def test_of_what_has_to_wait_the_newest_follows_an_answer_though_nothing_else_is_sent(
    actor: Any, door: Door | None
) -> None:
    outbox = RayTransport(0, door).outbox({1: actor})
    assert offer(outbox, range(1, 51)) == [1, 2]
    ray.get(actor.open.remote())
    assert ray.get(actor.wait_for.remote(50)) == [1, 2, 50]
    assert late(outbox) == 1
    assert outbox.send({}, CONTENTS, may_skip=True).late == 0


class Deaf(Door):
    """Is told of no answer, as where a look has taken it in first."""

    def watch(self, fd: int, for_room: bool, then: Callable[[], None]) -> None:
        """Forget it."""


@pytest.mark.parametrize("look", ["send", "bytes"])
def test_a_look_that_takes_in_an_answer_sends_what_waits_for_it(look: str, actor: Any) -> None:
    outbox = RayTransport(0, Deaf(uuid.uuid4().hex, Nobody())).outbox({1: actor})
    assert offer(outbox, range(1, 11)) == [1, 2]
    ray.get(actor.open.remote())
    end = time.monotonic() + LONGEST_SECONDS
    while ray.get(actor.received.remote()) != [1, 2, 10]:
        _ = outbox.send({}, CONTENTS, may_skip=True) if look == "send" else outbox.bytes_in_flight()
        assert time.monotonic() < end


def test_a_flush_sends_what_has_to_wait(actor: Any, door: Door | None) -> None:
    outbox = RayTransport(0, door).outbox({1: actor})
    assert offer(outbox, range(1, 11)) == [1, 2]
    outbox.mark(0, 1)
    ray.get(actor.open.remote())
    outbox.flush()
    assert ray.get(actor.received.remote()) == [1, 2, 10]
    assert outbox.bytes_in_flight() == 0


@pytest.mark.parametrize("in_pairs", [False, True])
def test_the_second_of_a_pair_does_not_wait(in_pairs: bool, actor: Any, door: Door | None) -> None:
    outbox = RayTransport(0, door).outbox({1: actor})
    assert offer(outbox, range(1, 11), in_pairs) == [1, 2]
    ray.get(actor.let.remote(1))
    assert late(outbox) == 1
    # Under way are now 2 and 10, as many as may be.
    assert offer(outbox, range(11, 21), in_pairs) == ([11] if in_pairs else [])
    ray.get(actor.open.remote())
    assert ray.get(actor.wait_for.remote(20)) == [1, 2, 10, *([11] if in_pairs else []), 20]
    outbox.flush()


def test_a_neighbor_that_is_lost_with_a_message_that_waits_for_it_is_told_once(actor: Any, door: Door | None) -> None:
    lost = gated()
    outbox = RayTransport(0, door).outbox({1: lost, 2: actor})
    ray.get(actor.open.remote())
    assert offer(outbox, range(1, 11)) == [1, 2]
    ray.kill(lost)
    outbox.flush()
    assert 1 not in outbox
    headers = {k: Header(0, 11, 0.0, 0.0) for k in (1, 2)}
    assert outbox.send(headers, CONTENTS, may_skip=True) == (frozenset({2}), [1], 0)
    assert outbox.send({}, CONTENTS, may_skip=True) == (frozenset(), [], 0)


@pytest.mark.parametrize("comes_back", [False, True])
def test_what_waits_for_a_neighbor_that_is_dropped_or_comes_back_is_not_sent(
    comes_back: bool, actor: Any, door: Door | None
) -> None:
    outbox = RayTransport(0, door).outbox({1: actor})
    assert offer(outbox, range(1, 11)) == [1, 2]
    outbox.drop(1)
    if comes_back:
        outbox.welcome(1, actor)
    ray.get(actor.open.remote())
    told = threading.Event()
    once_there(actor.receive.remote(Header(0, 99, 0.0, 0.0), CONTENTS), told.set)
    assert told.wait(LONGEST_SECONDS)  # the outbox was told of the answers before
    outbox.flush()
    assert ray.get(actor.received.remote()) == [1, 2, 99]
    assert outbox.send({}, CONTENTS, may_skip=True) == (frozenset(), [], 0)


def test_a_share_that_was_not_sent_is_never_sent(actor: Any, door: Door | None) -> None:
    """Its sender has kept it: sent after all, it would be there twice."""
    outbox = RayTransport(0, door).outbox({1: actor})
    sent = [
        version
        for version in range(1, 20)
        if outbox.send({1: Header(0, version, 0.0, 0.0)}, CONTENTS, may_skip=True, may_wait=False).to
    ]
    ray.get(actor.open.remote())
    outbox.flush()
    assert ray.get(actor.received.remote()) == sent
    assert sent == [1, 2]


def test_what_waits_for_a_link_that_is_cut_is_not_sent(actor: Any, door: Door | None) -> None:
    outbox = RayTransport(0, door).outbox({1: actor})
    for version in range(1, 5):
        outbox.send({1: Header(0, version, 0.0, 0.0)}, CONTENTS, may_skip=True)
    outbox.keep_back(1)
    ray.get(actor.open.remote())
    outbox.flush()
    assert ray.get(actor.received.remote()) == [1, 2]


def test_a_neighbor_that_ends_between_two_messages_ends_nobody_else(door: Door | None, actor: Any) -> None:
    lost = gated()
    ray.get([lost.open.remote(), actor.open.remote()])
    outbox = RayTransport(0, door).outbox({1: lost, 2: actor})
    outbox.send(dict.fromkeys((1, 2), Header(0, 1, 0.0, 0.0)), CONTENTS, may_skip=False)
    outbox.flush()
    ray.kill(lost)
    while connected(door_of(lost)) is not None:
        threading.Event().wait(0.01)
    outbox.send(dict.fromkeys((1, 2), Header(0, 2, 0.0, 0.0)), CONTENTS, may_skip=False)
    outbox.mark(0, 1)
    outbox.flush()
    assert [k in outbox for k in (1, 2)] == [False, True]
    assert ray.get(actor.received.remote()) == [1, 2]
    assert outbox.send({}, CONTENTS, may_skip=False).gone == [1]
