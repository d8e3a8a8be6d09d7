"""Fills in what was left to the run."""

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from ray_pcasgd.agents.reliability import ByStaleness
from ray_pcasgd.base.determinism import configure
from ray_pcasgd.base.doors import is_others
from ray_pcasgd.config import Config
from ray_pcasgd.engines.local.engine import LocalSettings
from ray_pcasgd.engines.ray.settings import RaySettings
from ray_pcasgd.rules.adpsgd import ADPSGD
from ray_pcasgd.rules.base import Rule
from ray_pcasgd.rules.prediction import PredictingRule
from ray_pcasgd.runs.plan.checks import (
    check_device,
    check_join_later,
    check_live_network,
    check_membership,
    check_settings,
)
from ray_pcasgd.runs.plan.peers import barrier_of, check_changes
from ray_pcasgd.runs.settings.loading import SettingsError
from ray_pcasgd.schedule.barrier import Barrier, NoBarrier
from ray_pcasgd.tasks.ray_stream import StreamedImages
from ray_pcasgd.tasks.task import TaskData


def with_defaults(config: Config, runs_here: bool = True) -> Config:
    """Return the settings with what was left to the run filled in.

    These are the barrier, the reliable staleness, whether predictions are bounded, and the units of delays. Whether the
    process has the local engine's GPU is asked where it ``runs_here``.

    Raises:
        SettingsError: a setting has no meaning, or no meaning together with another one.

    """
    barrier: Barrier = config.barrier or NoBarrier()
    try:
        check_settings(config)
        if isinstance(config.algorithm, Rule):
            barrier = barrier_of(config, config.algorithm)
            check_changes(config, config.algorithm)
    except ValueError as error:
        raise SettingsError(str(error)) from None
    live = isinstance(config.engine, RaySettings) and config.engine.mode == "live"
    if live and config.schedule is not None:
        raise SettingsError(
            "schedule: allowed with engine.mode = 'live' is null; a recorded schedule is replayed by planned runs"
        )
    check_membership(config)
    if live:
        check_live_network(config)
    engine = config.engine
    if isinstance(engine, RaySettings) and engine.join_later:
        check_join_later(config, engine)
    if isinstance(engine, LocalSettings) and runs_here:
        check_device(engine.device)
    configure(engine.device)
    reliability = config.reliability
    if isinstance(reliability, ByStaleness) and reliability.staleness is None:
        reliability = ByStaleness(staleness=1 if live else 0)
    algorithm = config.algorithm
    # A class of one's own may ask for what the bound measures, or not: it is left as it is.
    if isinstance(algorithm, PredictingRule) and _may_be_bounded(algorithm):
        algorithm = algorithm.model_copy(update={"bounded": live})
    # Pairs that average, or wait for each other, have no steps by which one could be late.
    in_pairs = isinstance(algorithm, ADPSGD) or (isinstance(algorithm, Rule) and algorithm.meets_in_pairs)
    unit = "seconds" if in_pairs else "steps"
    links = tuple(
        link if link.unit or link.delay is None else link.model_copy(update={"unit": unit}) for link in config.links
    )
    overlap = not algorithm.combines_first if isinstance(algorithm, Rule) and config.overlap is None else config.overlap
    filled_in = {
        "algorithm": algorithm,
        "barrier": barrier,
        "reliability": reliability,
        "links": links,
        "overlap": overlap,
    }
    return config.model_copy(update=filled_in)


def _may_be_bounded(rule: PredictingRule) -> bool:
    """Return whether a rule predicts, and it is left to the run whether its predictions are bounded."""
    return rule.predicts and rule.bounded is None and not is_others(rule)


def with_num_steps(config: Config, data: TaskData, shards: Sequence[np.ndarray]) -> Config:
    """Return the settings with ``num_steps`` in place of ``num_epochs``."""
    if config.num_epochs is None:
        return config
    train = data.train
    rows = train.row_groups if isinstance(train, StreamedImages) else None
    sizes = [len(shard) if rows is None else sum(rows[int(group)].rows for group in shard) for shard in shards]
    # The number as it is written, since 0.1 in binary is more than that, and would be a step more.
    steps = math.ceil(Fraction(repr(config.num_epochs)) * max(sizes) / config.batch_size)
    return config.model_copy(update={"num_steps": steps, "num_epochs": None})


def cluster_of_each_agent(config: Config) -> tuple[int, ...]:
    """Return the number of each agent's cluster.

    Raises:
        ValueError: the clusters do not hold every agent once.

    """
    clusters = _default_clusters(config) if config.clusters is None else config.clusters
    if isinstance(clusters, int):
        if not 1 <= clusters <= config.num_agents:
            raise ValueError(f"clusters = {clusters}: allowed are 1 to num_agents = {config.num_agents}")
        groups = [part.tolist() for part in np.array_split(np.arange(config.num_agents), clusters)]
    else:
        groups = [list(group) for group in clusters]
    if sorted(agent for group in groups for agent in group) != list(range(config.num_agents)):
        raise ValueError(
            f"clusters = {groups}: allowed are groups that hold each agent 0 to {config.num_agents - 1} once"
        )
    number = {agent: place for place, group in enumerate(groups) for agent in group}
    return tuple(number[agent] for agent in range(config.num_agents))


def _default_clusters(config: Config) -> int | tuple[tuple[int, ...], ...]:
    """Return the clusters of a run that is given none: its regions, if they hold every agent, or else two."""
    groups = tuple(tuple(agents) for agents in config.regions.values())
    is_whole = sorted(itertools.chain(*groups)) == list(range(config.num_agents))
    return groups if is_whole else min(2, config.num_agents)
