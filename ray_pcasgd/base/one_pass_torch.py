"""The weighted sums of ``one_pass`` on a CPU without a C compiler: PyTorch's operations in place, block by block."""

import torch
from torch import Tensor

from ray_pcasgd.base.numerics import Vectors
from ray_pcasgd.base.sum_terms import Prediction

_BLOCK = 1 << 16
"""Numbers of a block, whose temporaries stay in a core's second cache; of shorter ones, to call is what takes long."""


def run(vectors: Vectors, weights: Tensor, sums: Vectors, prediction: Prediction | None, taken: Vectors) -> None:
    """Write weighted sums into ``sums``, and what is taken from them into ``taken`` where that is not empty."""
    rows, size = weights.tolist(), len(vectors[0])
    scratch, moved = (torch.empty(_BLOCK, dtype=torch.float32, device="cpu") for _ in range(2))
    for start in range(0, size, _BLOCK):
        part = slice(start, min(size, start + _BLOCK))
        length = part.stop - start
        product, rolled = scratch[:length], moved[:length]
        for b, row in enumerate(rows):
            total = sums[b][part]
            torch.mul(vectors[0][part], row[0], out=total)
            for weight, vector in zip(row[1:], vectors[1:], strict=True):
                total.add_(torch.mul(vector[part], weight, out=product))
            if prediction is None:
                continue
            theta = prediction.thetas[b].item()
            if theta:
                _move(rolled, product, prediction, prediction.places[b], part)
                total.sub_(rolled.mul_(theta))
            if taken:
                taken[b][part] = rolled if theta else 0.0


def _move(moved: Tensor, product: Tensor, prediction: Prediction, place: int, part: slice) -> None:
    """Write ``sum_k d_k (rate_k + bend_k d_k h_k)`` over a block into ``moved``; ``product`` is overwritten."""
    moved.zero_()
    for k, rate in enumerate(prediction.rates[place].tolist()):
        if rate == 0.0:
            continue
        direction = prediction.directions[k][part]
        if prediction.bends is None:
            torch.mul(direction, rate, out=product)
        else:
            torch.mul(direction, prediction.drifts[k][part], out=product)
            product.mul_(prediction.bends[place, k].item()).add_(rate).mul_(direction)
        moved.add_(product)
