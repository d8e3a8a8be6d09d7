"""Small networks for tests of rules: who reads what at each step, and what each agent minimises."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ray_pcasgd.base.randomness import generator

Array = npt.NDArray[np.float64]


class Link(NamedTuple):
    """What one agent reads of one neighbor at one step: the version of ``age`` steps ago."""

    neighbor: int
    staleness: int
    age: int
    reliable: bool


class Scenario(NamedTuple):
    """N agents of D parameters over T steps; agent i minimises ``sum curvature_i (x - target_i)^2 / 2``."""

    mixing: Array
    """(N, N)."""
    start: Array
    """(N, D)."""
    links: list[list[list[Link]]]
    """By step and agent, sorted by neighbor."""
    curvature: Array
    """(N, D)."""
    target: Array
    """(N, D)."""
    noise: Array
    """(T, N, D), added to the gradients."""
    probe_target: Array
    """(T, N, D): the minimum of the loss that a probe at that step sees."""
    step_size: float


def metropolis(edges: list[tuple[int, int]], num_agents: int) -> Array:
    """Return the Metropolis-Hastings weights, written out."""
    degree = [sum(i in edge for edge in edges) for i in range(num_agents)]
    mixing = np.zeros((num_agents, num_agents))
    for i, k in edges:
        mixing[i, k] = mixing[k, i] = 1 / (1 + max(degree[i], degree[k]))
    for i in range(num_agents):
        mixing[i, i] = 1 - sum(mixing[i, k] for k in range(num_agents) if k != i)
    return mixing


def random_edges(draw: np.random.Generator, num_agents: int) -> list[tuple[int, int]]:
    """Return a random connected graph: a random tree and a few more edges."""
    edges = {(int(draw.integers(k)), k) for k in range(1, num_agents)}
    edges |= {(i, k) for k in range(num_agents) for i in range(k) if draw.random() < 0.4}
    return sorted(edges)


def random_scenario(seed: int, *, same_speed: bool = True, num_steps: int = 8, oldest: int = 5) -> Scenario:
    """Return a random graph of 2 to 5 agents with 1 to 4 parameters, random delays and random distrust."""
    draw = generator(seed, "scenario")
    num_agents, size = int(draw.integers(2, 6)), int(draw.integers(1, 5))
    mixing = metropolis(random_edges(draw, num_agents), num_agents)
    declared = draw.random() < 0.5
    cluster = draw.integers(2, size=num_agents)

    def link(i: int, k: int, step: int) -> Link:
        age = int(draw.integers(min(step, oldest) + 1))
        staleness = age if same_speed else int(draw.integers(oldest + 1))
        return Link(k, staleness, age, bool(cluster[i] == cluster[k]) if declared else staleness == 0)

    links = [
        [[link(i, k, step) for k in range(num_agents) if k != i and mixing[i, k] > 0] for i in range(num_agents)]
        for step in range(num_steps)
    ]
    shape = (num_agents, size)
    target = draw.normal(size=shape)
    return Scenario(
        mixing=mixing,
        start=draw.normal(size=shape),
        links=links,
        curvature=draw.uniform(0.5, 3.0, size=shape),
        target=target,
        noise=0.3 * draw.normal(size=(num_steps, *shape)),
        probe_target=target + 0.5 * draw.normal(size=(num_steps, *shape)),
        step_size=float(draw.uniform(0.02, 0.2)),
    )
