"""What a run between peers needs: its barrier, its network, and its schedule."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from ray_pcasgd.agents.combining import CombiningSpec
from ray_pcasgd.agents.differing import DifferingSpec
from ray_pcasgd.agents.peer import AgentSpec
from ray_pcasgd.agents.peer_spec import Recipe
from ray_pcasgd.base.imports import import_object
from ray_pcasgd.base.randomness import generator
from ray_pcasgd.config import Config
from ray_pcasgd.engines.ray.settings import RaySettings
from ray_pcasgd.records import Row
from ray_pcasgd.rules.base import DefaultBarrier, Rule
from ray_pcasgd.rules.bridge import Bridge
from ray_pcasgd.rules.exchange import AllNeighbors
from ray_pcasgd.rules.practical import PCASGDPV
from ray_pcasgd.rules.probe_data import CustomProbes, OwnProbes, SharedProbes
from ray_pcasgd.runs.plan.common import ModelSize, Roster, check_agents, planned_timing, recorded_rows
from ray_pcasgd.runs.plan.local_steps import rounds_of
from ray_pcasgd.runs.plan.wire import check_parts
from ray_pcasgd.schedule.barrier import AllBarrier, Barrier, BoundedBarrier, NoBarrier
from ray_pcasgd.schedule.changing import ChangingTopology, Hierarchical
from ray_pcasgd.schedule.churn import ChurningPlanner
from ray_pcasgd.schedule.info import ScheduleInfo
from ray_pcasgd.schedule.membership import away_times
from ray_pcasgd.schedule.network import Network, build_network, build_push_network
from ray_pcasgd.schedule.parquet import check_fits, newest_reads
from ray_pcasgd.schedule.plan_peers import Planner
from ray_pcasgd.schedule.row_log import RowLog
from ray_pcasgd.schedule.scheduler import Recorded, Schedule
from ray_pcasgd.schedule.topology import Metropolis
from ray_pcasgd.tasks.datasets import CustomData, Data
from ray_pcasgd.tasks.map_style import samples_of
from ray_pcasgd.tasks.ray_stream import StreamedImages
from ray_pcasgd.tasks.samples import TaskData
from ray_pcasgd.tasks.trees import form_of, is_pair

_BARRIERS: dict[DefaultBarrier, Barrier] = {
    "none": NoBarrier(),
    "all": AllBarrier(),
    "bounded": BoundedBarrier(staleness=1),
}
_ASYNCHRONOUS = {"d-psgd": "d-asgd", "sgp": "sgp-overlap"}


def barrier_of(config: Config, rule: Rule) -> Barrier:
    """Return a run's barrier, the rule's own unless one is set.

    Raises:
        ValueError: with that barrier or mixing matrix the rule is another algorithm, or does not work.

    """
    allowed = f"allowed with algorithm.name = {config.algorithm.name!r} is"
    if rule.reading == "every" and config.mixing != Metropolis():
        raise ValueError(f"mixing.name = {config.mixing.name!r}: {allowed} only the default; all shares are equal")
    if rule.reading == "every" and config.on_non_finite_loss == "isolate":
        raise ValueError(f"on_non_finite_loss = 'isolate': {allowed} stop; what is pushed to an isolated agent is lost")
    barrier = config.barrier or _BARRIERS[rule.default_barrier]
    if config.schedule is not None:
        return barrier
    if rule.default_barrier == "all" and barrier.name != "all" and not rule.takes_any_barrier:
        asynchronous = _ASYNCHRONOUS.get(config.algorithm.name)
        hint = f" ({asynchronous} is the asynchronous form)" if asynchronous else ""
        raise ValueError(f"barrier.name = {barrier.name!r}: {allowed} all{hint}, or null for its own")
    if rule.reading == "news" and barrier.name != "none":
        raise ValueError(f"barrier.name = {barrier.name!r}: {allowed} none; not every version is sent to all neighbors")
    return barrier


def peer_roster(
    config: Config,
    rule: Rule,
    training: Mapping[str, Any],
    clusters: tuple[int, ...],
    shards: Sequence[np.ndarray],
    size: ModelSize,
) -> Roster:
    """Return a run's peers.

    Raises:
        ValueError: the network or a recorded schedule does not fit the run.

    """
    if rule.reading == "every":
        network = build_push_network(config.topology, config.num_agents, config.seed)
    else:
        network = build_network(config.topology, config.mixing, config.num_agents, config.seed)
    check_agents(config, config.num_agents)
    _check_attackers(rule, network, config.topology.name)
    steps = rounds_of(config).local_steps
    recipe = Recipe(
        **training,
        rule=_without_data(rule),
        reliability=config.reliability,
        clusters=clusters,
        local_steps=steps,
        wire=config.wire,
        combines_first=config.overlap is False,
        in_phases=network.exchange,
    )
    check_parts(config.wire.fragments, size.parameters)
    message_bytes = recipe.message_bytes(size.parameters, size.buffers)
    schedule = _schedule(config, rule, network, clusters, message_bytes)
    recipe = replace(recipe, publishes_whole=recipe.has_fragments and _has_returns(config, schedule))
    borrowed = _borrowed(rule, shards, config.seed)
    specs = tuple(_spec(recipe, network, agent, shards, borrowed) for agent in range(config.num_agents))
    return Roster(network, clusters, specs, schedule)


def with_groups(config: Config, clusters: tuple[int, ...]) -> Config:
    """Return the settings with the clusters as the groups of a hierarchical topology, where none are given."""
    topology = config.topology
    if not isinstance(topology, Hierarchical):
        return config
    rounds = rounds_of(config)
    versions = max(rounds.last(agent) for agent in range(config.num_agents))
    if (own := topology.inside) >= versions > 1:
        raise ValueError(
            f"topology.inside = {own}: allowed with num_steps = {config.num_steps} are 1 to {versions - 1}, so that "
            "groups exchange anything"
        )
    if topology.groups is not None:
        return config
    groups = tuple(tuple(i for i, own in enumerate(clusters) if own == c) for c in sorted(set(clusters)))
    if len(groups) < 2 <= config.num_agents:
        told = [list(group) for group in groups]
        raise ValueError(f"clusters = {told}: is one group; allowed with topology.name = 'hierarchical' are several")
    return config.model_copy(update={"topology": topology.model_copy(update={"groups": groups})})


def check_changes(config: Config, rule: Rule) -> None:
    """Raise ``ValueError`` where a graph that changes has no meaning for a rule, or with what else a run has."""
    if not isinstance(config.topology, ChangingTopology):
        return
    setting, name = f"topology.name = {config.topology.name!r}", config.algorithm.name
    plain = isinstance(rule.exchange, AllNeighbors) and rule.reading == "newest" and not rule.corrects_gradients
    if not plain or rule.needs_directions or rule.needs_drift or rule.sends_differences:
        raise ValueError(
            f"{setting}: allowed with algorithm.name = {name!r} is a graph that stays as it is; those that change are "
            "for rules that average what they read, such as d-psgd, d-asgd, c-asgd, slowmo and gasloc"
        )
    if config.membership:
        raise ValueError(f"{setting}: allowed with membership is a graph that stays as it is")


def _check_attackers(rule: Rule, network: Network, topology: str) -> None:
    """Raise ``ValueError`` where an agent has fewer neighbors than a screen needs to stand that many attackers."""
    is_one_alone = len(network.neighbors) == 1
    if not isinstance(rule, Bridge) or (is_one_alone and not rule.attackers):
        return
    needed = rule.screen.least(rule.attackers, center_votes=True)
    reads = network.exchange.read if network.exchange else (network.neighbors,)
    has, agent = min((len(of_agent[k]), k) for of_agent in reads for k in range(len(of_agent)))
    if has < needed:
        most = max((b for b in range(rule.attackers) if rule.screen.least(b, center_votes=True) <= has), default=None)
        allowed = f"are 0 to {most}" if most else "is 0" if most == 0 else "is none"
        raise ValueError(
            f"algorithm.attackers = {rule.attackers}: allowed with algorithm.screen.name = {rule.screen.name!r} and "
            f"topology.name = {topology!r} {allowed}; agent {agent} has {has} of the {needed} neighbors that it takes"
        )


def _schedule(config: Config, rule: Rule, network: Network, clusters: tuple[int, ...], message_bytes: int) -> Schedule:
    if config.schedule is not None:
        return recorded_rows(config, partial(_fitted, config, rule, network))
    assert config.barrier is not None
    timing = planned_timing(config, clusters)
    timing |= {
        "local_steps": rounds_of(config).local_steps,
        "combines_first": config.overlap is False,
        "message_bytes": message_bytes,
    }
    timing |= {"neighbors": network.neighbors, "barrier": config.barrier, "exchange": network.exchange or rule.exchange}
    away = away_times(config.membership, config.num_agents)
    return ChurningPlanner(**timing, away=away) if away else Planner(**timing)


def _has_returns(config: Config, schedule: Schedule) -> bool:
    """Return whether some row of a schedule is that of an agent which comes in or back; in live runs none is known."""
    if isinstance(config.engine, RaySettings) and config.engine.mode == "live":
        return False
    if isinstance(schedule, Recorded):
        return any(row.kind == "rejoined" for row in schedule.recorded)
    return any(away.returns < math.inf for one in config.membership for away in one.away)


def _fitted(config: Config, rule: Rule, network: Network, rows: RowLog, info: ScheduleInfo) -> Iterable[Row]:
    """Return the rows that the run executes.

    Raises:
        ValueError: the rule reads otherwise, or the schedule does not fit the network or the number of steps.

    """
    if rule.reading != info.reading and "every" in (rule.reading, info.reading):
        if rule.reading == "every":
            raise ValueError(
                f"schedule = {config.schedule!r}: its agents may read a version twice, or never; allowed with "
                f"algorithm.name = {config.algorithm.name!r} are schedules of sgp and sgp-overlap"
            )
        rows = RowLog(newest_reads(rows))
    rounds = rounds_of(config)
    check_fits(rows, network.neighbors, rounds, info.left)
    is_as_long = all(steps.end <= rounds.last(agent) for agent, steps in rows.steps.items())
    taken = rows if is_as_long else RowLog(row for row in rows if row.step < rounds.last(row.agent))
    if rule.sends_differences:
        _check_never_back(config, taken)
    if rule.reading != "every":
        return taken
    # The last version is not passed on; but an agent may come back as the mean of such versions.
    return (
        row
        if row.kind == "rejoined"
        else row._replace(reads=tuple(r for r in row.reads if r.version < rounds.last(r.neighbor)))
        for row in taken
    )


def _check_never_back(config: Config, rows: RowLog) -> None:
    """Raise ``ValueError`` where a row reads an older version of a neighbor than its agent has read before.

    Who adds up differences has the newest one alone. Versions that no row reads are no matter: they come all the same.
    """
    newest: dict[tuple[int, int], int] = {}
    for row in rows.by_agent():
        for read in row.reads:
            link = row.agent, read.neighbor
            if read.version < newest.get(link, 0):
                raise ValueError(
                    f"schedule = {config.schedule!r}: agent {row.agent} reads version {read.version} of agent "
                    f"{read.neighbor} at step {row.step}, and a later one before; allowed with algorithm.name = "
                    f"{config.algorithm.name!r}, which adds up differences, are reads that never go back"
                )
            newest[link] = read.version


def _without_data(rule: Rule) -> Rule:
    """Return the rule with no data set of the user's own, which the loaded data have with them."""
    if isinstance(rule, PCASGDPV) and isinstance(rule.probe_data, CustomProbes):
        return rule.model_copy(update={"probe_data": OwnProbes()})
    return rule


def _borrowed(rule: Rule, shards: Sequence[np.ndarray], seed: int) -> np.ndarray | None:
    """Return the indices of the samples that all agents probe on, where each shard lends some."""
    if not (isinstance(rule, PCASGDPV) and isinstance(rule.probe_data, SharedProbes)):
        return None
    count = rule.probe_data.samples_per_agent
    lent = [generator(seed, "probe data", agent).permutation(shard)[:count] for agent, shard in enumerate(shards)]
    return np.unique(np.concatenate(lent))


def with_probes(data: TaskData, rule: object, of: Data) -> TaskData:
    """Return the data with the user's own samples to probe on, where the rule has them.

    Raises:
        ValueError: they are no map-style data set, or other samples than those that are trained on.

    """
    if not isinstance(rule, PCASGDPV) or isinstance(rule.probe_data, OwnProbes):
        return data
    if isinstance(rule.probe_data, SharedProbes):
        if isinstance(data.train, StreamedImages):
            raise ValueError("algorithm.probe_data = 'shared': allowed with task.data.streamed are own and custom")
        return data
    place = "algorithm.probe_data.dataset"
    collate = import_object(of.collate) if isinstance(of, CustomData) else None
    probes = samples_of(place, rule.probe_data.dataset, in_memory=True, collate=collate).samples
    own, others = (part.take([0]) for part in (probes, data.train))
    if not (is_pair(own) and is_pair(others)):
        if form_of(own) != form_of(others):
            raise ValueError(
                f"{place}: its batches are {form_of(own)}; allowed are those of the training data, {form_of(others)}"
            )
        return data._replace(probes=probes)
    for one, other, what in zip(own, others, ("inputs", "targets"), strict=True):
        if (one.shape, one.dtype) != (other.shape, other.dtype):
            given, allowed = (f"{tuple(part.shape[1:])} of {part.dtype}" for part in (one, other))
            raise ValueError(f"{place}: its {what} are {given}; allowed are those of the training data, {allowed}")
    return data._replace(probes=probes)


def _spec(
    recipe: Recipe, network: Network, agent: int, shards: Sequence[np.ndarray], borrowed: np.ndarray | None
) -> AgentSpec:
    own, weights = network.row(agent)
    neighbors = network.neighbors[agent]
    kind = CombiningSpec if recipe.combines_first else AgentSpec
    if recipe.rule.sends_differences:
        kind = DifferingSpec
    return kind(
        agent=agent,
        recipe=recipe,
        neighbors=neighbors,
        mixing=weights,
        own_mixing=own,
        samples=tuple(len(shards[k]) for k in neighbors),
        out_neighbors=network.readers(agent),
        phases=network.rows(agent),
        shard=shards[agent],
        borrowed=borrowed,
    )
