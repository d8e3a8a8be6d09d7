"""The largest curvature of a loss, by a few Hessian-vector products (Lanczos 1950)."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ray_pcasgd.base import numerics


def largest_curvature(
    loss: Callable[[Sequence[Tensor]], Tensor], parameters: Sequence[Tensor], start: Tensor, products: int
) -> float:
    """Return the largest eigenvalue of a loss's Hessian at its parameters, from below; 0 where it is not finite.

    ``loss`` maps the parameters to a scalar; ``start`` is a vector of as many numbers as all of them have, shape (D,),
    and not zero. Lanczos' method finds an outer eigenvalue in fewer products than power iteration, and holds four
    vectors. One product costs about two gradients; the graph of the gradient is built once.
    """
    # Plain autograd, of leaves: models of users' own, which may put tensors anywhere, cannot all run under torch.func.
    leaves = [parameter.detach().clone().requires_grad_() for parameter in parameters]
    with torch.enable_grad(), twice_differentiable():
        gradients = torch.autograd.grad(loss(leaves), leaves, create_graph=True, allow_unused=True)
    previous, current = torch.zeros_like(start), start / numerics.norm(start)
    diagonal: list[float] = []
    beside: list[float] = []
    for _ in range(products):
        image = _product(gradients, leaves, current)
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


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Let models run by kernels that have second derivatives: fused attention and compiled code have none."""
    with sdpa_kernel(SDPBackend.MATH), torch.compiler.set_stance("force_eager"):
        yield


def _product(gradients: Sequence[Tensor | None], leaves: Sequence[Tensor], vector: Tensor) -> Tensor:
    """Return the Hessian's product with a vector; 0 where the gradient does not depend on the parameters."""
    sizes = [leaf.numel() for leaf in leaves]
    parts = [part.view_as(leaf) for part, leaf in zip(torch.split(vector, sizes), leaves, strict=True)]
    known = [(g, part) for g, part in zip(gradients, parts, strict=True) if g is not None and g.requires_grad]
    if not known:
        return torch.zeros_like(vector)
    outputs, along = zip(*known, strict=True)
    images = torch.autograd.grad(outputs, leaves, along, retain_graph=True, allow_unused=True)
    flat = [torch.zeros_like(p) if image is None else image for image, p in zip(images, leaves, strict=True)]
    return torch.cat([one.reshape(-1) for one in flat])
