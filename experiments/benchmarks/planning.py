"""(f) Planning alone: rows a second with bandwidths and hosts against the same plan without."""

import itertools
import time

import networkx as nx

from experiments.benchmarks.measuring import Figure, paired
from ray_pcasgd.schedule.barrier import NoBarrier
from ray_pcasgd.schedule.delays import ComputeTimes, LinkDelay
from ray_pcasgd.schedule.hosts import Host
from ray_pcasgd.schedule.laws import ConstantLaw, Exponential
from ray_pcasgd.schedule.plan_peers import Planner

SIZES = {8: (7, 1500), 64: (6, 200), 1000: (8, 20)}
"""By the number of agents: neighbors of each, and steps."""
MESSAGE_BYTES = 36_000


def benchmark(repeats: int) -> list[Figure]:
    """Return the figures with bandwidths alone, and with hosts too."""
    figures = []
    for num_agents in SIZES:
        plain, limited, shared = (
            plan(num_agents, _delay(None), ()),
            plan(num_agents, _delay("100 Mbit/s"), ()),
            plan(num_agents, _delay("100 Mbit/s"), hosts(num_agents)),
        )
        for one, what in ((limited, "bandwidths"), (shared, "bandwidths and hosts of four agents")):
            name = f"planning {num_agents} agents with {what}"
            figures.append(
                paired(name, lambda one=one: _rate(one), lambda plain=plain: _rate(plain), "rows/s", "without", repeats)
            )
    return figures


def seconds_of_five_regions() -> float:
    """Return the seconds of a plan of 1,000 agents, 30 steps each, on 250 hosts in five regions."""
    began = time.perf_counter()
    rows = sum(1 for _ in plan(1000, regions(1000), hosts(1000), num_steps=30))
    assert rows == 30_000
    return time.perf_counter() - began


def plan(num_agents: int, links: tuple[LinkDelay, ...], of: tuple[Host, ...], num_steps: int | None = None) -> Planner:
    """Return a plan on a random regular graph."""
    degree, steps = SIZES[num_agents]
    graph = nx.random_regular_graph(degree, num_agents, seed=0)
    return Planner(
        neighbors=tuple(tuple(sorted(graph[agent])) for agent in range(num_agents)),
        compute=ComputeTimes(law=Exponential(mean=0.1)),
        links=links,
        hosts=of,
        clusters=(0,) * num_agents,
        barrier=NoBarrier(),
        num_steps=num_steps or steps,
        seed=0,
        message_bytes=MESSAGE_BYTES,
    )


def hosts(num_agents: int) -> tuple[Host, ...]:
    """Return hosts of four agents."""
    places = range(0, num_agents, 4)
    return tuple(Host(agents=tuple(range(k, min(k + 4, num_agents))), up="1 Gbit/s", down="1 Gbit/s") for k in places)


def regions(num_agents: int) -> tuple[LinkDelay, ...]:
    """Return the links within five regions, and between each two of them."""
    groups = [tuple(range(k * num_agents // 5, (k + 1) * num_agents // 5)) for k in range(5)]
    between = [
        _delay("200 Mbit/s", 0.02 * (b - a), between=(groups[a], groups[b]))[0]
        for a, b in itertools.combinations(range(5), 2)
    ]
    return (*_delay("1 Gbit/s", 0.001), *between)


def _delay(bandwidth: str | None, seconds: float = 0.05, **where: object) -> tuple[LinkDelay]:
    tree = {"delay": ConstantLaw(value=seconds), "unit": "seconds", "bandwidth": bandwidth, **where}
    return (LinkDelay.model_validate(tree),)


def _rate(one: Planner) -> float:
    # Of this process: others on the machine have no part in it.
    began = time.process_time()
    rows = sum(1 for _ in one)
    return rows / (time.process_time() - began)
