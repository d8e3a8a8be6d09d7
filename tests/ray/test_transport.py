"""What every transport must do: the same tests against Ray, between processes, and against the loop-back."""

import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import ray
import torch
from torch import Tensor

from ray_pcasgd.agents.mailbox import Delivery, Header, Mailbox, Message
from ray_pcasgd.engines.loopback import LoopBack
from ray_pcasgd.engines.messages import Contents, LostError, RejectedError
from ray_pcasgd.engines.raw_tensors import extra_of
from ray_pcasgd.engines.ray.transport import PIECE_BYTES, RayTransport
from ray_pcasgd.engines.shared.door import Door
from ray_pcasgd.engines.transport import Transport
from ray_pcasgd.engines.validation import Expected, check_header, checked_contents

CPU = torch.device("cpu")
INLINE_BYTES = 4 * PIECE_BYTES
SENDER = 7
NAMES = ("weights", "buffers", "direction")


class Receiver:
    """Takes messages in as an agent's mail thread does, and opens them as its training thread does."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        forms = {"passes": ((), torch.int64)}
        self.expected = Expected((SENDER,), 10, None, 5, note=Delivery, forms=forms, num_tensors=2)
        self.mailbox: Mailbox[Contents] = Mailbox((SENDER,))
        self.marks: list[tuple[int, int, int]] = []

    def open_door(self) -> None:
        self.door = Door(ray.get_runtime_context().get_actor_id() or "", self)

    @ray.method(concurrency_group="mail")
    def receive(self, header: Header, contents: Contents | None, *pieces: Any) -> None:
        self.take_in(header, contents, *pieces)

    def take_in(self, header: Header, contents: Contents | None, *pieces: Any) -> None:
        check_header(self.expected, header)
        self.mailbox.put(Message(header, checked_contents(self.transport, self.expected, header, contents, pieces)), 0)

    @ray.method(concurrency_group="mail")
    def take_mark(self, neighbor: int, cut: int, sent: int) -> None:
        self.note_mark(neighbor, cut, sent)

    def note_mark(self, neighbor: int, cut: int, sent: int) -> None:
        self.marks.append((neighbor, cut, sent))

    def opened(self, version: int) -> tuple[list[Any], Any]:
        message = self.mailbox.get(SENDER, version)
        assert message is not None
        assert message.contents is not None
        parcels = message.contents[:3]
        sizes = (self.expected.weights, self.expected.buffers, self.expected.weights)
        tensors = [
            None if parcel is None else self.transport.open(name, parcel, size, "float32", CPU).numpy().copy()
            for name, parcel, size in zip(NAMES, parcels, sizes, strict=True)
        ]
        assert all(parcel is None or self.transport.is_here(parcel) for parcel in parcels)
        return tensors, message.contents.extra

    def marked(self) -> list[tuple[int, int, int]]:
        return self.marks

    def forget(self) -> None:
        self.mailbox.readmit(SENDER)
        self.marks.clear()


LONGEST_SECONDS = 60.0
"""Guards against hangs."""


class Sender:
    """Has a version that never comes."""

    def publish(self) -> None:
        threading.Event().wait()


class Kind(NamedTuple):
    """One transport, and how a test makes what it has on the other side."""

    transport: Transport
    receivers: dict[int, Any]
    call: Callable[..., Any]
    """Calls a receiver's method by name."""
    lost: Callable[[Tensor], Contents]
    """A version whose sender has ended."""


def loop_back() -> Kind:
    transport = LoopBack()

    def lost(weights: Tensor) -> Contents:
        contents = transport.publish(weights, torch.zeros(0))
        transport.lose()
        return contents

    def call(one: Receiver, name: str, *arguments: Any) -> Any:
        return getattr(one, name)(*arguments)

    return Kind(transport, {k: Receiver(transport) for k in range(3)}, call, lost)


def by_ray(over_links: bool = False) -> Kind:
    def lost(weights: Tensor) -> Contents:
        sender: Any = ray.remote(num_cpus=0)(Sender).remote()
        contents = Contents([sender.publish.remote()], np.zeros(0, np.float32), None)
        assert not transport.is_here(contents.weights)
        with pytest.raises(LostError, match="GetTimeoutError"):
            transport.fetch(contents.weights, seconds=0)
        told = threading.Event()
        transport.when_here(contents.weights, told.set)
        assert not told.is_set()
        ray.kill(sender)
        assert told.wait(LONGEST_SECONDS)
        return contents

    transport = RayTransport(INLINE_BYTES)
    remote: Any = ray.remote(num_cpus=0, concurrency_groups={"mail": 1})(Receiver)

    def call(one: Any, name: str, *arguments: Any) -> Any:
        return ray.get(getattr(one, name).remote(*arguments))

    receivers = {k: remote.remote(transport) for k in range(3)}
    if over_links:
        ray.get([receiver.open_door.remote() for receiver in receivers.values()])
        transport = RayTransport(INLINE_BYTES, Door(uuid.uuid4().hex, Receiver(transport)))
        assert transport.outbox(receivers).links() == tuple(receivers)
    return Kind(transport, receivers, call, lost)


@pytest.fixture(scope="module", params=["loop-back", "ray", "shared memory"])
def made(request: pytest.FixtureRequest) -> Iterator[Kind]:
    if request.param == "loop-back":
        yield loop_back()
        return
    request.getfixturevalue("ray_cluster")
    kind = by_ray(over_links=request.param == "shared memory")
    yield kind
    for receiver in kind.receivers.values():
        ray.kill(receiver)


@pytest.fixture
def kind(made: Kind) -> Kind:
    for receiver in made.receivers.values():
        made.call(receiver, "forget")
    return made


def vector(size: int, seed: int) -> Tensor:
    """Any bits that are finite numbers, subnormal and negative zeros among them."""
    bits = torch.randint(-(2**31), 2**31 - 1, (size,), generator=torch.Generator().manual_seed(seed)).to(torch.int32)
    values = bits.view(torch.float32)
    return torch.where(torch.isfinite(values), values, torch.tensor(-0.0))


def header(version: int, **more: Any) -> Header:
    return Header(SENDER, version, 1.0, 0.1, note=Delivery(0, 0, 0.5), **more)


def test_who_asks_is_told_once_a_parcel_is_here(made: Kind) -> None:
    contents = made.transport.publish(torch.arange(2.0 * INLINE_BYTES), torch.zeros(0))
    for parcel in contents[:2]:
        told = threading.Event()
        made.transport.when_here(parcel, told.set)
        assert told.wait(LONGEST_SECONDS)


@pytest.mark.parametrize("readers", [1, 3])
@pytest.mark.parametrize(
    "weights", [1, PIECE_BYTES // 4 + 1, INLINE_BYTES // 4, INLINE_BYTES // 4 + 1], ids="{} numbers".format
)
def test_what_is_opened_is_what_was_published_to_the_bit(kind: Kind, weights: int, readers: int) -> None:
    receivers = {k: kind.receivers[k] for k in range(readers)}
    outbox = kind.transport.outbox(receivers)
    sent = [vector(weights, 1), vector(5, 2), vector(weights, 3)]
    extra = extra_of({"passes": torch.tensor(3)}, torch.tensor([True, False]))
    with_all = kind.transport.publish(*sent)._replace(extra=extra)
    bare = kind.transport.publish(sent[2], torch.zeros(0))
    for version, contents in ((1, with_all), (2, bare)):
        done = outbox.send({k: header(version) for k in receivers}, contents, may_skip=False)
        assert done == (frozenset(receivers), [], 0)
    del with_all, bare, contents
    outbox.flush()
    for receiver in receivers.values():
        tensors, also = kind.call(receiver, "opened", 1)
        assert [one.tobytes() for one in tensors] == [one.numpy().tobytes() for one in sent]
        assert also.local["passes"].data.tobytes() == np.int64(3).tobytes()
        assert also.with_gradient.tolist() == [True, False]
        tensors, also = kind.call(receiver, "opened", 2)
        assert tensors[0].tobytes() == sent[2].numpy().tobytes()
        assert (tensors[1].size, tensors[2], also) == (0, None, None)


def test_messages_go_to_neighbors_alone_and_a_mark_counts_them(kind: Kind) -> None:
    receivers = kind.receivers
    outbox = kind.transport.outbox({k: receivers[k] for k in (0, 1)})
    contents = kind.transport.publish(vector(4, 1), torch.zeros(0))
    outbox.drop(1)
    outbox.welcome(2, receivers[2])
    assert [k in outbox for k in receivers] == [True, False, True]
    assert outbox.send({k: header(1) for k in receivers}, contents, may_skip=False).to == {0, 2}
    assert outbox.send({0: header(2, isolated=True)}, None, may_skip=False).to == {0}
    outbox.mark(SENDER, 5)
    outbox.flush()
    assert [kind.call(one, "marked") for one in receivers.values()] == [[(SENDER, 5, 2)], [], [(SENDER, 5, 1)]]


def test_what_is_lost_with_its_sender_is_a_lost_error(kind: Kind) -> None:
    contents = kind.lost(vector(10, 1))
    kind.transport.check("weights", contents.weights, 10)
    with pytest.raises(LostError):
        kind.transport.open("weights", contents.weights, 10, "float32", CPU)
    with pytest.raises(LostError):
        kind.transport.fetch(contents.weights, seconds=60)


@pytest.mark.parametrize(
    "contents",
    [
        Contents([1, 2], [3], None),
        Contents([b"not a reference"], [3], None),
        Contents("text", np.zeros(0, np.float32), None),
        Contents(None, np.zeros(0, np.float32), None),
        Contents(object(), np.zeros(0, np.float32), None),
        {"weights": 3},
        "text",
        None,
    ],
)
def test_what_is_no_parcel_is_rejected_before_it_is_believed(kind: Kind, contents: Any) -> None:
    expected = Expected((SENDER,), 10, 4, 0)
    for pieces in ([], [np.zeros(4, np.float32)]):
        with pytest.raises(RejectedError, match=r"^its |^it is empty"):
            checked_contents(kind.transport, expected, header(1), contents, pieces)


def checked_and_opened(transport: Transport, parcel: Any, size: int) -> Tensor:
    transport.check("weights", parcel, size)
    return transport.open("weights", parcel, size, "float32", CPU)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (torch.zeros(3), "have 3 numbers; allowed are 4"),
        (torch.zeros(4, dtype=torch.float64), "are float64 of shape"),
        (torch.zeros(2, 2), "are float32 of shape"),
        (torch.tensor([0.0, float("nan"), 0.0, 0.0]), "not finite"),
        (torch.tensor([0.0, float("inf"), float("-inf"), 0.0]), "not finite"),
    ],
)
@pytest.mark.parametrize("inline_bytes", [0, INLINE_BYTES])
def test_wrong_numbers_are_rejected_at_the_latest_when_they_are_opened(
    kind: Kind, weights: Tensor, message: str, inline_bytes: int
) -> None:
    transport = RayTransport(inline_bytes) if isinstance(kind.transport, RayTransport) else kind.transport
    parcel = transport.publish(weights, torch.zeros(0)).weights
    with pytest.raises(RejectedError, match=f"^its weights .*{message}"):
        checked_and_opened(transport, parcel, 4)
