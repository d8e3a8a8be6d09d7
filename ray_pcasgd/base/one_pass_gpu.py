"""The weighted sums of ``one_pass`` on a GPU, as one kernel of Triton, which comes with PyTorch there."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ray_pcasgd.base.numerics import Vectors
from ray_pcasgd.base.sum_terms import Prediction

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


def run(vectors: Vectors, weights: Tensor, sums: Vectors, prediction: Prediction | None, taken: Vectors) -> None:
    """Write weighted sums into ``sums``, and what is taken from them into ``taken`` where that is not empty."""
    size, first = len(vectors[0]), _whole(vectors[0])
    if prediction is None:
        terms: tuple[Any, ...] = ((), (), (), (), ())
        places: tuple[int, ...] = ()
    else:
        directions, drifts, rates, bends, thetas, places = prediction
        is_read = (rates != 0).any(0).tolist()
        terms = (
            # In the place of those that are not read, one that is there as a whole.
            *(tuple(_whole(v) if n else first for v, n in zip(p, is_read, strict=False)) for p in (directions, drifts)),
            *(_floats(rates), () if bends is None else _floats(bends), _floats(thetas)),
        )
    with torch.cuda.device(first.device):
        _kernel[(triton.cdiv(size, _BLOCK),)](
            size,
            (first, *map(_whole, vectors[1:])),
            _floats(weights),
            sums,
            *terms,
            taken,
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


def _floats(numbers: Tensor) -> tuple[float, ...]:
    return tuple(numbers.flatten().tolist())
