"""The numbers that model and loss compute with: float32, or types of 16 bits by PyTorch's autocast."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor

Precision = Literal["float32", "bf16", "fp16"]
"""What a forward pass computes with: see ``Config.precision``."""

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def computing(precision: Precision, device: torch.device) -> AbstractContextManager[Any]:
    """Return the context of forward passes and losses; backward passes belong outside of it.

    With float32 there is none, so that a model's own use of autocast is left as it is.
    """
    return nullcontext() if precision == "float32" else torch.autocast(device.type, dtype=_TYPES[precision])


def require_trainable(tensors: Mapping[str, Tensor]) -> None:
    """Raise ``ValueError`` where a tensor that is trained or averaged, by its name, is not dense, or not float32."""
    for name, tensor in tensors.items():
        if tensor.layout is not torch.strided:
            raise ValueError(f"task.model: {name} is {tensor.layout}; allowed are dense tensors")
        if tensor.dtype == torch.float32:
            continue
        short = next((short for short, kind in _TYPES.items() if kind == tensor.dtype), None)
        hint = f"; precision = {short} computes with {tensor.dtype} all the same" if short else ""
        raise ValueError(
            f"task.model: parameter or buffer {name} is {tensor.dtype}; allowed is torch.float32 where it is "
            f"trained or averaged, as model.float() makes it{hint}"
        )


def widened(precision: Precision, loss: Tensor) -> Tensor:
    """Return a loss in float32 where the precision has made it one of 16 bits, before it is scaled or averaged."""
    return loss if precision == "float32" else loss.float()


def fitting(precision: Precision, device: torch.device) -> Precision:
    """Return what a driver uses for models that train on GPUs where it has none itself.

    **Choice**: bf16 for fp16, which CPUs have no kernels for in parts, as of LSTMs.
    """
    return "bf16" if precision == "fp16" and device.type == "cpu" else precision
