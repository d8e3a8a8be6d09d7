"""Topologies that change from step to step, in the same order again and again."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Literal

import networkx as nx
import numpy as np
from pydantic import Field

from ray_pcasgd.base.settings import Settings


class ChangingTopology(Settings, ABC):
    """Base class: at step t, the graph is number ``t mod T`` of T; steps are rounds where there are local steps."""

    @abstractmethod
    def phases(self, num_agents: int) -> tuple[np.ndarray, ...]:
        """Return the T mixing matrices, float64 of shape (N, N), each doubly stochastic.

        Raises:
            ValueError: the settings do not fit the number of agents.

        """

    def graph(self, num_agents: int, seed: int) -> nx.Graph:
        """Return the graph of all that are ever linked, on agents 0 to N - 1."""
        linked = sum(self.phases(num_agents), np.zeros((num_agents, num_agents))) > 0
        graph = nx.empty_graph(num_agents)
        graph.add_edges_from((int(i), int(k)) for i, k in np.argwhere(linked) if i != k)
        return graph


class OnePeerExponential(ChangingTopology):
    """One-peer exponential graph: at step t each agent reads the one ``2^(t mod T)`` places after it around a ring.

    ``W(t) = (I + P) / 2``, with P the shift by that distance; T is the number of powers of two below N. Where N is a
    power of two, T such steps without gradients make all agents equal (Ying et al., NeurIPS 2021, arXiv 2110.13363;
    Assran et al., ICML 2019, arXiv 1811.10792). A step costs one message, as on a ring half of one's neighbors.
    """

    name: Literal["one-peer-exponential"] = "one-peer-exponential"

    def phases(self, num_agents: int) -> tuple[np.ndarray, ...]:
        """Return the mixing matrices, nearest first; one agent alone has none."""
        identity = np.eye(num_agents)
        distances = [1 << exponent for exponent in range((num_agents - 1).bit_length())]
        return tuple((identity + np.roll(identity, distance, axis=1)) / 2 for distance in distances)


class Hierarchical(ChangingTopology):
    """Hierarchical averaging: first among the agents of a group, such as a host's, then between groups.

    After ``inside`` steps in which each group averages among its own, there is one in which the first agents of all
    groups average, the second agents, and so on, as far as others have as many. Of groups of one size, one step of
    each makes all agents equal, and between groups only 1 in ``inside + 1`` steps sends anything.

    **Choice**: Lin et al. (hierarchical local SGD, ICLR 2020, arXiv 1808.07217) average all agents at once in the
    second kind of steps; here it is done as an all-reduce over two levels does it, in two steps.
    """

    name: Literal["hierarchical"] = "hierarchical"
    groups: tuple[tuple[int, ...], ...] | None = None
    """The groups of agents, each agent in one of them; not given: the run's ``clusters``."""
    inside: int = Field(1, ge=1)
    """Steps inside the groups for each step between them."""

    def phases(self, num_agents: int) -> tuple[np.ndarray, ...]:
        """Return the mixing matrices."""
        groups = self.groups or ()
        if sorted(agent for group in groups for agent in group) != list(range(num_agents)):
            given = [list(group) for group in groups]
            raise ValueError(
                f"topology.groups = {given}: allowed are groups that hold each agent 0 to {num_agents - 1} once"
            )
        if len(groups) < 2 <= num_agents:
            raise ValueError(f"topology.groups = {[list(groups[0])]}: is one group; allowed are several")
        longest = max(map(len, groups))
        ranks = [[group[rank] for group in groups if rank < len(group)] for rank in range(longest)]
        return (*[_averaging(groups, num_agents)] * self.inside, _averaging(ranks, num_agents))


def _averaging(groups: Iterable[Sequence[int]], num_agents: int) -> np.ndarray:
    """Return the matrix by which each of some disjoint groups comes to its mean."""
    matrix = np.eye(num_agents)
    for group in groups:
        if group:
            matrix[np.ix_(group, group)] = 1 / len(group)
    return matrix
