"""Shared memory: what a reader meets is what was written, for as long as it looks at it, whoever dies meanwhile."""

import contextlib
import errno
import gc
import mmap
import multiprocessing
import os
import pickle
import select
import signal
import threading
import uuid
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_pcasgd.agents.mailbox import Header
from ray_pcasgd.engines.messages import Contents
from ray_pcasgd.engines.raw_tensors import extra_of
from ray_pcasgd.engines.shared import door, on_device
from ray_pcasgd.engines.shared.copying import LONG, copied, copied_by_blocks
from ray_pcasgd.engines.shared.door import Door
from ray_pcasgd.engines.shared.link import GoneError, Letter, Link, Mark, connected, packet
from ray_pcasgd.engines.shared.on_device import PAYS_FROM, LockedPages, OnDevice
from ray_pcasgd.engines.shared.slots import LARGE, Mapped, Slot, Slots
from ray_pcasgd.engines.transport import Finite
from tests.devices import DEVICES

ODD_BITS = (0x7F800000, 0xFF800000, 0x7FC00001, 0xFFFFFFFF, 0x7F7FFFFF, 0x80000000, 1, 0)
"""Of float32: infinite, not a number, the largest, -0, the smallest and 0."""

LONGEST_SECONDS = 60.0
"""Guards against hangs."""

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="only Linux has memory without a name")


class Reader:
    """An agent's end, which keeps what it is told."""

    def __init__(self, locks_pages: bool = False) -> None:
        self.name = uuid.uuid4().hex
        self.changed = threading.Condition()
        self.gate = threading.Event()
        self.gate.set()
        self.messages: list[tuple[Header, Contents | None]] = []
        self.marks: list[tuple[int, int, int]] = []
        self.door = Door(self.name, self, locks_pages)

    def take_in(self, header: Header, contents: Contents | None) -> None:
        assert self.gate.wait(LONGEST_SECONDS)
        with self.changed:
            self.messages.append((header, contents))
            self.changed.notify_all()

    def note_mark(self, neighbor: int, cut: int, sent: int) -> None:
        with self.changed:
            self.marks.append((neighbor, cut, sent))
            self.changed.notify_all()

    def wait_for(self, number: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.messages) >= number, LONGEST_SECONDS)


def link_to(reader: Reader) -> Link:
    link = connected(reader.name)
    assert link is not None
    return link


def header(version: int) -> Header:
    return Header(3, version, 1.0, 0.1)


def vector(size: int, fill: float) -> Any:
    return np.full(size, fill, np.float32)


def contents_with(value: float, size: int = 1000) -> Contents:
    return Contents(vector(size, value), vector(3, -value), vector(size, 2 * value))


def await_answers(link: Link, number: int) -> None:
    """Wait until a reader has answered so many letters, with what it has let go of."""
    while number:
        select.select([link], [link] if link.is_clogged else [], [], LONGEST_SECONDS)
        number -= link.answers()
        assert number >= 0


def test_what_is_read_is_what_was_written_to_the_bit_and_marks_keep_their_place() -> None:
    reader, slots = Reader(), Slots()
    link = link_to(reader)
    extra = extra_of({"passes": torch.tensor(3)}, torch.tensor([True, False]))
    encoded = Contents(np.arange(77, dtype=np.uint8), vector(0, 0.0), None, extra)
    link.tell(header(1), slots.written(contents_with(1.5)))
    link.mark(Mark(3, 9, 1))
    link.tell(header(2), slots.written(encoded))
    link.tell(header(3)._replace(isolated=True), None)
    reader.wait_for(3)
    assert [one.version for one, _ in reader.messages] == [1, 2, 3]
    assert reader.marks == [(3, 9, 1)]
    first, second, third = (contents for _, contents in reader.messages)
    assert first is not None
    for given_array, found in zip(contents_with(1.5)[:3], first[:3], strict=True):
        assert found.dtype == np.float32
        assert found.tobytes() == given_array.tobytes()
        assert isinstance(found, Finite)
        assert not found.flags.writeable
    assert second is not None
    assert second.weights.tobytes() == encoded.weights.tobytes()
    assert (second.buffers.size, second.direction) == (0, None)
    assert second.extra is not None
    assert second.extra.local["passes"].data.tobytes() == np.int64(3).tobytes()
    assert third is None


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 200_000), st.sampled_from([float("nan"), float("inf"), -float("inf"), 3e38, 1.0]), st.data())
def test_what_is_not_finite_is_known_not_to_be(size: int, odd: float, data: st.DataObject) -> None:
    array = vector(size, 3e38)  # their sum overflows
    if size:
        array[data.draw(st.integers(0, size - 1))] = odd
    slot = Slots().written(Contents(array, vector(0, 0.0), None))
    assert slot.parts[0] is not None
    assert slot.parts[0].is_finite == bool(np.isfinite(array).all())


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9), st.sampled_from([*ODD_BITS]), st.data())
def test_long_arrays_are_copied_as_short_ones_are(
    skip: int, more: int, apart: int, odd: int, data: st.DataObject
) -> None:
    size = LONG + more
    bits = np.random.default_rng(more).integers(0, 0x7F800000, size + skip, dtype=np.uint32)[skip:]
    bits[data.draw(st.integers(0, size - 1))] = odd
    source = bits.view(np.float32)
    targets = [np.full(size + apart + 1, 7.0, np.float32) for _ in range(2)]
    is_finite = [
        copy(target[apart:-1], source) for copy, target in zip((copied, copied_by_blocks), targets, strict=True)
    ]
    assert is_finite == [bool(np.isfinite(source).all())] * 2
    for target in targets:
        assert target[apart:-1].tobytes() == source.tobytes()
        assert (target[:apart] == 7.0).all()
        assert target[-1] == 7.0


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", [3, LARGE // 4, 3 * LARGE + 1])
def test_what_is_on_a_device_comes_as_what_is_not(size: int, device: str) -> None:
    random = np.random.default_rng(size)
    weights, direction = (random.standard_normal(size, dtype=np.float32) for _ in range(2))
    direction[size // 2] = np.inf
    whole = Contents(weights, vector(5, 1.0), direction)
    moved = [OnDevice(torch.from_numpy(array).to(device)) for array in (weights, direction)]
    reader, slots = Reader(locks_pages=True), Slots()
    link = link_to(reader)
    for version in range(PAYS_FROM + 2):  # the pages are locked, and used again
        link.tell(header(version), slots.written(Contents(moved[0], whole.buffers, moved[1])))
        reader.wait_for(version + 1)
        _, found = reader.messages[-1]
        assert found is not None
        for array, given_array in zip(found[:3], whole[:3], strict=True):
            assert array.dtype == np.float32
            assert array.tobytes() == given_array.tobytes()
            assert torch.from_numpy(array.copy()).to(device).cpu().numpy().tobytes() == given_array.tobytes()
        assert isinstance(found.weights, Finite)
        assert not isinstance(found.direction, Finite)
    assert np.asarray(moved[1]).tobytes() == direction.tobytes()
    assert pickle.loads(pickle.dumps(moved[0])).tobytes() == weights.tobytes()


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(1, 9)), min_size=1, max_size=8))
def test_pages_that_are_used_again_are_locked_once_whatever_lay_there_before(places: list[tuple[int, int]]) -> None:
    locked: dict[int, int] = {}

    class Runtime:
        """As CUDA: a page that is locked cannot be locked once more."""

        def cudaHostRegister(self, first: int, size: int, flags: int) -> int:  # noqa: N802
            if any(first < start + length and start < first + size for start, length in locked.items()):
                return 712
            locked[first] = size
            return 0

        def cudaHostUnregister(self, first: int) -> int:  # noqa: N802
            del locked[first]
            return 0

    memory = mmap.mmap(-1, 24 * mmap.PAGESIZE)
    whole = np.frombuffer(memory, np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(on_device, "_runtime", Runtime)
        owner = Reader.__new__(Reader)
        pages = LockedPages(owner, memory, is_read_only=False)
        for half_pages, length in places:
            first = half_pages * mmap.PAGESIZE // 2
            array = whole[first : first + length * mmap.PAGESIZE // 2]
            at, before = array.ctypes.data, dict(locked)
            is_locked = any(start <= at and at + array.nbytes <= start + size for start, size in locked.items())
            for _ in range(PAYS_FROM - 1):
                pages.expect(array)
                assert locked == before
            pages.expect(array)
            assert is_locked == (locked == before)
            assert any(start <= at and at + array.nbytes <= start + size for start, size in locked.items())
        del owner
        assert not locked


@pytest.mark.parametrize("device", DEVICES)
def test_bytes_on_a_device_are_finite_and_come_as_they_are(device: str) -> None:
    encoded = torch.arange(LARGE, dtype=torch.int64).to(torch.uint8).to(device)
    slot = Slots().written(Contents(OnDevice(encoded), vector(0, 0.0), None))
    assert slot.parts[0] is not None
    assert (slot.parts[0].dtype, slot.parts[0].is_finite) == ("|u1", True)


def test_what_a_reader_has_mapped_stays_as_long_as_anything_of_it() -> None:
    reader, slots = Reader(), Slots()
    link = link_to(reader)
    link.tell(header(1), slots.written(contents_with(1.0)))
    reader.wait_for(1)
    _, contents = reader.messages.pop()
    (sender,) = reader.door._senders.values()
    mapped = weakref.ref(sender._mapped[0])
    link.close()
    while reader.door._senders:
        threading.Event().wait(0.001)
    del sender
    assert contents is not None
    part = contents.direction[5:]
    del contents
    gc.collect()
    assert mapped() is not None
    assert part[0] == 2.0
    del part
    gc.collect()
    assert mapped() is None


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_a_version_is_written_once_for_all_its_readers_and_stays_until_the_last_lets_go_of_it() -> None:
    readers, slots = [Reader(), Reader()], Slots()
    links = [link_to(reader) for reader in readers]
    slot = slots.written(contents_with(1.0))
    for link in links:
        link.tell(header(1), slot)
        await_answers(link, 1)
    kept = torch.from_numpy(readers[0].messages[0][1].direction)[5:]  # type: ignore[union-attr]
    for reader in readers:
        reader.messages.clear()
    gc.collect()
    # The next answers say what was let go of: one of the two still looks at a part of a part.
    following = slots.written(contents_with(2.0))
    assert following is not slot
    for link in links:
        link.tell(header(2), following)
        await_answers(link, 1)
    assert slot.readers == {links[0]}
    assert slots.written(contents_with(3.0)) not in (slot, following)
    assert kept.tolist() == [2.0] * 995
    del kept
    gc.collect()
    links[0].tell(header(3), None)
    await_answers(links[0], 1)
    assert not slot.readers
    assert slots.written(contents_with(4.0)) is slot


def test_slots_are_used_again_so_that_there_are_as_many_as_readers_hold() -> None:
    reader, slots = Reader(), Slots()
    link = link_to(reader)
    for version in range(1, 101):
        link.tell(header(version), slots.written(contents_with(version)))
        await_answers(link, 1)
        with reader.changed:
            del reader.messages[:-1]
    assert len(slots) <= 4
    found = reader.messages[-1][1]
    assert found is not None
    assert found.weights.tolist() == [100.0] * 1000


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([1, 3000, 40_000]))))
def test_no_slot_is_written_to_while_it_is_held_and_none_is_entered_twice(turns: list[tuple[int, int]]) -> None:
    slots, held = Slots(), list[Slot]()
    for released, size in turns:
        for slot in [held.pop(0) for _ in range(min(released, len(held)))]:
            slot.release("reader")
        slot = slots.written(contents_with(1.0, size))  # which asserts that nobody reads from it
        slot.readers.add("reader")
        held.append(slot)
        assert len({slot.number for slot in held}) == len(held)
        assert sum(map(len, slots._free_of.values())) <= len(slots)


def test_a_reader_that_takes_nothing_in_holds_up_nobody_and_then_gets_all_in_order() -> None:
    reader, slots = Reader(), Slots()
    link = link_to(reader)
    reader.gate.clear()
    number = 3000
    for version in range(number):
        link.tell(header(version), None if version % 2 else slots.written(contents_with(version, 4)))
    assert link.is_clogged
    reader.gate.set()
    await_answers(link, number)
    assert [one.version for one, _ in reader.messages] == list(range(number))
    for one, contents in reader.messages:
        assert one.version % 2 or (contents is not None and contents.weights.tolist() == [float(one.version)] * 4)


def test_a_link_that_is_watched_says_once_that_there_is_an_answer() -> None:
    reader, own = Reader(), Reader()
    link = link_to(reader)
    told = threading.Event()
    own.door.watch(link.fileno(), False, told.set)
    assert not told.is_set()
    link.tell(header(1), None)
    assert told.wait(LONGEST_SECONDS)
    assert link.answers() == 1


def _hold(name: str, ready: Any) -> None:
    """Be a reader that keeps all, until it is killed."""
    reader = Reader.__new__(Reader)
    reader.changed, reader.messages, reader.marks = threading.Condition(), [], []
    reader.gate = threading.Event()
    reader.gate.set()
    reader.door = Door(name, reader)
    ready.set()
    reader.wait_for(1)
    ready.clear()
    threading.Event().wait()


def _send_and_write(name: str) -> None:
    """Send a version, and be killed while the next one is written."""
    slots = Slots()
    link = connected(name)
    assert link is not None
    link.tell(header(1), slots.written(contents_with(7.0, 100_000)))
    while True:
        slots.written(contents_with(8.0, 100_000))


@pytest.fixture
def context() -> Any:
    return multiprocessing.get_context("spawn")


def test_a_reader_that_is_killed_is_noticed_and_what_it_held_is_free_again(context: Any) -> None:
    name, ready = uuid.uuid4().hex, context.Event()
    process = context.Process(target=_hold, args=(name, ready))
    process.start()
    assert ready.wait(LONGEST_SECONDS)
    slots, link = Slots(), connected(name)
    assert link is not None
    slot = slots.written(contents_with(1.0))
    link.tell(header(1), slot)
    await_answers(link, 1)
    assert slot.readers == {link}
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with pytest.raises(GoneError):
        link.answers()
    link.close()
    assert not slot.readers
    assert slots.written(contents_with(2.0)) is slot
    with pytest.raises(GoneError):
        link.tell(header(2), None)
    assert connected(name) is None


def test_a_sender_that_is_killed_as_it_writes_leaves_what_was_read_as_it_was(context: Any) -> None:
    reader = Reader()
    process = context.Process(target=_send_and_write, args=(reader.name,))
    process.start()
    reader.wait_for(1)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    found = reader.messages[0][1]
    assert found is not None
    assert set(found.weights.tolist()) == {7.0}
    assert len(reader.messages) == 1


def test_a_reader_cannot_write_to_a_slot_even_by_its_descriptor() -> None:
    import mmap

    slot = Slots().written(contents_with(1.0))
    with pytest.raises(OSError, match="not permitted"):
        mmap.mmap(slot.segment.fd, slot.num_bytes)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can be somebody else")
def test_another_user_is_not_let_in(context: Any) -> None:
    reader = Reader()
    queue = context.Queue()
    process = context.Process(target=_as_somebody_else, args=(reader.name, queue))
    process.start()
    assert queue.get(timeout=LONGEST_SECONDS) == "no link"
    process.join()
    assert not reader.messages


def _as_somebody_else(name: str, queue: Any) -> None:
    import socket

    os.setuid(65534)
    answer = "no link" if connected(name) is None else "a link"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(f"\0ray-pcasgd-{name}")
        with contextlib.suppress(OSError):  # the connection is closed, as it should be
            connection.send(packet(Letter(header(1), None)))
            if connection.recv(100):
                answer = "an answer"
    queue.put(answer)


def test_what_is_no_letter_is_told_of_and_what_follows_is_taken_in(caplog: pytest.LogCaptureFixture) -> None:
    reader = Reader()
    link = link_to(reader)
    link._connection.send(pickle.dumps(("nonsense",)))
    link._connection.send(pickle.dumps(("Letter", (1, 2), 0, 7, ())))
    link._connection.send(b"no pickle")
    link.tell(header(2), None)
    reader.wait_for(1)
    assert "a message was not taken" in caplog.text
    assert [one.version for one, _ in reader.messages] == [2]


def test_a_name_is_of_one_process_at_a_time() -> None:
    reader = Reader()
    with pytest.raises(OSError, match="in use"):
        Door(reader.name, reader)


def test_a_slot_keeps_nothing_of_its_sender_s_memory() -> None:
    slots, array = Slots(), vector(1000, 1.0)
    kept = weakref.ref(array)
    slots.written(Contents(array, vector(0, 0.0), None))
    del array
    gc.collect()
    assert kept() is None


class Failing:
    """A socket that has no room of an odd kind, once."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.left = 1

    def sendmsg(self, *arguments: Any) -> Any:
        if self.left:
            self.left -= 1
            raise OSError(errno.ENOBUFS, "no room")
        return self.connection.sendmsg(*arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.connection, name)


def test_an_error_that_is_no_end_of_the_reader_frees_none_of_its_slots() -> None:
    reader, slots = Reader(), Slots()
    link = link_to(reader)
    link._connection = Failing(link._connection)  # type: ignore[assignment]
    slot = slots.written(contents_with(1.0))
    link.tell(header(1), slot)
    assert link.is_clogged
    assert slot.readers == {link}
    link.answers()
    await_answers(link, 1)
    assert [one.version for one, _ in reader.messages] == [1]


def test_a_segment_that_could_not_be_mapped_is_given_again(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, slots = Reader(), Slots()
    link = link_to(reader)

    def fail(fd: int) -> Mapped:
        monkeypatch.undo()
        os.close(fd)
        raise OSError(errno.EMFILE, "too many descriptors")

    monkeypatch.setattr(door, "Mapped", fail)
    lost = slots.written(contents_with(1.0))
    link.tell(header(1), lost)
    await_answers(link, 1)
    assert not lost.readers
    link.tell(header(2), slots.written(contents_with(2.0)))
    await_answers(link, 1)
    (found,) = [contents for _, contents in reader.messages]
    assert found is not None
    assert set(found.weights.tolist()) == {2.0}


def test_a_host_without_such_memory_has_no_doors(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str, flags: int) -> int:
        raise OSError(errno.ENOSYS, "not implemented")

    monkeypatch.setattr(os, "memfd_create", fail)
    with pytest.raises(OSError, match="not implemented"):
        Reader()


def test_more_slots_than_one_answer_names_are_let_go_of_with_the_next_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "MOST_RELEASED", 10)
    reader, slots = Reader(), Slots()
    link = link_to(reader)
    held = list[Slot]()
    for version in range(35):
        held.append(slots.written(contents_with(version)))
        link.tell(header(version), held[-1])
    await_answers(link, 35)
    assert len({slot.number for slot in held}) == 35
    reader.messages.clear()
    gc.collect()
    for free in (10, 20, 30, 35):
        link.tell(header(35), None)
        await_answers(link, 1)
        assert sum(not slot.readers for slot in held) == free
