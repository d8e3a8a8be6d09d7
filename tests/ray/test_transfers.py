"""Transfers of a neighbor's versions out of Ray's object store: few at a time, and of what waits only the newest."""

import threading
from collections.abc import Iterator, Sequence
from queue import Queue
from typing import Any

import numpy as np
import pytest
import ray

from ray_pcasgd.agents.mailbox import Header, Mailbox, Message
from ray_pcasgd.engines.messages import Contents, Parcel
from ray_pcasgd.engines.ray.transfers import Transfers
from ray_pcasgd.engines.ray.transport import RayTransport

pytestmark = pytest.mark.usefixtures("ray_cluster")

SENDER = 7
LONGEST_SECONDS = 60.0
"""Guards against hangs."""


class Publisher:
    """Has versions that come only once they are let."""

    def __init__(self) -> None:
        self.gates: list[threading.Event] = []

    def close(self) -> None:
        """Let what is asked for, and nothing that is asked for from now on."""
        for gate in self.gates:
            gate.set()
        self.gates = [threading.Event() for _ in range(40)]

    @ray.method(concurrency_group="versions")
    def publish(self, version: int) -> np.ndarray[Any, Any]:
        self.gates[version].wait()
        return np.full(3, version, np.float32)

    def let(self, version: int) -> None:
        self.gates[version].set()


class Reader:
    """A reader of one sender, as a live peer is one."""

    def __init__(self, publisher: Any) -> None:
        self.publisher = publisher
        self.transport = RayTransport(0)
        self.lock = threading.Condition()
        self.mailbox: Mailbox[Contents] = Mailbox((SENDER,))
        self.asked: list[int] = []
        """Versions whose transfer has begun, in that order."""
        self.news: Queue[int | None] = Queue()
        """The newest version that is here, each time that a transfer has ended."""
        self.transfers = Transfers(self, self.mailbox, self.lock, lambda _: self.news.put(self.newest_here()))  # type: ignore[arg-type]

    def comes_later(self, parcel: Parcel) -> bool:
        return self.transport.comes_later(parcel)

    def is_here(self, parcel: Parcel) -> bool:
        versions = self.mailbox.versions(SENDER)
        version = next((v for v in versions if any(parcel is one for one in self.parcels(v))), None)
        if version is not None and version not in self.asked:
            self.asked.append(version)
        return self.transport.is_here(parcel)

    def when_here(self, parcel: Parcel, then: Any) -> None:
        self.transport.when_here(parcel, then)

    def parcels(self, version: int) -> Sequence[Parcel]:
        message = self.mailbox.get(SENDER, version)
        assert message is not None
        assert message.contents is not None
        return message.contents[:2]

    def offer(self, version: int) -> None:
        """Take in a version's header, and ask for the newest."""
        contents = Contents([self.publisher.publish.remote(version)], np.zeros(0, np.float32), None)
        with self.lock:
            self.mailbox.put(Message(Header(SENDER, version, 0.0, 0.0), contents), 0.0)
            self.newest_here()

    def newest_here(self) -> int | None:
        versions = sorted(self.mailbox.versions(SENDER), reverse=True)
        return next((v for v in versions if self.can_read(v)), None)

    def can_read(self, version: int) -> bool:
        # One that a newer one has replaced while these were asked for is not there any more.
        is_held = version in self.mailbox.versions(SENDER)
        return is_held and self.transfers.is_here(SENDER, version, self.parcels(version))

    def let(self, version: int) -> None:
        ray.get(self.publisher.let.remote(version))


@pytest.fixture(scope="module")
def publisher(ray_cluster: None) -> Iterator[Any]:
    remote: Any = ray.remote(num_cpus=0, concurrency_groups={"versions": 40})(Publisher)
    made = remote.remote()
    yield made
    ray.kill(made)


@pytest.fixture
def reader(publisher: Any) -> Reader:
    ray.get(publisher.close.remote())
    return Reader(publisher)


def test_two_versions_are_transferred_at_a_time_and_then_the_newest(reader: Reader) -> None:
    for version in range(1, 11):
        reader.offer(version)
    assert reader.asked == [1, 2]
    # What will not be transferred is dropped; 3 may hold the direction at 2.
    assert reader.mailbox.versions(SENDER) == [1, 2, 3, 10]
    reader.let(1)
    assert reader.news.get(timeout=LONGEST_SECONDS) == 1
    assert reader.asked == [1, 2, 10]
    reader.offer(11)
    assert reader.asked == [1, 2, 10]
    for version in (10, 11):
        reader.let(version)
        assert reader.news.get(timeout=LONGEST_SECONDS) == version
    # 2 is still under way, those between were never asked for.
    assert reader.asked == [1, 2, 10, 11]
    with reader.lock:
        assert not reader.transfers.is_here(SENDER, 3, reader.parcels(3))
        assert reader.transfers.is_here(SENDER, 1, reader.parcels(1))
    assert reader.asked == [1, 2, 10, 11]


def test_a_neighbor_that_begins_anew_may_be_at_an_older_version(reader: Reader) -> None:
    for version in range(21, 31):
        reader.offer(version)
    with reader.lock:
        reader.mailbox.readmit(SENDER)
        reader.transfers.forget(SENDER)
    for version in range(1, 11):
        reader.offer(version)
    assert reader.asked == [21, 22, 1, 2]
    for version in (21, 22, 2):
        reader.let(version)
    assert reader.news.get(timeout=LONGEST_SECONDS) == 2
    assert reader.asked == [21, 22, 1, 2, 10]


def test_what_is_needed_later_is_transferred_at_once(reader: Reader) -> None:
    reader.offer(1)
    with reader.lock:
        assert not reader.transfers.is_here(SENDER, 1, reader.parcels(1))
        reader.let(1)
        later = [[reader.publisher.publish.remote(2)]]
        reader.mailbox.put(Message(Header(SENDER, 2, 0.0, 0.0), Contents(later[0], np.zeros(0), None)), 0.0)
        assert not reader.transfers.is_here(SENDER, 1, [*reader.parcels(1), *later])
    assert reader.asked == [1, 2]


def test_what_is_lost_makes_room_too(reader: Reader) -> None:
    """The last test here: it ends the publisher."""
    for version in range(1, 11):
        reader.offer(version)
    ray.kill(reader.publisher)
    for _ in range(2):
        reader.news.get(timeout=LONGEST_SECONDS)
    assert reader.asked[:3] == [1, 2, 10]
