"""(f) Planning alone: rows a second with bandwidths and hosts against the same plan without."""

import itertools
import time
from collections.abc import Iterable

import networkx as nx

from experiments.benchmarks.measuring import Figure, paired
from ray_pcasgd.records import Row
from ray_pcasgd.schedule.barrier import NoBarrier
from ray_pcasgd.schedule.delays import ComputeTimes, LinkDelay
from ray_pcasgd.schedule.hosts import Host
from ray_pcasgd.schedule.laws import ConstantLaw, Exponential
from ray_pcasgd.schedule.plan_peers import Planner, Simulation
from ray_pcasgd.schedule.topology import StaticExponential

REGULAR = {8: (7, 6000), 64: (6, 1500), 1000: (8, 100)}
"""Random regular graphs, by the number of agents: neighbors of each, and steps."""
EXPONENTIAL = {8: (12_000, 1500), 256: (500, 50), 4096: (40, 5)}
"""Exponential graphs, by the number of agents: steps, and those that are planned one event after another."""
MESSAGE_BYTES = 36_000


def benchmark(repeats: int) -> list[Figure]:
    """Return the figures without a barrier: with bandwidths alone, with hosts too, and against single events."""
    figures = []
    for num_agents, (degree, steps) in REGULAR.items():
        graph = nx.random_regular_graph(degree, num_agents, seed=0)
        figures += _with_bytes(f"{num_agents} agents", graph, steps, repeats)
    for num_agents, (steps, fewer_steps) in EXPONENTIAL.items():
        graph, name = StaticExponential().graph(num_agents, 0), f"{num_agents} agents on an exponential graph"
        figures += _with_bytes(name, graph, steps, repeats)
        plain, short = (plan(graph, _delay(None), (), number) for number in (steps, fewer_steps))
        figures.append(
            paired(
                f"planning {name}",
                lambda plain=plain: _rate(plain),
                lambda short=short: _rate(Simulation(short).rows()),
                "rows/s",
                "one event after another",
                repeats,
            )
        )
    return figures


def _with_bytes(name: str, graph: nx.Graph, steps: int, repeats: int) -> list[Figure]:
    """Return the figures with bandwidths, and with hosts too, against the same plan without."""
    plain, limited, shared = (
        plan(graph, _delay(bandwidth), of, steps)
        for bandwidth, of in ((None, ()), ("100 Mbit/s", ()), ("100 Mbit/s", hosts(len(graph))))
    )
    return [
        paired(
            f"planning {name} with {what}",
            lambda one=one: _rate(one),
            lambda: _rate(plain),
            "rows/s",
            "without",
            repeats,
        )
        for one, what in ((limited, "bandwidths"), (shared, "bandwidths and hosts of four agents"))
    ]


def seconds_of_five_regions() -> float:
    """Return the seconds of a plan of 1,000 agents, 30 steps each, on 250 hosts in five regions."""
    began = time.perf_counter()
    graph = nx.random_regular_graph(8, 1000, seed=0)
    rows = sum(1 for _ in plan(graph, regions(1000), hosts(1000), 30))
    assert rows == 30_000
    return time.perf_counter() - began


def plan(graph: nx.Graph, links: tuple[LinkDelay, ...], of: tuple[Host, ...], num_steps: int) -> Planner:
    """Return a plan on a graph."""
    return Planner(
        neighbors=tuple(tuple(sorted(graph[agent])) for agent in range(len(graph))),
        compute=ComputeTimes(law=Exponential(mean=0.1)),
        links=links,
        hosts=of,
        clusters=(0,) * len(graph),
        barrier=NoBarrier(),
        num_steps=num_steps,
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


def _rate(one: Iterable[Row]) -> float:
    # Of this process: others on the machine have no part in it.
    began = time.process_time()
    rows = sum(1 for _ in one)
    return rows / (time.process_time() - began)
