"""Which agents are neighbors, and the weights with which they are averaged."""

import itertools
import operator
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import reduce
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import networkx as nx
import numpy as np
from pydantic import Field

from ray_pcasgd.base.doors import Door, naming_own
from ray_pcasgd.base.randomness import generator, stream_seed
from ray_pcasgd.base.settings import Settings
from ray_pcasgd.rules.exchange import InPhases
from ray_pcasgd.schedule.changing import ChangingTopology, Hierarchical, OnePeerExponential

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
