"""The curvature of a loss along a direction, by one Hessian-vector product."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ray_pcasgd.base import numerics


def curvature_along(loss: Callable[[], Tensor], parameters: Sequence[Tensor], direction: Tensor) -> float | None:
    """Return ``v' H v / v' v``, the Hessian's Rayleigh quotient, or ``None`` where it is not finite, or v is zero.

    ``parameters`` are leaves that the scalar ``loss()`` depends on; the direction v has as many numbers as all of them,
    shape (D,). It costs about four gradients.
    """
    length = numerics.norm(direction)
    if not 0 < length.item() < math.inf:
        return None
    unit = direction / length
    # Plain autograd: models of users' own, which may put tensors anywhere, cannot all run under torch.func.
    with torch.enable_grad(), twice_differentiable():
        gradients = torch.autograd.grad(loss(), parameters, create_graph=True, allow_unused=True)
    found = numerics.inner(unit, _product(gradients, parameters, unit)).item()
    return found if math.isfinite(found) else None


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
