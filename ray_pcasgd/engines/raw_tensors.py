"""Tensors of any type as plain data: a worker's own ones travel so, since NumPy has no bfloat16."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ray_pcasgd.engines.messages import Extra, Raw

Form = tuple[tuple[int, ...], torch.dtype]
"""A tensor's shape and type."""

_MOST_DIMENSIONS = 64


def raw(tensor: Tensor) -> Raw:
    """Return a tensor as plain data."""
    own = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    return Raw(str(own.dtype).removeprefix("torch."), tuple(own.shape), own.reshape(-1).view(torch.uint8).numpy())


def tensor_of(given: Raw) -> Tensor:
    """Return the tensor, on the CPU; ``problem_of`` has found no problem with it."""
    dtype: torch.dtype = getattr(torch, given.dtype)
    if not given.data.size:
        return torch.empty(given.shape, dtype=dtype)
    flat = torch.from_numpy(given.data.copy())
    return (flat != 0 if dtype is torch.bool else flat.view(dtype)).reshape(given.shape)


def extra_of(local: Mapping[str, Tensor], with_gradient: Tensor | None) -> Extra | None:
    """Return what a worker sends with its gradient; ``None`` where that is empty."""
    if not local and with_gradient is None:
        return None
    mask = None if with_gradient is None else with_gradient.cpu().numpy()
    return Extra({name: raw(tensor) for name, tensor in local.items()}, mask)


def problem_of(extra: Any, forms: Mapping[str, Form | None], num_tensors: int) -> str | None:
    """Return what is wrong with a worker's extra, if anything is: its sender may be anybody.

    Args:
        extra: What came.
        forms: Of the tensors that may be in it, by name; ``None`` for one whose form is not known yet.
        num_tensors: The number of the model's parameter tensors.

    """
    if not isinstance(extra, Extra) or not isinstance(extra.local, dict):
        return f"extra is of type {type(extra).__name__}"
    mask = extra.with_gradient
    is_mask = isinstance(mask, np.ndarray) and mask.dtype == np.bool_ and mask.shape == (num_tensors,)
    if mask is not None and not is_mask:
        return f"marks of gradients are {_described(mask)}; allowed is bool of shape ({num_tensors},)"
    for name, given in extra.local.items():
        if name not in forms:
            return f"tensor {name!r:.80} is not one of the model's own"
        if problem := _problem_of_raw(given, forms[name]):
            return f"tensor {name!r:.80} {problem}"
    return None


def _problem_of_raw(given: Any, form: Form | None) -> str | None:
    if not isinstance(given, Raw) or not isinstance(given.shape, tuple) or not isinstance(given.dtype, str):
        return f"is of type {type(given).__name__}"
    if len(given.shape) > _MOST_DIMENSIONS or not all(type(size) is int and size >= 0 for size in given.shape):
        return f"has the shape {given.shape!r:.80}"
    dtype = getattr(torch, given.dtype, None)
    if not isinstance(dtype, torch.dtype):
        return f"has the type {given.dtype!r:.80}"
    if form is not None and (given.shape, dtype) != (tuple(form[0]), form[1]):
        return f"is {given.dtype} of shape {given.shape!r:.80}; allowed is {form[1]} of shape {tuple(form[0])}"
    size = dtype.itemsize
    for length in given.shape:
        size *= length
    data = given.data
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape != (size,):
        return f"has {_described(data)} for data; allowed is uint8 of shape ({size},)"
    return None


def _described(value: Any) -> str:
    return f"{value.dtype} of shape {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
