"""Wire formats: against slow references, number by number, and in runs, where rules see what was decoded."""

import math
import re
import struct
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ray_pcasgd.agents.dense_wire import BF16, Float32, Int4, Int8
from ray_pcasgd.agents.mailbox import Header
from ray_pcasgd.agents.peer import Peer
from ray_pcasgd.agents.wire import Wire
from ray_pcasgd.base.randomness import stream_seed
from ray_pcasgd.engines.loopback import LoopBack
from ray_pcasgd.engines.messages import RejectedError
from ray_pcasgd.engines.validation import Expected, check_contents
from ray_pcasgd.runs.settings.loading import load_config
from tests.references.peers import (
    PUBLISHED,
    Array,
    Reference,
    assert_refused,
    assert_where_the_reference_is,
    executed,
    planned,
)

DRAW = (0, "weights", 3, 7)
LARGEST = float(np.finfo(np.float32).max)
FORMATS: list[Any] = [Float32(), BF16(), Int8(), Int4(), Int8(block=8), Int4(block=8)]
VECTORS = st.lists(
    st.one_of(st.floats(-3, 3, width=32), st.floats(-LARGEST, LARGEST, width=32), st.just(0.0)), max_size=70
)


def slow_bf16(value: float) -> float:
    """Round the upper half of the four bytes to nearest, ties to even."""
    (bits,) = struct.unpack("<I", struct.pack("<f", value))
    upper, lower = bits >> 16, bits & 0xFFFF
    if lower > 0x8000 or (lower == 0x8000 and upper & 1):
        upper += 1
    if upper & 0x7FFF >= 0x7F80:
        upper = (upper & 0x8000) | 0x7F7F  # beyond the largest number
    return float(struct.unpack("<f", struct.pack("<I", upper << 16))[0])


def slow_blocks(values: list[float], top: int, block: int, draw: tuple[int, str, int, int] = DRAW) -> list[float]:
    """Return what readers get of a vector, by the definition."""
    seed, what, agent, version = draw
    stream = torch.Generator().manual_seed(stream_seed(seed, f"wire {what}", agent, version))
    random = torch.empty(len(values)).uniform_(generator=stream).tolist()
    result = []
    for first in range(0, len(values), block):
        largest = max(abs(value) for value in values[first : first + block])
        unit = np.float32(min(np.float32(largest) / np.float32(top), np.float32(LARGEST) / np.float32(top + 1)))
        for place, value in enumerate(values[first : first + block], first):
            if unit == 0:
                result.append(0.0)
                continue
            whole = math.floor(np.float32(value) / unit + np.float32(random[place]))
            result.append(float(np.float32(max(-top, min(top, whole))) * unit))
    return result


def through(wire: Any, vector: Tensor, draw: tuple[int, str, int, int] = DRAW) -> Tensor:
    encoded = wire.encode(vector, draw)
    if not wire.is_plain:
        assert encoded.dtype == torch.uint8
        assert encoded.ndim == 1
        assert encoded.numel() == wire.num_bytes(vector.numel())
    decoded: Tensor = wire.opened("weights", encoded, vector.numel())
    assert decoded.dtype == torch.float32
    return decoded


@given(VECTORS)
def test_bf16_rounds_to_nearest(values: list[float]) -> None:
    found = through(BF16(), torch.tensor(values, dtype=torch.float32)).tolist()
    assert found == [slow_bf16(value) for value in values]


@pytest.mark.parametrize("wire", [Int8(block=8), Int8(), Int4(block=8), Int4(block=16)], ids=repr)
@given(values=VECTORS)
def test_blocks_are_those_of_the_slow_reference(wire: Any, values: list[float]) -> None:
    with np.errstate(all="ignore"):
        expected = slow_blocks(values, wire.top, wire.block)
    found = through(wire, torch.tensor(values, dtype=torch.float32))
    assert found.tolist() == expected
    # Never further off than one unit of the block, but where the unit itself is bounded, or has few digits.
    for first in range(0, len(values), wire.block):
        own = torch.tensor(values[first : first + wire.block])
        if 1e-30 < own.abs().max() < LARGEST / 2:
            unit = own.abs().max() / wire.top
            assert ((found[first : first + wire.block] - own).abs() <= unit * (1 + 1e-5)).all()


@pytest.mark.parametrize("wire", [Int8(), Int4()], ids=repr)
def test_rounding_is_right_in_the_mean_and_differs_by_version(wire: Any) -> None:
    vector = torch.linspace(-1, 1, 201)
    each = torch.stack([through(wire, vector, (0, "weights", 0, version)) for version in range(2000)])
    unit = 1 / wire.top
    # Five standard errors of a number that is one of two, one unit apart.
    assert (each.mean(0) - vector).abs().max() < 5 * unit / 2 / math.sqrt(2000)
    assert not torch.equal(each[0], each[1])
    assert not torch.equal(through(wire, vector), through(wire, vector, (0, "direction", 3, 7)))
    assert not torch.equal(through(wire, vector), through(wire, vector, (1, "weights", 3, 7)))
    assert torch.equal(through(wire, vector), through(wire, vector))


@pytest.mark.parametrize("wire", FORMATS, ids=repr)
def test_zeros_and_nothing_are_sent_as_they_are(wire: Any) -> None:
    for size in (0, 1, 7, 64, 257):
        assert torch.equal(through(wire, torch.zeros(size)), torch.zeros(size))


@pytest.mark.parametrize(
    ("wire", "size"), [("float32", 4000), ("bf16", 2000), ("int8", 1000 + 4 * 4), ("int4", 500 + 4 * 16)]
)
def test_bytes_of_a_thousand_numbers(wire: Any, size: int) -> None:
    assert load_config({"wire": wire}).wire.weights.num_bytes(1000) == size


# Runs.

WIRES: dict[str, Any] = {
    "bf16": "bf16",
    "int8, float32": {"weights": {"name": "int8", "block": 8}},
    "float32, int4": {"directions": {"name": "int4", "block": 8}},
    "bf16, int8": {"weights": "bf16", "directions": "int8"},
}


def slow_sent(wire: Wire, what: str, agent: int, version: int, vector: Array) -> Array:
    """The reference's vectors have the weights of the layer first; an agent's too."""
    one = wire.weights if what == "weights" else wire.directions
    values = [float(np.float32(value)) for value in vector]
    if isinstance(one, BF16):
        return np.array([slow_bf16(value) for value in values])
    if isinstance(one, Int8 | Int4):
        return np.array(slow_blocks(values, one.top, one.block, (0, what, agent, version)))
    return vector


@pytest.mark.parametrize("local_steps", [1, (2, 7, 5)], ids=str)
@pytest.mark.parametrize("name", WIRES)
def test_agents_read_what_was_decoded(name: str, local_steps: Any) -> None:
    own = planned(algorithm=PUBLISHED, local_steps=local_steps, wire=WIRES[name])
    assert [slot.name for slot in Peer(own.specs[0], own.data).replica.layout] == ["weight", "bias"]  # type: ignore[arg-type]
    agents, _ = executed(own)
    wire = own.config.wire
    reference = Reference(own, 0.6, lambda what, i, version, vector: slow_sent(wire, what, i, version, vector))
    # Far below what rounding changes (0.003 to 0.08), so that an agent that read plain numbers would be seen.
    assert_where_the_reference_is(agents, reference.run(), rtol=1e-5, atol=1e-5)
    plain, _ = executed(planned(algorithm=PUBLISHED, local_steps=local_steps))
    assert not any(torch.equal(one.weights, other.weights) for one, other in zip(agents, plain, strict=True))


@pytest.mark.parametrize("name", WIRES)
def test_stacked_agents_read_the_same(name: str) -> None:
    own = planned(algorithm="pc-asgd", wire=WIRES[name], num_steps=6)
    alone, stacked = executed(own)[0], executed(own, stacked=True)[0]
    for one, other in zip(alone, stacked, strict=True):
        torch.testing.assert_close(one.weights, other.weights, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("algorithm", ["d-asgd", "pc-asgd"])
def test_reports_count_the_bytes_that_are_sent(algorithm: str) -> None:
    own = planned(algorithm=algorithm, wire={"weights": "bf16", "directions": "int8"}, num_steps=2)
    _, reports = executed(own)
    # Four numbers to two neighbors; the direction with its one unit.
    assert {report.bytes_sent for report in reports} == {2 * (8 + (4 + 4) * (algorithm == "pc-asgd"))}


def test_version_0_is_rounded_as_its_sender_does() -> None:
    own = planned(algorithm="d-asgd", wire={"weights": {"name": "int4", "block": 8}})
    agents = [spec.build(own.data) for spec in own.specs]
    for reader in agents:
        for k, start in reader.starts().items():
            sent = agents[k].message(None)
            assert sent is not None
            assert torch.equal(start.weights, sent.weights)


@pytest.mark.parametrize("wire", [BF16(), Int8(), Int4()], ids=repr)
def test_bytes_that_stand_for_no_finite_number_are_rejected(wire: Any) -> None:
    encoded = wire.encode(torch.ones(16), DRAW)
    encoded[-2:] = torch.tensor([0x80, 0x7F], dtype=torch.uint8)  # the upper half of an infinite number
    with pytest.raises(ValueError, match=r"^its weights have numbers that are not finite$"):
        wire.opened("weights", encoded, 16)


def test_messages_of_another_format_are_rejected() -> None:
    own = planned(algorithm="pc-asgd", wire={"weights": "bf16"})
    incoming = own.specs[0].build(own.data).incoming()
    expected = Expected((1, 2), incoming.last_version, incoming.weights, incoming.buffers, encoded=incoming.encoded)
    transport, header = LoopBack(), Header(1, 3, 1.0, 0.1)
    right, plain = torch.zeros(8, dtype=torch.uint8), torch.zeros(4)
    check_contents(transport, expected, header, transport.publish(right, plain[:0], plain))
    for weights, direction, message in [
        (plain, plain, "its weights are float32 of shape (4,); allowed is uint8 in one dimension"),
        (right[:6], plain, "its weights have 6 numbers; allowed are 8"),
        (right, right, "its direction are uint8 of shape (8,); allowed is float32 in one dimension"),
    ]:
        with pytest.raises(RejectedError, match=re.escape(message)):
            check_contents(transport, expected, header, transport.publish(weights, plain[:0], direction))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"wire": "fp8"}, "wire = 'fp8': allowed are float32, bf16, int8, int4"),
        ({"wire": {"weight": "bf16"}}, "wire.weight = 'bf16': no such setting; did you mean wire.weights?"),
        (
            {"wire": {"directions": "int8"}, "algorithm": "ad-psgd", "links": []},
            "wire.directions.name = 'int8': allowed with algorithm.name = 'ad-psgd' is 'float32'; others are for all "
            "other algorithms",
        ),
        (
            {"wire": "bf16", "algorithm": "ad-psgd", "links": []},
            "wire.weights.name = 'bf16': allowed with algorithm.name = 'ad-psgd' is 'float32'",
        ),
    ],
    ids=str,
)
def test_what_has_no_meaning_is_refused_in_one_line(settings: dict[str, Any], message: str) -> None:
    assert_refused(settings, message)
