"""Messages: what travels between agents, as plain data. The scheduler keeps some of it, and imports no torch for it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

Parcel = Any
"""One tensor as it travels; what it is, only its transport knows."""


class RejectedError(ValueError):
    """A message that is not valid; it is never applied."""


class LostError(Exception):
    """What a parcel stands for is not there any more: its sender's process or memory is lost, or does not answer."""


class Raw(NamedTuple):
    """One tensor."""

    dtype: str
    """Its type's name in torch, such as ``int64``."""
    shape: tuple[int, ...]
    data: np.ndarray[Any, np.dtype[np.uint8]]
    """Its bytes, in one dimension."""


class Extra(NamedTuple):
    """What a worker sends with its gradient."""

    local: Mapping[str, Raw]
    """Its own tensors that are not as the model was made, by name; to the first server alone."""
    with_gradient: np.ndarray[Any, np.dtype[np.bool_]] | None = None
    """Which parameter tensors got a gradient, shape (T,); not given: all."""

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensors and of the marks."""
        marks = 0 if self.with_gradient is None else self.with_gradient.nbytes
        return marks + sum(given.data.nbytes for given in self.local.values())


class Contents(NamedTuple):
    """What one message carries, as it travels."""

    weights: Parcel
    buffers: Parcel
    direction: Parcel | None
    """The direction at the version before."""
    extra: Extra | None = None
    """Of a worker: what it sends with its gradient."""
