"""The weighted sums of ``one_pass`` on a GPU, as one kernel of Triton, which comes with PyTorch there."""

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024
"""Numbers that one program of the kernel sums: eight a thread."""

_ALIGNED_BYTES = 16
"""Where vectors begin at multiples of this, the kernel is compiled for, since it reads four numbers at a time."""


@triton.jit  # type: ignore[untyped-decorator]
def _kernel(  # type: ignore[no-untyped-def]  # Triton looks annotations up
    size,
    vectors,
    weights,
    sums,
    directions,
    drifts,
    rates,
    bends,
    thetas,
    moves,
    places: tl.constexpr,
    block: tl.constexpr,
):
    """Write one block of all sums and moves; tuples are unrolled, so that it is compiled for each number of vectors."""
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = at < size
    count: tl.constexpr = len(vectors)
    neighbors: tl.constexpr = len(directions)
    for s in tl.static_range(len(sums)):
        total = tl.load(vectors[0] + at, mask=inside) * weights[s * count]
        for j in tl.static_range(1, count):
            total += tl.load(vectors[j] + at, mask=inside) * weights[s * count + j]
        if len(thetas) > 0:
            moved = tl.zeros((block,), dtype=tl.float32)
            for k in tl.static_range(neighbors):
                rate = rates[places[s] * neighbors + k]
                # Whoever is reliable is known at run time only, and costs no reading.
                if rate != 0.0:
                    d = tl.load(directions[k] + at, mask=inside)
                    if len(bends) > 0:
                        h = tl.load(drifts[k] + at, mask=inside)
                        moved += d * (rate + bends[places[s] * neighbors + k] * (d * h))
                    else:
                        moved += d * rate
            taken = tl.where(thetas[s] != 0.0, thetas[s] * moved, 0.0)
            total -= taken
            if len(moves) > 0:
                tl.store(moves[s] + at, taken, mask=inside)
        tl.store(sums[s] + at, total, mask=inside)


def launch(
    vectors: tuple[Tensor, ...],
    weights: Tensor,
    sums: tuple[Tensor, ...],
    directions: tuple[Tensor, ...] = (),
    drifts: tuple[Tensor, ...] = (),
    rates: Tensor | None = None,
    bends: Tensor | None = None,
    thetas: Tensor | None = None,
    places: tuple[int, ...] = (),
    moves: tuple[Tensor, ...] = (),
) -> None:
    """Write what ``one_pass.weighted_sums`` returns into ``sums`` and ``moves``."""
    size, first = len(vectors[0]), _whole(vectors[0])
    if rates is not None:
        is_read = (rates != 0).any(0).tolist()
        directions, drifts = (
            tuple(_whole(one) if read else first for one, read in zip(part, is_read, strict=False))
            for part in (directions, drifts)
        )
    with torch.cuda.device(first.device):
        _kernel[(triton.cdiv(size, _BLOCK),)](
            size,
            (first, *map(_whole, vectors[1:])),
            _floats(weights),
            sums,
            directions,
            drifts,
            _floats(rates),
            _floats(bends),
            _floats(thetas),
            moves,
            places,
            _BLOCK,
            # A product and a sum in one rounding would be other bits.
            enable_fp_fusion=False,
        )


def _whole(vector: Tensor) -> Tensor:
    """Return a vector with each number in a place of its own; most are."""
    if vector.stride(0) == 1 and vector.data_ptr() % _ALIGNED_BYTES == 0:
        return vector
    return vector.clone(memory_format=torch.contiguous_format)


def _floats(numbers: Tensor | None) -> tuple[float, ...]:
    return () if numbers is None else tuple(numbers.flatten().tolist())
