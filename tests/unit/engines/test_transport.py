"""How versions travel, apart from Ray: what is cut into pieces is put together again."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ray_pcasgd.engines.messages import Contents
from ray_pcasgd.engines.raw_tensors import extra_of
from ray_pcasgd.engines.ray.transport import PIECE_BYTES, InPieces, RayTransport

PIECE = PIECE_BYTES // 4
TRANSPORT = RayTransport(10**9)
SIZES = st.one_of(st.integers(0, 8), st.integers(PIECE - 1, PIECE + 1), st.integers(2 * PIECE - 1, 3 * PIECE + 1))


@given(SIZES, SIZES, st.none() | SIZES)
def test_what_travels_in_pieces_is_put_together_again(weights: int, buffers: int, direction: int | None) -> None:
    parcels: list[Any] = [None if size is None else np.arange(size, dtype=np.float32) for size in (weights, buffers)]
    parcels += [None if direction is None else -np.arange(direction, dtype=np.float32)]
    extra = extra_of({"passes": torch.tensor(3)}, None)
    parcels += [extra]
    arguments = TRANSPORT.arguments(Contents(*parcels))
    assert all(one.nbytes <= PIECE_BYTES for one in arguments[1:])
    assert arguments[0].extra is extra
    for parcel, told in zip(parcels[:3], arguments[0][:3], strict=True):
        assert isinstance(told, InPieces) == (parcel is not None and parcel.nbytes > PIECE_BYTES)
    whole = TRANSPORT.joined(arguments[0], arguments[1:])
    assert whole.extra is extra
    for parcel, again in zip(parcels[:3], whole[:3], strict=True):
        assert (parcel is None and again is None) or np.array_equal(parcel, again)


def test_a_reference_travels_as_it_is_and_so_does_nothing() -> None:
    reference = [object()]
    contents = Contents(reference, np.zeros(2, np.float32), None)
    assert TRANSPORT.arguments(contents) == [contents]
    assert TRANSPORT.joined(*TRANSPORT.arguments(None), []) is None


@pytest.mark.parametrize(("number", "message"), [(1, "need at least one array"), (4, "there are more pieces than")])
def test_more_or_fewer_pieces_than_are_named_are_an_error(number: int, message: str) -> None:
    contents: Any = Contents(InPieces(2), np.zeros(0, np.float32), InPieces(1))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        TRANSPORT.joined(contents, [np.ones(4, np.float32)] * number)
