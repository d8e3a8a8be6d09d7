"""The largest curvature of a loss, by a few Hessian-vector products (Lanczos 1950)."""

import math
from collections.abc import Callable
from typing import cast

import numpy as np
import torch
from torch import Tensor

from ray_pcasgd.base import numerics


def largest_curvature(loss: Callable[[Tensor], Tensor], weights: Tensor, start: Tensor, products: int) -> float:
    """Return the largest eigenvalue of a loss's Hessian at ``weights``, from below; 0 where it is not finite.

    ``loss`` maps weights of shape (D,) to a scalar; ``start`` has shape (D,) and is not zero. Lanczos' method finds an
    outer eigenvalue in fewer products than power iteration, and holds four vectors. One product costs about two
    gradients; the graph of the gradient is built once.
    """
    pulled = cast("tuple[Tensor, Callable[[Tensor], tuple[Tensor]]]", torch.func.vjp(torch.func.grad(loss), weights))
    product = pulled[1]
    previous, current = torch.zeros_like(start), start / numerics.norm(start)
    diagonal: list[float] = []
    beside: list[float] = []
    for _ in range(products):
        (image,) = product(current)
        diagonal.append(numerics.inner(current, image).item())
        image = image - diagonal[-1] * current
        if beside:
            image = image - beside[-1] * previous
        length = numerics.norm(image).item()
        if not (math.isfinite(length) and math.isfinite(diagonal[-1])):
            return 0.0
        # What is left is rounding: the vectors so far span all that the start has a share in.
        if length <= 1e-6 * max(map(abs, diagonal)):
            break
        beside.append(length)
        previous, current = current, image / length
    off = beside[: len(diagonal) - 1]
    largest = np.linalg.eigvalsh(np.diag(diagonal) + np.diag(off, 1) + np.diag(off, -1))[-1]
    return max(0.0, float(largest))
