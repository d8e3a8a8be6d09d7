"""The curvature of a loss along a direction, by one Hessian-vector product; and what an agent knows of it."""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ray_pcasgd.agents.module_tensors import dense
from ray_pcasgd.base import numerics
from ray_pcasgd.base.determinism import deterministic

_LEAST = 1e-9


class CompiledError(Exception):
    """A loss has compiled something of itself, which has no second derivatives."""


def curvature_along(loss: Callable[[], Tensor], parameters: Sequence[Tensor], direction: Tensor) -> float | None:
    """Return ``v' H v / v' v``, the Hessian's Rayleigh quotient, or ``None`` where it is not finite, or v is zero.

    ``parameters`` are leaves that the scalar ``loss()`` depends on; the direction v has as many numbers as all of them,
    shape (D,). It costs three to four gradients.

    Raises:
        CompiledError: the first code of this process was compiled in it; the next time none is.

    """
    length = numerics.norm(direction)
    if not 0 < length.item() < math.inf:
        return None
    unit = direction / length
    # Plain autograd: models of users' own, which may put tensors anywhere, cannot all run under torch.func.
    # Not every second derivative has a deterministic kernel.
    with deterministic(direction.device):
        could_compile = _can_compile()
        with torch.enable_grad(), twice_differentiable():
            gradients = torch.autograd.grad(loss(), parameters, create_graph=True, allow_unused=True)
        if could_compile != _can_compile():
            raise CompiledError
        found = numerics.inner(unit, _product(gradients, parameters, unit)).item()
    return found if math.isfinite(found) else None


class MeasuredCurvature:
    """What an agent has measured of its loss's curvature; of variants that are stepped together, of each one."""

    def __init__(self, every: int, count: int = 1) -> None:
        self.every = every
        """Own steps from one measurement to the next."""
        self.values: list[float | None] = [None] * count
        """Not known until one was finite."""
        self.measured_at: int | None = None
        """At which version."""

    @property
    def next_due(self) -> int:
        """From which version on it is to be measured again."""
        return 0 if self.measured_at is None else self.measured_at + self.every

    def is_due(self, version: int) -> bool:
        """Return whether it is to be measured at a version."""
        return version >= self.next_due

    def take(self, version: int, found: Sequence[float | None]) -> None:
        """Take in what was found at a version: the mean with what was known; passes over what is not finite."""
        self.measured_at = version
        self.values = [
            before if now is None else now if before is None else (before + now) / 2
            for before, now in zip(self.values, found, strict=True)
        ]

    def coefficient(self, place: int) -> float:
        """Return the value as a rule is told it: above 0, or 0 as long as it is not known."""
        value = self.values[place]
        return 0.0 if value is None else max(value, _LEAST)

    def forget(self) -> None:
        """Begin anew."""
        self.values, self.measured_at = [None] * len(self.values), None

    def state(self) -> tuple[list[float | None], int | None]:
        """Return what ``restore`` goes on from."""
        return self.values, self.measured_at

    def restore(self, state: tuple[list[float | None], int | None]) -> None:
        """Go on from a state."""
        self.values, self.measured_at = state


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Let models run by kernels that have second derivatives: fused attention and compiled code have none.

    What compiles takes seconds to import, and there is no compiled code where that was not done.
    """
    with sdpa_kernel(SDPBackend.MATH), torch.compiler.set_stance("force_eager") if _can_compile() else nullcontext():
        yield


def _can_compile() -> bool:
    return "torch._dynamo" in sys.modules


def _product(gradients: Sequence[Tensor | None], leaves: Sequence[Tensor], vector: Tensor) -> Tensor:
    """Return the Hessian's product with a vector; 0 where the gradient does not depend on the parameters."""
    sizes = [leaf.numel() for leaf in leaves]
    parts = [part.view_as(leaf) for part, leaf in zip(torch.split(vector, sizes), leaves, strict=True)]
    known = [(g, part) for g, part in zip(gradients, parts, strict=True) if g is not None and g.requires_grad]
    if not known:
        return torch.zeros_like(vector)
    outputs, along = zip(*known, strict=True)
    images = torch.autograd.grad(outputs, leaves, along, retain_graph=True, allow_unused=True)
    flat = [torch.zeros_like(p) if image is None else dense(image) for image, p in zip(images, leaves, strict=True)]
    return torch.cat([one.reshape(-1) for one in flat])
