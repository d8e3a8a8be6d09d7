"""Gradient clipping: no mini-batch's gradient is larger than a bound, as with ``torch.nn.utils``."""

from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ray_pcasgd.base import numerics
from ray_pcasgd.base.settings import Settings

_SMALLEST = 1e-6
"""What ``torch.nn.utils.clip_grad_norm_`` adds to the norm that it divides by."""


class GradientClipping(Settings):
    """The bound on a mini-batch gradient: one of ``norm`` and ``value``."""

    norm: float | None = Field(None, ge=numerics.SMALLEST)
    """Longest gradient, above 0: a longer one is shortened (``clip_grad_norm_``), by the norm of all parameters."""
    value: float | None = Field(None, ge=numerics.SMALLEST)
    """Largest component of a gradient, above 0: each is cut to [-value, value] (``clip_grad_value_``)."""

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.norm is None) == (self.value is None):
            given = "null" if self.norm is None else f"{self.norm:g}"
            told = "null" if self.value is None else f"{self.value:g}"
            raise ValueError(f"norm = {given}, value = {told}: allowed is one of them")
        return self

    def apply(self, gradient: Tensor) -> Tensor:
        """Return the clipped gradient, shape (D,); pure."""
        if self.norm is None:
            assert self.value is not None
            return gradient.clamp(-self.value, self.value)
        length = numerics.norm(gradient)
        return gradient * (self.norm / (length + _SMALLEST)).clamp(max=1.0)


def clipped(clipping: GradientClipping | None, gradient: Tensor) -> Tensor:
    """Return a gradient of shape (D,), or several of shape (B, D), each by itself, as the settings have it clipped."""
    if clipping is None:
        return gradient
    return clipping.apply(gradient) if gradient.ndim == 1 else torch.func.vmap(clipping.apply)(gradient)
