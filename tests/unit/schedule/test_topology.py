import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from ray_pcasgd.schedule.network import Network, build_network
from ray_pcasgd.schedule.topology import Metropolis, Mixing, Topology, Uniform
from tests.speed import examples

EXAMPLES: list[tuple[dict[str, Any], int]] = [
    ({"name": "complete"}, 1),
    ({"name": "complete"}, 6),
    ({"name": "ring"}, 1),
    ({"name": "ring"}, 2),
    ({"name": "ring"}, 3),
    ({"name": "ring"}, 9),
    ({"name": "torus", "rows": 1, "columns": 1}, 1),
    ({"name": "torus", "rows": 2, "columns": 3}, 6),
    ({"name": "torus", "rows": 1, "columns": 4}, 4),
    ({"name": "torus", "rows": 4, "columns": 5}, 20),
    ({"name": "star"}, 1),
    ({"name": "star"}, 7),
    ({"name": "hypercube"}, 1),
    ({"name": "hypercube"}, 16),
    ({"name": "exponential"}, 1),
    ({"name": "exponential"}, 2),
    ({"name": "exponential"}, 11),
    ({"name": "erdos-renyi", "probability": 0.3}, 12),
    ({"name": "regular", "degree": 3}, 10),
    ({"name": "edges", "edges": [[0, 1], [1, 2], [3, 1], [1, 0]]}, 4),
]


def network(topology: dict[str, Any], num_agents: int, mixing: Any = None, seed: int = 0) -> Network:
    parsed = TypeAdapter(Topology).validate_python(topology)
    return build_network(
        parsed, TypeAdapter(Mixing).validate_python(mixing or {"name": "metropolis"}), num_agents, seed
    )


def reached(neighbors: tuple[tuple[int, ...], ...]) -> set[int]:
    found = {0}
    while more := {k for i in found for k in neighbors[i]} - found:
        found |= more
    return found


def assert_proper(found: Network, num_agents: int) -> None:
    assert len(found.neighbors) == num_agents
    assert reached(found.neighbors) == set(range(num_agents))
    assert found.matrix.shape == (num_agents, num_agents)
    assert found.matrix.dtype == np.float64
    assert (found.matrix == found.matrix.T).all()
    np.testing.assert_allclose(found.matrix.sum(0), 1, atol=1e-12)
    for i, of_agent in enumerate(found.neighbors):
        assert list(of_agent) == sorted(set(of_agent) - {i})
        assert of_agent == tuple(k for k in range(num_agents) if k != i and found.matrix[i, k] > 0)
        own, weights = found.row(i)
        assert own == found.matrix[i, i] > 0
        assert list(weights) == [found.matrix[i, k] for k in of_agent]


@pytest.mark.parametrize(("topology", "num_agents"), EXAMPLES)
def test_every_graph_is_connected_with_a_doubly_stochastic_matrix(topology: dict[str, Any], num_agents: int) -> None:
    assert_proper(network(topology, num_agents), num_agents)


@examples(25, 60)
@given(st.integers(1, 24), st.floats(0.4, 1), st.integers(0, 2**31))
def test_random_graphs_are_connected_and_follow_the_seed(num_agents: int, probability: float, seed: int) -> None:
    topology = {"name": "erdos-renyi", "probability": probability}
    first, again = network(topology, num_agents, seed=seed), network(topology, num_agents, seed=seed)
    assert_proper(first, num_agents)
    assert first.neighbors == again.neighbors
    if num_agents >= 2:
        degree = 2 * (num_agents // 3) or num_agents - 1
        regular = network({"name": "regular", "degree": degree}, num_agents, seed=seed)
        assert_proper(regular, num_agents)
        assert {len(of_agent) for of_agent in regular.neighbors} == {degree}


def test_another_seed_gives_another_random_graph() -> None:
    graphs = [network({"name": "regular", "degree": 3}, 12, seed=seed).neighbors for seed in range(5)]
    assert len(set(graphs)) == 5


def test_edge_probability_is_kept() -> None:
    degrees = [
        len(k)
        for seed in range(20)
        for k in network({"name": "erdos-renyi", "probability": 0.4}, 30, seed=seed).neighbors
    ]
    assert np.mean(degrees) == pytest.approx(0.4 * 29, rel=0.05)


@pytest.mark.parametrize(
    ("topology", "num_agents"), [e for e in EXAMPLES if e[0]["name"] not in ("erdos-renyi", "regular")]
)
def test_neighbors_match_the_definition(topology: dict[str, Any], num_agents: int) -> None:
    def linked(i: int, k: int) -> bool:
        around = (i - k) % num_agents, (k - i) % num_agents
        match topology["name"]:
            case "complete":
                return True
            case "ring":
                return 1 in around
            case "star":
                return 0 in (i, k)
            case "hypercube":
                return (i ^ k).bit_count() == 1
            case "exponential":
                return any(distance.bit_count() == 1 for distance in around)
            case "edges":
                return [i, k] in topology["edges"] or [k, i] in topology["edges"]
            case "torus":
                (r, c), (s, d) = divmod(i, topology["columns"]), divmod(k, topology["columns"])
                step = lambda a, b, size: 1 in ((a - b) % size, (b - a) % size)  # noqa: E731
                return (r == s and step(c, d, topology["columns"])) or (c == d and step(r, s, topology["rows"]))
        raise AssertionError(topology)

    expected = tuple(tuple(k for k in range(num_agents) if k != i and linked(i, k)) for i in range(num_agents))
    assert network(topology, num_agents).neighbors == expected


def test_metropolis_weights_of_a_small_graph() -> None:
    # Degrees 1, 3, 2, 2: by hand.
    found = network({"name": "edges", "edges": [[0, 1], [1, 2], [1, 3], [2, 3]]}, 4)
    expected = [[9, 3, 0, 0], [3, 3, 3, 3], [0, 3, 5, 4], [0, 3, 4, 5]]
    np.testing.assert_allclose(found.matrix, np.array(expected) / 12, atol=1e-12)


@pytest.mark.parametrize("num_agents", [3, 4, 5, 8, 13])
def test_spectral_gap_of_a_ring(num_agents: int) -> None:
    eigenvalues = [(1 + 2 * math.cos(2 * math.pi * j / num_agents)) / 3 for j in range(1, num_agents)]
    assert network({"name": "ring"}, num_agents).spectral_gap == pytest.approx(1 - max(map(abs, eigenvalues)))


@pytest.mark.parametrize("dimension", [1, 2, 3, 5])
def test_spectral_gap_of_a_hypercube(dimension: int) -> None:
    assert network({"name": "hypercube"}, 2**dimension).spectral_gap == pytest.approx(2 / (dimension + 1))


@pytest.mark.parametrize("num_agents", [1, 2, 7])
def test_uniform_is_exact_averaging(num_agents: int) -> None:
    found = build_network(TypeAdapter(Topology).validate_python({"name": "complete"}), Uniform(), num_agents, 0)
    assert_proper(found, num_agents)
    assert (found.matrix == 1 / num_agents).all()
    assert found.spectral_gap == pytest.approx(1)


def test_own_matrix_is_taken_as_it_is() -> None:
    rows = [[0.5, 0.5, 0.0], [0.5, 0.25, 0.25], [0.0, 0.25, 0.75]]
    found = network({"name": "complete"}, 3, {"name": "matrix", "rows": rows})
    assert found.matrix.tolist() == rows
    assert found.row(1) == (0.25, (0.5, 0.25))


MATRIX_ERRORS = {
    "allowed are 2 rows of 2 weights": [[1.0]],
    "2 rows of 2 weights each": [[0.5, 0.5], [0.5]],
    "the weight -0.5": [[1.5, -0.5], [-0.5, 1.5]],
    "0.5 at [0, 1] and 0.4 at [1, 0]": [[0.5, 0.5], [0.4, 0.6]],
    "row 0 sums to 0.9": [[0.4, 0.5], [0.5, 0.5]],
    "row 1 sums to 1.00001": [[0.5, 0.5], [0.5, 0.50001]],
    "do not connect all agents": [[1.0, 0.0], [0.0, 1.0]],
}


@pytest.mark.parametrize("said", MATRIX_ERRORS)
def test_own_matrix_is_checked(said: str) -> None:
    with pytest.raises(ValueError, match=r"^mixing\.rows") as caught:
        network({"name": "complete"}, 2, {"name": "matrix", "rows": MATRIX_ERRORS[said]})
    assert said in str(caught.value)


def test_own_matrix_has_no_weight_where_there_is_no_edge() -> None:
    rows = [[0.5, 0.25, 0.25], [0.25, 0.5, 0.25], [0.25, 0.25, 0.5]]
    with pytest.raises(ValueError, match=r"mixing\.rows: 0\.25 at \[1, 2\]; allowed is 0 where there is no edge"):
        network({"name": "star"}, 3, {"name": "matrix", "rows": rows})


ERRORS: dict[str, tuple[dict[str, Any], int]] = {
    "topology.rows = 2, topology.columns = 3: allowed are factors of num_agents = 7": (
        {"name": "torus", "rows": 2, "columns": 3},
        7,
    ),
    "num_agents = 6: allowed for topology.name = 'hypercube' are powers of two": ({"name": "hypercube"}, 6),
    "topology.degree = 3: allowed": ({"name": "regular", "degree": 3}, 5),
    "topology.degree = 4: allowed": ({"name": "regular", "degree": 4}, 4),
    "topology.degree = 1: none of 100 graphs of 6 agents": ({"name": "regular", "degree": 1}, 6),
    "topology.probability = 0.01: none of 100 graphs of 20 agents": ({"name": "erdos-renyi", "probability": 0.01}, 20),
    "topology.edges: the pair [1, 4]; allowed are two different agents of 0 to 3": (
        {"name": "edges", "edges": [[1, 4]]},
        4,
    ),
    "topology.edges: the pair [1, 1]": ({"name": "edges", "edges": [[1, 1]]}, 4),
    "no path from agent 0 to agent 2": ({"name": "edges", "edges": [[0, 1], [2, 3]]}, 4),
}


@pytest.mark.parametrize("said", ERRORS)
def test_a_topology_that_does_not_fit_is_named(said: str) -> None:
    topology, num_agents = ERRORS[said]
    with pytest.raises(ValueError, match=r"^(topology|num_agents)") as caught:
        network(topology, num_agents)
    assert said in str(caught.value)
    assert len(str(caught.value)) < 200


def test_uniform_asks_for_a_complete_graph() -> None:
    with pytest.raises(ValueError, match=r"mixing\.name = 'uniform'"):
        build_network(TypeAdapter(Topology).validate_python({"name": "ring"}), Uniform(), 4, 0)
    build_network(TypeAdapter(Topology).validate_python({"name": "ring"}), Metropolis(), 4, 0)
