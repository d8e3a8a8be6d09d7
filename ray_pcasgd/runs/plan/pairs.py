"""What AD-PSGD needs in addition to other runs between peers: checks, active and passive agents, and a schedule."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import networkx as nx
import numpy as np

from ray_pcasgd.agents.pair import PairSpec
from ray_pcasgd.agents.participant import Training
from ray_pcasgd.config import Config
from ray_pcasgd.engines.local.engine import LocalSettings
from ray_pcasgd.engines.ray.settings import RaySettings
from ray_pcasgd.rules.acid import ACiD, connectivity
from ray_pcasgd.rules.adpsgd import ADPSGD
from ray_pcasgd.runs.plan.common import ModelSize, Roster, check_agents, planned_timing, recorded_rows
from ray_pcasgd.schedule.changing import ChangingTopology
from ray_pcasgd.schedule.info import ScheduleInfo
from ray_pcasgd.schedule.network import Network, build_network
from ray_pcasgd.schedule.plan_pairs import PairPlanner
from ray_pcasgd.schedule.row_log import RowLog
from ray_pcasgd.schedule.scheduler import Schedule
from ray_pcasgd.schedule.topology import Metropolis


class Division(NamedTuple):
    """Who asks whom: every pair has one active and one passive agent."""

    neighbors: tuple[tuple[int, ...], ...]
    """Of each agent those of the other kind, rising."""
    active: frozenset[int]

    @property
    def partners(self) -> tuple[tuple[int, ...], ...]:
        """Whom each agent asks."""
        return tuple(others if i in self.active else () for i, others in enumerate(self.neighbors))


def check_pair_settings(config: Config) -> None:
    """Raise ``ValueError`` where a setting has no meaning for AD-PSGD."""
    reason = "pairs average what both have at that moment"
    for place, link in enumerate(config.links):
        if link.unit == "steps" and config.schedule is None:
            raise ValueError(
                f"links.{place}.unit = 'steps': allowed with ad-psgd is seconds, or a delay such as 10s; {reason}"
            )
    if config.barrier is not None and config.barrier.name != "none":
        raise ValueError(f"barrier.name = {config.barrier.name!r}: allowed with ad-psgd is none; {reason}")
    if isinstance(config.topology, ChangingTopology):
        raise ValueError(
            f"topology.name = {config.topology.name!r}: allowed with ad-psgd is a graph that stays as it is; {reason}"
        )
    if config.mixing != Metropolis():
        raise ValueError(
            f"mixing.name = {config.mixing.name!r}: allowed with ad-psgd is only the default; pairs average halves"
        )
    if config.on_non_finite_loss == "isolate":
        raise ValueError("on_non_finite_loss = 'isolate': allowed with ad-psgd is stop")
    if isinstance(config.engine, LocalSettings) and config.engine.batched == "always":
        raise ValueError("engine.batched = 'always': allowed with ad-psgd are auto and never")


def divide(network: Network, topology: str) -> Division:
    """Return active and passive agents: the two sides of a bipartite graph, else the even and the odd numbers.

    **Choice**: of the graph then remain the edges between even and odd numbers.

    Raises:
        ValueError: these edges leave agents without a path to each other.

    """
    number = len(network.neighbors)
    graph = nx.empty_graph(number)
    graph.add_edges_from((i, k) for i, others in enumerate(network.neighbors) for k in others)
    if nx.is_bipartite(graph):
        color = nx.bipartite.color(graph)
        active = frozenset(i for i in graph if color[i] == color[0])
    else:
        active = frozenset(range(0, number, 2))
        graph.remove_edges_from([(i, k) for i, k in graph.edges if (i in active) == (k in active)])
        if not nx.is_connected(graph):
            raise ValueError(
                f"topology.name = {topology!r}: allowed with ad-psgd are graphs that are bipartite, or connected by "
                "the edges between even and odd numbers, since only active agents ask, and only passive ones answer"
            )
    return Division(tuple(tuple(sorted(graph[i])) for i in range(number)), active)


def with_acceleration(config: Config) -> Config:
    """Return the settings with A2CiD2's filled in, which follow from the graph and from who averages how often.

    **Choice**: an agent that asks does so once in a gradient's time, of all agents, over its own, by the means of
    ``compute``; in live runs, whose machines have a speed of their own, all are taken to be equally fast.

    Raises:
        ValueError: the graph does not fit the run.

    """
    algorithm = config.algorithm
    if not isinstance(algorithm, ADPSGD) or algorithm.acceleration is None:
        return config
    network = build_network(config.topology, config.mixing, config.num_agents, config.seed)
    partners = divide(network, config.topology.name).partners
    is_live = isinstance(config.engine, RaySettings) and config.engine.mode == "live"
    means = [config.compute.mean(agent) for agent in range(config.num_agents)]
    unit = sum(means) / len(means)
    is_known = not is_live and min(means) > 0 and unit < math.inf
    filled = _filled_in(algorithm.acceleration, partners, [unit / mean for mean in means] if is_known else None)
    if is_known and config.schedule is None and filled.gradient_seconds is None:
        filled = filled.model_copy(update={"gradient_seconds": unit})
    return config.model_copy(update={"algorithm": algorithm.model_copy(update={"acceleration": filled})})


def _filled_in(given: ACiD, partners: Sequence[Sequence[int]], paces: Sequence[float] | None) -> ACiD:
    """Return A2CiD2's settings with those of the graph; ``paces``: gradients in a unit of time, not given: 1 each."""
    found = {"mixing_rate": 0.0, "twin_step": 0.5}  # one agent alone never averages
    if len(partners) > 1:
        pace = paces or [1.0] * len(partners)
        rates = {(i, k): pace[i] / len(others) for i, others in enumerate(partners) for k in others}
        constants = connectivity(len(partners), rates)
        found = {"mixing_rate": constants.mixing_rate, "twin_step": constants.twin_step}
    return given.model_copy(update={name: value for name, value in found.items() if getattr(given, name) is None})


def pair_roster(
    config: Config,
    training: Mapping[str, Any],
    clusters: tuple[int, ...],
    shards: Sequence[np.ndarray],
    size: ModelSize,
) -> Roster:
    """Return a run's active and passive agents.

    Raises:
        ValueError: the network or a recorded schedule does not fit the run.

    """
    network = build_network(config.topology, config.mixing, config.num_agents, config.seed)
    check_agents(config, config.num_agents)
    division = divide(network, config.topology.name)
    schedule = _schedule(config, division, clusters, size)
    assert isinstance(config.algorithm, ADPSGD)
    more: dict[str, Any] = {"recipe": Training(**training), "acceleration": config.algorithm.acceleration}
    specs = tuple(
        PairSpec(agent=i, neighbors=others, shard=shards[i], is_active=i in division.active, **more)
        for i, others in enumerate(division.neighbors)
    )
    return Roster(network, clusters, specs, schedule)


def _schedule(config: Config, division: Division, clusters: tuple[int, ...], size: ModelSize) -> Schedule:
    if config.schedule is not None:
        return recorded_rows(config, partial(_fitted, config, division))
    message_bytes = 4 * (size.parameters + size.buffers)
    return PairPlanner(partners=division.partners, message_bytes=message_bytes, **planned_timing(config, clusters))


def _fitted(config: Config, division: Division, rows: RowLog, info: ScheduleInfo) -> RowLog:
    """Return the rows, which are a whole run of pairs: each partner has a row of each averaging.

    Where agents were lost, those that have left for good took fewer steps, and the rows of a lost agent that it did
    not report before are missing.

    Raises:
        ValueError: the schedule is no such run, or not with these agents and steps.

    """
    left = info.left
    steps = Counter(row.agent for row in rows if row.kind == "step" and row.agent not in left)
    lost = left | {row.agent for row in rows if row.kind == "rejoined"}
    is_local = isinstance(config.engine, LocalSettings)
    if lost and not is_local:
        raise ValueError(
            f"engine.name = {config.engine.name!r}: allowed is local with a schedule of ad-psgd in which agents were "
            f"lost, as agent {min(lost)} was"
        )
    agents = {row.agent for row in rows} | left
    if agents != set(range(config.num_agents)):
        raise ValueError(
            f"num_agents = {config.num_agents}: allowed with the schedule is {max(agents, default=-1) + 1}"
        )
    for agent, taken in sorted(steps.items()):
        if taken != config.num_steps and not (agent in lost and taken < config.num_steps):
            raise ValueError(
                f"num_steps = {config.num_steps}: allowed with the schedule is {taken}, what agent {agent} takes in "
                "it; pairs cannot be cut apart"
            )
    met = {(row.agent, row.step): row for row in rows}
    for row in rows:
        at = f"schedule = {config.schedule!r}: agent {row.agent} at step {row.step}"
        if (len(row.reads) > 1 and row.kind != "rejoined") or (row.kind == "passive" and not row.reads):
            raise ValueError(f"{at} reads {len(row.reads)} agents; allowed is one, its partner")
        for read in row.reads:
            if read.neighbor not in division.neighbors[row.agent]:
                raise ValueError(f"{at} averages with agent {read.neighbor}; the topology does not allow that")
            partner = met.get((read.neighbor, read.version))
            if lost:
                continue  # what it did last may be known of its partner alone
            was_given_up = partner is not None and (not partner.reads or info.mode == "live")
            if was_given_up and row.kind == "passive" and is_local:
                continue  # who asked had to reject the answer, or had asked another one when it came
            if partner is None or [r[:2] for r in partner.reads] != [(row.agent, row.step)]:
                raise ValueError(f"{at} averages with agent {read.neighbor}, which has no row of it")
    return rows
