"""Which agents are neighbors, and the weights with which they are averaged."""

import itertools
import operator
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, ClassVar, Literal

import networkx as nx
import numpy as np
from pydantic import Field

from ray_pcasgd.base.doors import Door, naming_own
from ray_pcasgd.base.randomness import generator, stream_seed
from ray_pcasgd.base.settings import Settings
from ray_pcasgd.schedule.changing import Hierarchical, OnePeerExponential

_REDRAWS = 100
_TOLERANCE = 1e-6


class Complete(Settings):
    """All agents are neighbors of each other."""

    name: Literal["complete"] = "complete"

    def graph(self, num_agents: int, seed: int) -> nx.Graph:
        """Return the graph on agents 0 to N - 1."""
        return nx.complete_graph(num_agents)


class Ring(Settings):
    """Each agent has the one before and the one after it."""

    name: Literal["ring"] = "ring"

    def graph(self, num_agents: int, seed: int) -> nx.Graph:
        """Return the graph on agents 0 to N - 1."""
        return _simple(nx.cycle_graph(num_agents))


class Torus(Settings):
    """A two-dimensional grid whose edges are joined."""

    name: Literal["torus"] = "torus"
    rows: int = Field(ge=1)
    """Rows of the grid."""
    columns: int = Field(ge=1)
    """Columns of the grid; rows times columns is the number of agents."""

    def graph(self, num_agents: int, seed: int) -> nx.Graph:
        """Return the graph on agents 0 to N - 1, numbered row by row."""
        if self.rows * self.columns != num_agents:
            raise ValueError(
                f"topology.rows = {self.rows}, topology.columns = {self.columns}: allowed are factors of num_agents "
                f"= {num_agents}"
            )
        grid = nx.grid_2d_graph(self.rows, self.columns, periodic=True)
        return _simple(nx.relabel_nodes(grid, {(r, c): r * self.columns + c for r, c in grid}))


class Star(Settings):
    """Agent 0 is the only neighbor of every other agent."""

    name: Literal["star"] = "star"

    def graph(self, num_agents: int, seed: int) -> nx.Graph:
        """Return the graph on agents 0 to N - 1."""
        return nx.star_graph(num_agents - 1)


class Hypercube(Settings):
    """Agents whose numbers differ in one bit are neighbors."""

    name: Literal["hypercube"] = "hypercube"

    def graph(self, num_agents: int, seed: int) -> nx.Graph:
        """Return the graph on agents 0 to N - 1."""
        if num_agents & (num_agents - 1):
            raise ValueError(f"num_agents = {num_agents}: allowed for topology.name = 'hypercube' are powers of two")
        graph = nx.empty_graph(num_agents)
        graph.add_edges_from((i, i ^ bit) for i in range(num_agents) for bit in _powers_below(num_agents))
        return graph


class StaticExponential(Settings):
    """Neighbors at distances 1, 2, 4, ... around a ring (the static exponential graph, undirected)."""

    name: Literal["exponential"] = "exponential"

    def graph(self, num_agents: int, seed: int) -> nx.Graph:
        """Return the graph on agents 0 to N - 1."""
        graph = nx.empty_graph(num_agents)
        graph.add_edges_from(
            (i, (i + distance) % num_agents) for i in range(num_agents) for distance in _powers_below(num_agents)
        )
        return _simple(graph)


class ErdosRenyi(Settings):
    """Every pair is joined with the same probability; drawn anew until the graph is connected."""

    name: Literal["erdos-renyi"] = "erdos-renyi"
    probability: float = Field(gt=0, le=1)
    """Probability of each edge."""

    def graph(self, num_agents: int, seed: int) -> nx.Graph:
        """Return the graph on agents 0 to N - 1."""
        for attempt in range(_REDRAWS):
            graph = nx.gnp_random_graph(num_agents, self.probability, seed=stream_seed(seed, "topology", attempt))
            if nx.is_connected(graph):
                return graph
        raise ValueError(
            f"topology.probability = {self.probability:g}: none of {_REDRAWS} graphs of {num_agents} agents was "
            "connected; allowed are larger values"
        )


class Regular(Settings):
    """A random graph in which all agents have the same number of neighbors; drawn anew until it is connected."""

    name: Literal["regular"] = "regular"
    degree: int = Field(ge=1)
    """Number of neighbors."""

    def graph(self, num_agents: int, seed: int) -> nx.Graph:
        """Return the graph on agents 0 to N - 1."""
        if self.degree >= num_agents or self.degree * num_agents % 2:
            raise ValueError(
                f"topology.degree = {self.degree}: allowed are values below num_agents = {num_agents} whose product "
                "with it is even"
            )
        for attempt in range(_REDRAWS):
            graph = nx.random_regular_graph(self.degree, num_agents, seed=stream_seed(seed, "topology", attempt))
            if nx.is_connected(graph):
                return graph
        raise ValueError(
            f"topology.degree = {self.degree}: none of {_REDRAWS} graphs of {num_agents} agents was connected; "
            "allowed are larger values"
        )


class Edges(Settings):
    """The user's own graph."""

    name: Literal["edges"] = "edges"
    edges: tuple[tuple[int, int], ...]
    """Pairs of neighbors."""

    def graph(self, num_agents: int, seed: int) -> nx.Graph:
        """Return the graph on agents 0 to N - 1."""
        _check_edges(self.edges, num_agents)
        graph = nx.empty_graph(num_agents)
        graph.add_edges_from(self.edges)
        return graph


class DirectedRing(Settings):
    """Each agent sends only to the one after it."""

    name: Literal["directed-ring"] = "directed-ring"

    def graph(self, num_agents: int, seed: int) -> nx.DiGraph:
        """Return the graph on agents 0 to N - 1; edges point the way that messages go."""
        return _simple(nx.cycle_graph(num_agents, create_using=nx.DiGraph))


class DirectedExponential(Settings):
    """Each agent sends to those 1, 2, 4, ... places after it around a ring (Assran et al. 2019, all at once)."""

    name: Literal["directed-exponential"] = "directed-exponential"

    def graph(self, num_agents: int, seed: int) -> nx.DiGraph:
        """Return the graph on agents 0 to N - 1; edges point the way that messages go."""
        graph = nx.empty_graph(num_agents, create_using=nx.DiGraph)
        graph.add_edges_from(
            (i, (i + distance) % num_agents) for i in range(num_agents) for distance in _powers_below(num_agents)
        )
        return _simple(graph)


class DirectedEdges(Settings):
    """The user's own directed graph."""

    name: Literal["directed-edges"] = "directed-edges"
    edges: tuple[tuple[int, int], ...]
    """Pairs of agents: the sender, and the agent that reads it."""

    def graph(self, num_agents: int, seed: int) -> nx.DiGraph:
        """Return the graph on agents 0 to N - 1; edges point the way that messages go."""
        _check_edges(self.edges, num_agents)
        graph = nx.empty_graph(num_agents, create_using=nx.DiGraph)
        graph.add_edges_from(self.edges)
        return graph


class OwnTopology(Settings, ABC):
    """Base class of topologies that are not the package's own."""

    directed: ClassVar[bool] = False
    """Whether edges point from the sender to the agent that reads it; for algorithms that push shares alone."""

    @abstractmethod
    def edges(self, num_agents: int, random: np.random.Generator) -> Iterable[tuple[int, int]]:
        """Return pairs of neighbors, among the agents 0 to N - 1.

        What is random is drawn from ``random``, which follows from the run's seed: the graph is the same whenever it is
        asked for.
        """

    def graph(self, num_agents: int, seed: int) -> nx.Graph:
        """Return the graph on agents 0 to N - 1.

        Raises:
            ValueError: an edge is no pair of two agents, or the edges differ from call to call.

        """
        with naming_own(self, "topology"):
            first, second = (
                [tuple(map(operator.index, edge)) for edge in self.edges(num_agents, generator(seed, "topology"))]
                for _ in range(2)
            )
        if first != second:
            raise ValueError(
                "topology: its edges differ from call to call; allowed is to draw from the generator given alone"
            )
        if wrong := next((edge for edge in first if len(edge) != 2), None):
            raise ValueError(f"topology: the edge {list(wrong)}; allowed are pairs of agents")
        edges = tuple((i, k) for i, k in first)
        _check_edges(edges, num_agents, "topology")
        graph = nx.empty_graph(num_agents, create_using=nx.DiGraph if self.directed else nx.Graph)
        graph.add_edges_from(edges)
        return graph


Topology = Annotated[
    Complete
    | Ring
    | Torus
    | Star
    | Hypercube
    | StaticExponential
    | ErdosRenyi
    | Regular
    | Edges
    | OnePeerExponential
    | Hierarchical
    | DirectedRing
    | DirectedExponential
    | DirectedEdges,
    Field(discriminator="name"),
    Door("topology", "ray_pcasgd.topologies", (OwnTopology,)),
]
"""A connected graph of agents, by its ``name``; directed ones are for algorithms that push shares (sgp)."""


class Metropolis(Settings):
    """Metropolis-Hastings weights: ``w_ik = 1 / (1 + max(deg_i, deg_k))``, the rest stays with the agent."""

    name: Literal["metropolis"] = "metropolis"

    def matrix(self, graph: nx.Graph) -> np.ndarray:
        """Return W, float64 of shape (N, N)."""
        matrix = np.zeros((len(graph), len(graph)))
        for i, k in graph.edges:
            matrix[i, k] = matrix[k, i] = 1 / (1 + max(graph.degree[i], graph.degree[k]))
        np.fill_diagonal(matrix, 1 - matrix.sum(1))
        return matrix


class Uniform(Settings):
    """The weight 1 / N for all agents, on a complete graph."""

    name: Literal["uniform"] = "uniform"

    def matrix(self, graph: nx.Graph) -> np.ndarray:
        """Return W, float64 of shape (N, N)."""
        number = len(graph)
        if graph.number_of_edges() != number * (number - 1) // 2:
            raise ValueError("mixing.name = 'uniform': allowed is a complete graph; metropolis fits any other")
        return np.full((number, number), 1 / number)


class OwnMatrix(Settings):
    """The user's own mixing matrix."""

    name: Literal["matrix"] = "matrix"
    rows: tuple[tuple[float, ...], ...]
    """Symmetric, non-negative, each row sums to 1; 0 where there is no edge."""

    def matrix(self, graph: nx.Graph) -> np.ndarray:
        """Return W, float64 of shape (N, N)."""
        number = len(graph)
        if len(self.rows) != number or any(len(row) != number for row in self.rows):
            raise ValueError(f"mixing.rows: allowed are {number} rows of {number} weights each, one for each agent")
        matrix = np.array(self.rows)
        _check_weights(matrix, graph, "mixing.rows")
        return matrix


class OwnMixing(Settings, ABC):
    """Base class of mixing matrices that are not the package's own."""

    @abstractmethod
    def weights(self, neighbors: Sequence[Sequence[int]]) -> Any:
        """Return W, an array of shape (N, N), for the neighbors of each of the N agents, in rising order.

        Symmetric, non-negative, each row sums to 1; 0 where there is no edge.
        """

    def matrix(self, graph: nx.Graph) -> np.ndarray:
        """Return W, float64 of shape (N, N).

        Raises:
            ValueError: the weights are no such matrix.

        """
        number = len(graph)
        with naming_own(self, "mixing"):
            neighbors = tuple(tuple(sorted(graph[agent])) for agent in range(number))
            matrix, again = (np.array(self.weights(neighbors), dtype=np.float64) for _ in range(2))
        if not np.array_equal(matrix, again, equal_nan=True):
            raise ValueError("mixing: its weights differ from call to call; allowed is what follows from the neighbors")
        if matrix.shape != (number, number):
            raise ValueError(f"mixing: its weights have the shape {matrix.shape}; allowed is {(number, number)}")
        if not np.isfinite(matrix).all():
            raise ValueError("mixing: its weights are not finite; allowed are numbers from 0 on")
        _check_weights(matrix, graph, "mixing")
        return matrix


Mixing = Annotated[
    Metropolis | Uniform | OwnMatrix,
    Field(discriminator="name"),
    Door("mixing", "ray_pcasgd.mixing", (OwnMixing,)),
]
"""A doubly stochastic mixing matrix, by its ``name``."""


def _check_edges(edges: tuple[tuple[int, int], ...], num_agents: int, setting: str = "topology.edges") -> None:
    for i, k in edges:
        if i == k or not (0 <= i < num_agents and 0 <= k < num_agents):
            raise ValueError(
                f"{setting}: the pair [{i}, {k}]; allowed are two different agents of 0 to {num_agents - 1}"
            )


def _check_weights(matrix: np.ndarray, graph: nx.Graph, setting: str) -> None:
    _check_doubly_stochastic(matrix, setting)
    for i, k in itertools.permutations(range(len(graph)), 2):
        if matrix[i, k] > 0 and not graph.has_edge(i, k):
            raise ValueError(f"{setting}: {matrix[i, k]:g} at [{i}, {k}]; allowed is 0 where there is no edge")


def _check_doubly_stochastic(matrix: np.ndarray, setting: str) -> None:
    if (matrix < 0).any():
        raise ValueError(f"{setting}: the weight {matrix.min():g}; allowed are weights from 0 on")
    if not np.allclose(matrix, matrix.T, rtol=0, atol=_TOLERANCE):
        i, k = np.argwhere(~np.isclose(matrix, matrix.T, rtol=0, atol=_TOLERANCE))[0]
        raise ValueError(
            f"{setting}: {matrix[i, k]:g} at [{i}, {k}] and {matrix[k, i]:g} at [{k}, {i}]; allowed is equal"
        )
    sums = matrix.sum(1)
    if not np.allclose(sums, 1, rtol=0, atol=_TOLERANCE):
        worst = int(np.abs(sums - 1).argmax())
        raise ValueError(f"{setting}: row {worst} sums to {sums[worst]:g}; allowed is 1")


def _simple(graph: nx.Graph) -> nx.Graph:
    graph.remove_edges_from(list(nx.selfloop_edges(graph)))
    return graph


def _powers_below(limit: int) -> list[int]:
    return [1 << exponent for exponent in range(limit.bit_length()) if 1 << exponent < limit]
