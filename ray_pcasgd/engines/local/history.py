"""What many agents have published, in one table, from which a group's reads are summed by their places."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

Integers = np.ndarray[Any, np.dtype[np.int64]]

_SPARE = 8
"""Of the table's rows, at least one in so many is free after a search for what is no longer needed."""


class History:
    """The versions of A agents, each a row of a table (V, D) of weights, and one of directions.

    A version stays where it is until it is forgotten, so that whoever has its place can read it. The table grows.
    """

    def __init__(self, num_agents: int, length: int, has_directions: bool) -> None:
        self.weights = torch.empty(0, length)
        self.directions = torch.empty(0, length if has_directions else 0)
        self.first: Integers = np.zeros(num_agents, np.int64)
        """The oldest version of each agent that is here."""
        self.newest: Integers = np.full(num_agents, -1, np.int64)
        """The newest one; below ``first``, there is none."""
        self._places: Integers = np.zeros((num_agents, 4), np.int64)
        """Where a version is: that with number ``v`` stands in column ``v`` modulo their number."""
        self._free: Integers = np.zeros(0, np.int64)

    @property
    def num_free(self) -> int:
        """How many versions can be taken in before the table has to grow."""
        return len(self._free)

    def places(self, agents: Integers, versions: Integers) -> Integers:
        """Return in which rows versions are that are here."""
        found: Integers = self._places[agents, versions % self._places.shape[1]]
        return found

    def newest_places(self, agents: Integers) -> Integers:
        """Return in which rows the newest versions are."""
        return self.places(agents, self.newest[agents])

    def begin(self, agent: int, first: int) -> None:
        """Let an agent, of which nothing is here, have ``first`` as the first version."""
        self.first[agent], self.newest[agent] = first, first - 1

    def add(self, agents: Integers) -> Integers:
        """Return the rows that are given to the agents' next versions, to be written to."""
        if self.num_free < len(agents):
            self._grow(len(agents))
        cut = self.num_free - len(agents)
        # In their order, where many lie side by side.
        self._free, rows = self._free[:cut], np.sort(self._free[cut:])
        self.newest[agents] += 1
        versions = self.newest[agents]
        while (versions - self.first[agents]).max() >= self._places.shape[1]:
            self._widen()
        self._places[agents, versions % self._places.shape[1]] = rows
        return rows

    def forget(self, horizons: Integers) -> None:
        """Free the rows of versions below each agent's horizon, but for the newest one; grow where few are free."""
        horizons = np.minimum(horizons, self.newest)
        freed = [self._free]
        while len(agents := np.flatnonzero(self.first < horizons)):
            freed.append(self.places(agents, self.first[agents]))
            self.first[agents] += 1
        self._free = np.sort(np.concatenate(freed))[::-1]
        if self.num_free * _SPARE < len(self.weights):
            self._grow(0)

    def _grow(self, needed: int) -> None:
        """Make the table half as long again, and longer by ``needed`` rows."""
        before = len(self.weights)
        added = before // 2 + needed
        self.weights = torch.cat([self.weights, self.weights.new_empty(added, self.weights.shape[1])])
        self.directions = torch.cat([self.directions, self.directions.new_empty(added, self.directions.shape[1])])
        self._free = np.concatenate([np.arange(before, before + added)[::-1], self._free])

    def _widen(self) -> None:
        """Double the number of columns of the places."""
        agents, width = len(self._places), self._places.shape[1]
        wider = np.zeros((agents, 2 * width), np.int64)
        # A version's column is one of two; both are filled, and the one that is not its own is never looked at.
        wider[:, :width] = wider[:, width:] = self._places
        self._places = wider


def index_of(places: Integers) -> slice | Tensor:
    """Return what picks rows of a table: a slice where they lie side by side, which makes a view and no copy."""
    first, count = int(places[0]), len(places)
    if places[-1] - first == count - 1 and np.array_equal(places, np.arange(first, first + count)):
        return slice(first, first + count)
    return torch.from_numpy(places)
