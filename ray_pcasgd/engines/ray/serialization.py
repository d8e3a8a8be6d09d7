"""Serialization of the user's data: tensors that are views of one storage take that storage with them once.

PyTorch itself pickles each tensor with the whole of its storage. So a data set of N
samples that are views of one tensor, such as the rows of a matrix, would be sent to the actors as N times its size.
"""

import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import ray.cloudpickle
import torch
from torch.storage import TypedStorage, UntypedStorage


def compact(content: Any) -> Any:
    """Return any object for Ray to take to other processes, where it arrives as itself.

    NumPy arrays are shared there, as Ray does it, and cannot be written to; tensors are copies.
    """
    return _Compact(content)


class _Compact:
    def __init__(self, content: Any) -> None:
        self._content = content

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[bytes, list[pickle.PickleBuffer]]]:
        buffers: list[pickle.PickleBuffer] = []
        body = io.BytesIO()
        _Pickler(body, protocol=5, buffer_callback=buffers.append).dump(self._content)
        return _unpacked, (body.getvalue(), buffers)


def _unpacked(body: bytes, buffers: list[Any]) -> Any:
    return pickle.loads(body, buffers=buffers)  # what this run's own driver has written


class _Pickler(ray.cloudpickle.Pickler):
    """Ray's own way, but for storages on the CPU: each is one object, which pickle writes once."""

    def reducer_override(self, value: Any) -> Any:
        # Its own ``device`` warns that such storages will be gone from PyTorch.
        if isinstance(value, TypedStorage) and value._untyped_storage.device.type == "cpu":
            return _typed, (value._untyped_storage, value.dtype)
        if isinstance(value, UntypedStorage) and value.device.type == "cpu":
            return _storage, (torch.empty(0, dtype=torch.uint8).set_(value).numpy(),)
        return super().reducer_override(value)


def _typed(storage: UntypedStorage, dtype: torch.dtype) -> TypedStorage:
    return TypedStorage(wrap_storage=storage, dtype=dtype, _internal=True)


def _storage(content: np.ndarray) -> UntypedStorage:
    # Copied: what others share with this process must not be written to.
    return torch.from_numpy(content.copy()).untyped_storage()
