"""Exchange: whom an agent reads and sends to at a step. It is all that planning needs of a rule; knows no tensors."""

from dataclasses import dataclass
from typing import Literal, Protocol

Reading = Literal["newest", "news", "every"]
"""What of a neighbor is read at a step, see ``Rule.reading``."""


class Exchange(Protocol):
    """Says who reads whom, and who sends to whom; the same in every engine."""

    @property
    def reading(self) -> Reading:
        """What of a neighbor is read at a step, see ``Rule.reading``."""
        ...

    def partners(self, seed: int, agent: int, step: int, neighbors: tuple[int, ...]) -> tuple[int, ...]:
        """Return the neighbors that an agent reads at this step, in rising order."""
        ...

    def receivers(self, seed: int, agent: int, version: int, neighbors: tuple[int, ...]) -> tuple[int, ...]:
        """Return the neighbors that an agent sends a version to, in rising order."""
        ...


@dataclass(frozen=True)
class AllNeighbors:
    """Every neighbor is read at each step, and is sent each version."""

    reading: Reading = "newest"

    def partners(self, seed: int, agent: int, step: int, neighbors: tuple[int, ...]) -> tuple[int, ...]:
        """Return all neighbors."""
        return neighbors

    def receivers(self, seed: int, agent: int, version: int, neighbors: tuple[int, ...]) -> tuple[int, ...]:
        """Return all neighbors."""
        return neighbors
