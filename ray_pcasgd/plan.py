"""From settings to everything that a run needs, checked before any actor starts."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from ray_pcasgd.agent import AgentSpec, Recipe
from ray_pcasgd.config import Config
from ray_pcasgd.engines.base import Engine
from ray_pcasgd.engines.local import LocalEngine, LocalSettings
from ray_pcasgd.engines.ray.settings import RaySettings
from ray_pcasgd.explanation import explain, one_line
from ray_pcasgd.learner import LearnerSpec, Training
from ray_pcasgd.loading import SettingsError
from ray_pcasgd.pair_plan import check_pair_settings, divide, pair_schedule
from ray_pcasgd.pairs import ADPSGD, PairSpec
from ray_pcasgd.reliability import Measured
from ray_pcasgd.replica import Replica
from ray_pcasgd.rules.base import DefaultBarrier, Rule
from ray_pcasgd.schedule.barrier import AllBarrier, Barrier, BoundedBarrier, NoBarrier
from ray_pcasgd.schedule.planner import Planner
from ray_pcasgd.schedule.scheduler import Recorded, Schedule
from ray_pcasgd.schedule.trace import check_fits, in_causal_order, newest_reads, read_rows
from ray_pcasgd.server import ServerRecipe, ServerSpec, WorkerSpec
from ray_pcasgd.server_plan import check_family, check_server_settings, server_schedule
from ray_pcasgd.server_rules import ServerRule
from ray_pcasgd.tasks.task import Task, TaskData
from ray_pcasgd.timing import check_timing
from ray_pcasgd.topology import Metropolis, Network, build_network, build_push_network


@dataclass(frozen=True)
class Plan:
    """A run that is ready to start."""

    config: Config
    """The settings, with everything filled in that was left to the run."""
    network: Network | None
    """Between peers; nothing beside a server."""
    clusters: tuple[int, ...]
    data: TaskData
    specs: tuple[LearnerSpec, ...]
    """Of all agents; servers come last."""
    schedule: Schedule

    @property
    def servers(self) -> range:
        """The numbers of the servers, where there are any."""
        return range(self.config.num_agents, len(self.specs))

    @property
    def reading(self) -> str:
        """What rows read, for the schedule's metadata: as the rule says, ``pairs``, or nothing beside servers."""
        algorithm = self.config.algorithm
        return algorithm.reading if isinstance(algorithm, Rule) else "pairs" if isinstance(algorithm, ADPSGD) else ""

    @cached_property
    def last_steps(self) -> dict[int, int]:
        """The last steps of agents that leave a recorded schedule before its end, by agent; -1 if they take none."""
        if not isinstance(self.schedule, Recorded) or not isinstance(self.config.algorithm, Rule):
            return {}
        last = dict.fromkeys(range(self.config.num_agents), -1)
        for row in self.schedule.recorded:
            last[row.agent] = max(last[row.agent], row.step)
        return {agent: step for agent, step in last.items() if step < self.config.num_steps - 1}

    @property
    def is_live(self) -> bool:
        """Whether agents read what has come, instead of what a schedule names."""
        engine = self.config.engine
        return isinstance(engine, RaySettings) and engine.mode == "live"

    def engine(self) -> Engine:
        """Return the engine that executes the run."""
        settings = self.config.engine
        if not isinstance(settings, RaySettings):
            return LocalEngine(settings, self.schedule)
        from ray_pcasgd.engines.ray.engine import RayEngine
        from ray_pcasgd.engines.ray.injection import Injection

        if self.is_live:
            config = self.config
            assert config.barrier is not None
            injection = Injection(config.seed, config.compute, config.links, self.clusters, config.barrier)
            return RayEngine(settings, injection)
        return RayEngine(settings, self.schedule)


def make_plan(config: Config) -> Plan:
    """Return the plan of a run.

    Raises:
        SettingsError: settings do not fit together, or name data that is not there.

    """
    config = resolve(config)
    try:
        data = config.task.load()
        # Before the network: a number of agents that is far too large would first make a matrix of its square.
        shards = config.partition.split(data.train, config.num_agents, config.seed)
        clusters = cluster_of_each_agent(config)
        _try_out(config.task, data, config.seed)
        if isinstance(config.algorithm, ServerRule):
            return _with_servers(config, config.algorithm, clusters, data, shards)
        if isinstance(config.algorithm, ADPSGD):
            return _in_pairs(config, clusters, data, shards)
        return _between_peers(config, config.algorithm, clusters, data, shards)
    except ValidationError as error:
        raise SettingsError("\n".join(explain(error, {}))) from None
    except ValueError as error:
        raise SettingsError(one_line(error)) from None


def _between_peers(
    config: Config, rule: Rule, clusters: tuple[int, ...], data: TaskData, shards: Sequence[np.ndarray]
) -> Plan:
    if rule.reading == "every":
        network = build_push_network(config.topology, config.num_agents, config.seed)
    else:
        network = build_network(config.topology, config.mixing, config.num_agents, config.seed)
    check_timing(config.compute, config.links, config.num_agents)
    schedule = _schedule(config, rule, network, clusters)
    recipe = Recipe(**_shared(config), rule=rule, reliability=config.reliability, clusters=clusters)
    specs = tuple(_spec(recipe, network, agent, shards) for agent in range(config.num_agents))
    return Plan(config, network, clusters, data, specs, schedule)


def _in_pairs(config: Config, clusters: tuple[int, ...], data: TaskData, shards: Sequence[np.ndarray]) -> Plan:
    network = build_network(config.topology, config.mixing, config.num_agents, config.seed)
    check_timing(config.compute, config.links, config.num_agents)
    division = divide(network, config.topology.name)
    schedule = pair_schedule(config, division, clusters)
    recipe = Training(**_shared(config))
    specs = tuple(
        PairSpec(agent=i, recipe=recipe, neighbors=others, shard=shards[i], is_active=i in division.active)
        for i, others in enumerate(division.neighbors)
    )
    return Plan(config, network, clusters, data, specs, schedule)


def _with_servers(
    config: Config, rule: ServerRule, clusters: tuple[int, ...], data: TaskData, shards: Sequence[np.ndarray]
) -> Plan:
    clusters = (*clusters, *[clusters[0]] * rule.shards)
    check_timing(config.compute, config.links, len(clusters))
    schedule = server_schedule(config, rule, clusters)
    recipe = ServerRecipe(**_shared(config), rule=rule, num_workers=config.num_agents)
    workers, servers = (tuple(range(config.num_agents)), tuple(range(config.num_agents, len(clusters))))
    specs = (
        *(WorkerSpec(agent=k, recipe=recipe, neighbors=servers, shard=shards[k]) for k in workers),
        *(ServerSpec(agent=s, recipe=recipe, neighbors=workers, shard=shards[0][:0]) for s in servers),
    )
    return Plan(config, None, clusters, data, specs, schedule)


def resolve(config: Config) -> Config:
    """Return the settings with what was left to the run filled in: barrier and reliable staleness.

    Raises:
        SettingsError: a setting has no meaning, or none beside another one.

    """
    try:
        _check_settings(config)
    except ValueError as error:
        raise SettingsError(str(error)) from None
    asked = config.algorithm.default_barrier if isinstance(config.algorithm, Rule) else "none"
    barrier = config.barrier or _BARRIERS[asked]
    if asked == "all" and barrier.name != "all" and config.schedule is None:
        asynchronous = _ASYNCHRONOUS.get(config.algorithm.name)
        raise SettingsError(
            f"barrier.name = {barrier.name!r}: allowed beside algorithm.name = {config.algorithm.name!r} is all"
            + (f" ({asynchronous} is the asynchronous form)" if asynchronous else "")
        )
    reading = config.algorithm.reading if isinstance(config.algorithm, Rule) else "newest"
    if reading == "every" and config.mixing != Metropolis():
        raise SettingsError(
            f"mixing.name = {config.mixing.name!r}: allowed beside algorithm.name = {config.algorithm.name!r} is none; "
            "everyone keeps and sends equal shares"
        )
    if reading == "news" and barrier.name != "none" and config.schedule is None:
        raise SettingsError(
            f"barrier.name = {barrier.name!r}: allowed beside algorithm.name = {config.algorithm.name!r} is none; not "
            "every version is sent to everybody"
        )
    live = isinstance(config.engine, RaySettings) and config.engine.mode == "live"
    if live and config.schedule is not None:
        raise SettingsError(
            "schedule: allowed beside engine.mode = 'live' is none; a recorded schedule is replayed planned"
        )
    engine = config.engine
    if isinstance(engine, LocalSettings) and engine.device != "cpu" and not torch.cuda.is_available():
        raise SettingsError(f"engine.device = {engine.device!r}: allowed on this machine is 'cpu'; it has no GPU")
    reliability = config.reliability
    if isinstance(reliability, Measured) and reliability.staleness is None:
        reliability = Measured(staleness=1 if live else 0)
    return config.model_copy(update={"barrier": barrier, "reliability": reliability})


_BARRIERS: dict[DefaultBarrier, Barrier] = {
    "none": NoBarrier(),
    "all": AllBarrier(),
    "bounded": BoundedBarrier(staleness=1),
}
_ASYNCHRONOUS = {"d-psgd": "d-asgd", "sgp": "sgp-overlap"}


def cluster_of_each_agent(config: Config) -> tuple[int, ...]:
    """Return the number of each agent's cluster.

    Raises:
        ValueError: the clusters do not hold every agent once.

    """
    clusters = config.clusters
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


def _check_settings(config: Config) -> None:
    if isinstance(config.algorithm, ServerRule):
        check_server_settings(config, config.algorithm)
    if isinstance(config.algorithm, ADPSGD):
        check_pair_settings(config)
    else:
        try:
            config.algorithm.check(config.num_agents)
        except ValueError as error:
            raise ValueError(f"algorithm.{error}") from None
    lowest = min(config.step_size.extremes())
    if lowest < 0:
        raise ValueError(f"step_size = {lowest:g}: allowed are values from 0 on")
    kept = config.checkpoint
    metrics = ["loss", *(metric.key for metric in config.task.metrics)]
    if kept.score is not None and kept.score not in metrics:
        raise ValueError(f"checkpoint.score = {kept.score!r}: allowed are {', '.join(metrics)}")
    for setting, value in (("score", kept.score), ("num_to_keep", kept.num_to_keep)):
        if value is not None and kept.every_evaluations is None:
            raise ValueError(f"checkpoint.{setting} = {value!r}: allowed beside checkpoint.every_evaluations only")


def _try_out(task: Task, data: TaskData, seed: int) -> None:
    """Raise ``ValueError`` where model, loss or metrics do not take the data."""
    replica = Replica(task.build_model(data, seed), torch.device("cpu"))
    replica.module.eval()
    inputs, targets = data.train.take(range(min(2, len(data.train))))
    with torch.random.fork_rng(devices=[]), _naming(f"task.model.name = {task.model.name!r}"):
        outputs = replica.module(data.normalization(inputs))
    with _naming(f"task.loss.name = {task.loss.name!r}"):
        loss = task.loss(outputs, targets)
        if loss.ndim or not loss.requires_grad:
            raise ValueError(f"{loss}; allowed is a scalar that depends on the model's parameters")
    for metric in task.metrics:
        with _naming(f"task.metrics: {metric.key}"):
            metric(outputs, targets).item()


@contextmanager
def _naming(setting: str) -> Iterator[None]:
    """Name the setting in whatever its object raises, which may be the user's own code."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{setting}: fails on the first samples ({error})") from error


def _schedule(config: Config, rule: Rule, network: Network, clusters: tuple[int, ...]) -> Schedule:
    if config.schedule is None:
        assert config.barrier is not None
        return Planner(
            neighbors=network.neighbors,
            num_steps=config.num_steps,
            compute=config.compute,
            links=config.links,
            clusters=clusters,
            barrier=config.barrier,
            seed=config.seed,
            rule=rule,
        )
    path = Path(config.schedule)
    if not path.is_file():
        raise ValueError(f"schedule = {config.schedule!r}: no such file; allowed is the schedule.parquet of a run")
    rows, metadata = read_rows(path)
    check_family(config.schedule, metadata, 0)
    if metadata.get("reading") == "pairs":
        raise ValueError(f"schedule = {config.schedule!r}: is one of ad-psgd; allowed is it beside ad-psgd alone")
    left = frozenset(map(int, metadata.get("left", "").split()))
    if rule.reading != metadata.get("reading") and "every" in (rule.reading, metadata.get("reading")):
        if rule.reading == "every":
            raise ValueError(
                f"schedule = {config.schedule!r}: its agents may read a version twice, or never; allowed beside "
                f"algorithm.name = {config.algorithm.name!r} are schedules of sgp and sgp-overlap"
            )
        rows = newest_reads(rows)
    check_fits(rows, network.neighbors, config.num_steps, left)
    # Cut first: a direction that only a row beyond the cut would compute must not be waited for.
    rows = [row for row in rows if row.step < config.num_steps]
    if rule.reading == "every":
        rows = [row._replace(reads=tuple(r for r in row.reads if r.version < config.num_steps)) for row in rows]
    return Recorded(tuple(in_causal_order(rows)))


def _shared(config: Config) -> dict[str, Any]:
    """Return what every recipe holds."""
    engine = config.engine
    on_gpu = isinstance(engine, RaySettings) and engine.gpus_per_agent > 0
    return {
        "seed": config.seed,
        "num_steps": config.num_steps,
        "batch_size": config.batch_size,
        "optimizer": config.optimizer,
        "step_size": config.step_size,
        "warmup_steps": config.warmup_steps,
        "task": config.task,
        "device": engine.device if isinstance(engine, LocalSettings) else "cuda" if on_gpu else "cpu",
        "evaluate_every": config.evaluate_every,
        "isolate_non_finite": config.on_non_finite_loss == "isolate",
    }


def _spec(recipe: Recipe, network: Network, agent: int, shards: Sequence[np.ndarray]) -> AgentSpec:
    own, weights = network.row(agent)
    neighbors = network.neighbors[agent]
    return AgentSpec(
        agent=agent,
        recipe=recipe,
        neighbors=neighbors,
        mixing=weights,
        own_mixing=own,
        samples=tuple(len(shards[k]) for k in neighbors),
        out_neighbors=network.readers(agent),
        shard=shards[agent],
    )
