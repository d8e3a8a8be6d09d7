"""Who reads whom in a run, and with which weights: built from a topology and its mixing, and checked."""

from functools import reduce
from typing import Any, NamedTuple

import networkx as nx
import numpy as np

from ray_pcasgd.rules.exchange import InPhases
from ray_pcasgd.schedule.changing import ChangingTopology
from ray_pcasgd.schedule.topology import Metropolis, OwnMixing


class Network(NamedTuple):
    """The graph and the mixing matrix of a run."""

    neighbors: tuple[tuple[int, ...], ...]
    """For each agent those that it reads, rising."""
    matrix: np.ndarray
    """W, float64 of shape (N, N): symmetric and doubly stochastic, or the shares of push-sum: columns sum to 1. Where
    it changes from step to step, the mean over all of them."""
    phases: tuple[np.ndarray, ...] = ()
    """The T matrices that follow each other from step to step, doubly stochastic; empty: it is always ``matrix``."""

    @property
    def spectral_gap(self) -> float:
        """``1 - |lambda_2(W)|`` in [0, 1]: how fast averaging alone brings the agents together; 1 for one agent.

        Where W changes, that of the product of the T matrices, whose modulus is taken to the power ``1 / T``.
        """
        product = reduce(np.matmul, self.phases) if self.phases else self.matrix
        moduli = np.sort(np.abs(np.linalg.eigvals(product)))
        return 1.0 if len(moduli) == 1 else float(1 - moduli[-2] ** (1 / max(1, len(self.phases))))

    @property
    def exchange(self) -> InPhases | None:
        """Who reads whom at which step, where that changes."""
        if not self.phases:
            return None
        return InPhases(
            tuple(
                tuple(tuple(k for k in read if matrix[i, k] > 0) for i, read in enumerate(self.neighbors))
                for matrix in self.phases
            )
        )

    def readers(self, agent: int) -> tuple[int, ...]:
        """Return those that read an agent, rising."""
        return tuple(i for i, read in enumerate(self.neighbors) if agent in read)

    def row(self, agent: int) -> tuple[float, tuple[float, ...]]:
        """Return ``w_ii`` and the weights of the agent's neighbors, in their order."""
        return self._row(self.matrix, agent)

    def rows(self, agent: int) -> tuple[tuple[float, tuple[float, ...]], ...]:
        """Return what ``row`` does, for each of the matrices that follow each other."""
        return tuple(self._row(matrix, agent) for matrix in self.phases)

    def _row(self, matrix: np.ndarray, agent: int) -> tuple[float, tuple[float, ...]]:
        return float(matrix[agent, agent]), tuple(float(matrix[agent, k]) for k in self.neighbors[agent])


def build_network(topology: Any, mixing: Any, num_agents: int, seed: int) -> Network:
    """Return the network of ``num_agents`` agents.

    Raises:
        ValueError: the graph is not connected, or does not fit the number of agents; the matrix does not fit the graph.

    """
    if isinstance(topology, ChangingTopology):
        return _changing_network(topology, mixing, num_agents)
    graph = topology.graph(num_agents, seed)
    if graph.is_directed():
        raise ValueError(
            f"topology.name = {topology.name!r}: allowed with this algorithm are undirected graphs; directed ones "
            "are for sgp and sgp-overlap"
        )
    if not nx.is_connected(graph):
        apart = sorted(min(part) for part in nx.connected_components(graph))
        raise ValueError(
            f"topology.name = {topology.name!r}: the graph is disconnected, there is no path from agent {apart[0]} to "
            f"agent {apart[1]}; allowed are connected graphs"
        )
    matrix = mixing.matrix(graph)
    linked = nx.from_numpy_array(matrix > 0)
    if not nx.is_connected(linked):
        setting = "mixing" if isinstance(mixing, OwnMixing) else "mixing.rows"
        raise ValueError(f"{setting}: the weights above 0 do not connect all agents; allowed are matrices that do")
    return Network(tuple(tuple(sorted(graph[i])) for i in range(num_agents)), matrix)


def _changing_network(topology: Any, mixing: Any, num_agents: int) -> Network:
    if mixing != Metropolis():
        raise ValueError(
            f"mixing.name = {mixing.name!r}: allowed with topology.name = {topology.name!r} is only the default; the "
            "weights of each step follow from its graph"
        )
    phases = topology.phases(num_agents)
    matrix = sum(phases) / len(phases) if phases else np.eye(num_agents)
    if not nx.is_connected(nx.from_numpy_array(matrix + matrix.T)):
        raise ValueError(
            f"topology.name = {topology.name!r}: allowed are groups that connect all agents, one step after another"
        )
    read = tuple(tuple(int(k) for k in np.flatnonzero(row) if k != i) for i, row in enumerate(matrix))
    return Network(read, matrix, phases)


def build_push_network(topology: Any, num_agents: int, seed: int) -> Network:
    """Return the network in which each agent sends equal shares to itself and to all that read it.

    The share of i in what k sends is ``W[i, k] = 1 / (1 + out-degree of k)``; columns sum to 1.

    Raises:
        ValueError: some agent has no path to another one, or the graph does not fit the number of agents.

    """
    changes, graph = isinstance(topology, ChangingTopology), topology.graph(num_agents, seed).to_directed()
    if changes:
        raise ValueError(
            f"topology.name = {topology.name!r}: allowed with this algorithm is a graph that never changes"
        )
    if not nx.is_strongly_connected(graph):
        parts = nx.condensation(graph)
        sink = next(part for part in parts if parts.out_degree(part) == 0)
        inside = min(parts.nodes[sink]["members"])
        outside = min(set(graph) - parts.nodes[sink]["members"])
        raise ValueError(
            f"topology.name = {topology.name!r}: there is no path from agent {inside} to agent {outside}; allowed are "
            "graphs with a path from each agent to every other one"
        )
    matrix = np.zeros((num_agents, num_agents))
    for k in graph:
        for i in (k, *graph.successors(k)):
            matrix[i, k] = 1 / (1 + graph.out_degree(k))
    return Network(tuple(tuple(sorted(graph.predecessors(i))) for i in range(num_agents)), matrix)
