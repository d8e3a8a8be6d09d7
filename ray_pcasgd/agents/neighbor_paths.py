"""Neighbors' velocities, as far as a reader can tell them from the versions that it has read."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

_KEPT = 0.8
"""Share of the old velocity that is kept from version to version: a mean over about five."""


class Known(NamedTuple):
    """What an agent knows of a neighbor's path."""

    version: int
    """The newest that was read; -1: none."""
    weights: Tensor
    """Of that version, shape (D,)."""
    velocity: Tensor | None = None
    """By how much it steps down in a version, shape (D,); ``None``: not known."""


State = dict[str, int | Tensor | None]


class NeighborPaths:
    """The newest version of each neighbor that an agent has read, and its mean velocity: two vectors a neighbor.

    Version 0 is known from the beginning, since all start alike. **Choice**: an exponential mean, not the last two
    versions alone: what an agent mixes in with one version moves it to and fro, and to roll a neighbor forward by that
    is worse than to take it as it is. A version that is read again, or is older than one before, changes nothing.
    """

    def __init__(self, neighbors: Iterable[int], start: Tensor) -> None:
        self._known = {k: Known(0, start) for k in neighbors}

    def note(self, neighbor: int, version: int, weights: Tensor) -> None:
        """Take in a version that was read, shape (D,); it must never be changed in place."""
        known = self._known[neighbor]
        if known.version < 0:
            self._known[neighbor] = Known(version, weights)
        elif version > known.version:
            passed = version - known.version
            velocity = (known.weights - weights) / passed
            if known.velocity is not None:
                kept = _KEPT**passed
                velocity = kept * known.velocity + (1 - kept) * velocity
            self._known[neighbor] = Known(version, weights, velocity)

    def velocity(self, neighbor: int) -> Tensor | None:
        """Return the mean of ``(x_k(v') - x_k(v)) / (v - v')``, shape (D,); ``None``: one version is known, or none."""
        return self._known[neighbor].velocity

    def forget(self) -> None:
        """Begin anew, knowing no version."""
        self._known = {k: Known(-1, known.weights) for k, known in self._known.items()}

    def state(self) -> dict[int, State]:
        """Return what ``restore`` goes on from."""
        return {k: known._asdict() for k, known in self._known.items()}

    def restore(self, state: dict[int, State], device: torch.device) -> None:
        """Go on from a state."""
        self._known = {k: _restored(known, device) for k, known in state.items()}


def _restored(known: State, device: torch.device) -> Known:
    moved = {name: part.to(device) if isinstance(part, Tensor) else part for name, part in known.items()}
    return Known(**moved)  # type: ignore[arg-type]
