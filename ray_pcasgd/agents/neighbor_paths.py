"""Neighbors' paths, as far as a reader knows them: their velocities, where no message holds a direction."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor


class Known(NamedTuple):
    """A version of a neighbor that was read."""

    version: int
    weights: Tensor
    """Shape (D,)."""


class NeighborPaths:
    """The two newest versions of each neighbor that an agent has read: two vectors a neighbor.

    Version 0 is known from the beginning, since all start alike. **Choice**: two versions, not a mean over more; one
    that is read again, or is older than what was read before, changes nothing.
    """

    def __init__(self, neighbors: Iterable[int], start: Tensor) -> None:
        self._known: dict[int, list[Known]] = {k: [Known(0, start)] for k in neighbors}

    def note(self, neighbor: int, version: int, weights: Tensor) -> None:
        """Take in a version that was read, shape (D,); it must never be changed in place."""
        known = self._known[neighbor]
        if not known or version > known[-1].version:
            self._known[neighbor] = [*known[-1:], Known(version, weights)]

    def velocity(self, neighbor: int) -> Tensor | None:
        """Return ``(x_k(v') - x_k(v)) / (v - v')``, shape (D,), what it steps down a version; ``None``: not known."""
        known = self._known[neighbor]
        if len(known) < 2:
            return None
        before, newest = known
        return (before.weights - newest.weights) / (newest.version - before.version)

    def forget(self) -> None:
        """Begin anew, knowing no version."""
        self._known = {k: [] for k in self._known}

    def state(self) -> dict[int, dict[int, Tensor]]:
        """Return what ``restore`` goes on from: by neighbor and version, the weights."""
        return {k: dict(known) for k, known in self._known.items()}

    def restore(self, state: dict[int, dict[int, Tensor]], device: torch.device) -> None:
        """Go on from a state."""
        self._known = {
            k: [Known(version, weights.to(device)) for version, weights in sorted(known.items())[-2:]]
            for k, known in state.items()
        }
