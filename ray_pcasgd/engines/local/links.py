"""Who reads whom, as arrays: what a group of rows reads becomes numbers without a look at each read."""

from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple, cast

import numpy as np

from ray_pcasgd.agents.peer import AgentSpec
from ray_pcasgd.engines.local.history import Integers
from ray_pcasgd.records import Read, Row

Floats = np.ndarray[Any, np.dtype[np.float64]]
Flags = np.ndarray[Any, np.dtype[np.bool_]]


class GroupReads(NamedTuple):
    """What B rows read, of the K neighbors that an agent has at most; where nothing is read, everything is 0."""

    agents: Integers
    """Whose rows they are, shape (B,)."""
    own_mixing: Floats
    """w_ii, with what neighbors that are not read leave, shape (B,)."""
    mixing: Floats
    """w_ik, shape (B, K)."""
    neighbors: Integers
    """Shape (B, K)."""
    versions: Integers
    staleness: Integers
    age: Integers
    is_read: Flags
    reliable: Flags
    """Whether a neighbor is trusted, as those are that are not read."""
    links: Integers
    """Which links were read, in any order."""
    linked_versions: Integers
    """The versions that were read over them."""


class Links:
    """The links of peers, sorted by reader and neighbor, with what was read over each last."""

    def __init__(self, specs: Sequence[AgentSpec], slack: int) -> None:
        self._num_agents, self._slack = len(specs), slack
        self._recipe = specs[0].recipe
        self._clusters = np.array(self._recipe.clusters)
        degrees = np.array([len(spec.neighbors) for spec in specs])
        self._begins = np.cumsum(degrees) - degrees
        """The first link of each reader."""
        self._readers = np.repeat(np.arange(len(specs)), degrees)
        self._neighbors = np.fromiter(chain.from_iterable(spec.neighbors for spec in specs), np.int64)
        self._keys = self._readers * self._num_agents + self._neighbors
        self._slots = np.arange(len(self._keys)) - self._begins[self._readers]
        """A neighbor's place among those of its reader."""
        self._own_mixing = np.array([spec.own_mixing for spec in specs])
        self._mixing = np.zeros((len(specs), int(degrees.max())))
        self._mixing[self._readers, self._slots] = np.fromiter(
            chain.from_iterable(spec.mixing for spec in specs), np.float64
        )
        self.last_read: Integers = np.zeros(len(self._keys), np.int64)
        """The version that was read over each link last."""

    def read(self, rows: Sequence[Row]) -> GroupReads:
        """Return what rows read, of different agents."""
        agents = np.array([row.agent for row in rows])
        counts = np.array([len(row.reads) for row in rows])
        numbers = chain.from_iterable(chain.from_iterable(row.reads for row in rows))
        neighbors, versions, staleness, age = np.fromiter(numbers, np.int64, 4 * counts.sum()).reshape(-1, 4).T
        places = np.repeat(np.arange(len(rows)), counts)
        keys = agents[places] * self._num_agents + neighbors
        links = np.searchsorted(self._keys, keys)
        # What is read of who is no neighbor has no weight, and no effect.
        if not np.array_equal(self._keys[links % len(self._keys)], keys):
            known = self._keys[links % len(self._keys)] == keys
            links, places = links[known], places[known]
            neighbors, versions, staleness, age = (one[known] for one in (neighbors, versions, staleness, age))
        at = (places, self._slots[links])

        def placed(values: Any, empty: Any = 0) -> Any:
            table = np.full((len(rows), self._mixing.shape[1]), empty)
            table[at] = values
            return table

        is_read = placed(True, False)
        weights = self._mixing[agents]
        missing = np.where(is_read, 0.0, weights).sum(1)
        found = Read(*map(placed, (neighbors, versions, staleness, age)))
        return GroupReads(
            agents,
            self._own_mixing[agents] + missing,
            np.where(is_read, weights, 0.0),
            cast("Integers", found.neighbor),
            cast("Integers", found.version),
            cast("Integers", found.staleness),
            cast("Integers", found.age),
            is_read,
            ~is_read | self._reliable(agents, found),
            links,
            versions,
        )

    def _reliable(self, agents: Integers, reads: Read) -> Flags:
        """Return whom agents trust; ``reads`` has tables of all of them in the place of numbers."""
        by_number: Any = self._recipe.reliability
        trusted: Flags = by_number.reliable(agents[:, None], reads, self._clusters)
        return trusted

    def note(self, group: GroupReads) -> None:
        """Take in what rows have read."""
        self.last_read[group.links] = group.linked_versions

    def horizons(self, newest: Integers, running: Flags) -> Integers:
        """Return of each agent the oldest version that a row to come can ask for.

        Args:
            newest: The agents' present versions.
            running: Who takes further steps.

        """
        horizons = newest.copy()
        asking = running[self._readers]
        np.minimum.at(horizons, self._neighbors[asking], self.last_read[asking] - self._slack)
        return horizons

    def last_reads(self) -> dict[tuple[int, int], int]:
        """Return by reader and neighbor which version was read last."""
        pairs = zip(self._readers.tolist(), self._neighbors.tolist(), strict=True)
        return dict(zip(pairs, self.last_read.tolist(), strict=True))

    def restore(self, last_reads: dict[tuple[int, int], int]) -> None:
        """Go on from what ``last_reads`` has returned."""
        for (reader, neighbor), version in last_reads.items():
            self.last_read[np.searchsorted(self._keys, reader * self._num_agents + neighbor)] = version
