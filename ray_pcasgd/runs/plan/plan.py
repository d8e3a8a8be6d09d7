"""Plans a run: from settings to everything that it needs, checked before any actor starts."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from ray_pcasgd.agents.participant import LearnerSpec
from ray_pcasgd.agents.reliability import ByStaleness
from ray_pcasgd.base.determinism import configure
from ray_pcasgd.base.doors import is_others
from ray_pcasgd.base.rounds import Rounds
from ray_pcasgd.config import Config
from ray_pcasgd.engines.base import Cluster, Elsewhere, Engine
from ray_pcasgd.engines.local.engine import LocalEngine, LocalSettings
from ray_pcasgd.engines.ray.settings import RaySettings
from ray_pcasgd.records import Event, Row
from ray_pcasgd.rules.adpsgd import ADPSGD
from ray_pcasgd.rules.base import Rule
from ray_pcasgd.rules.prediction import PredictingRule
from ray_pcasgd.rules.server import ServerRule
from ray_pcasgd.runs.pace import is_agent_step
from ray_pcasgd.runs.plan.common import ModelSize, Roster, kind_of, waits_for_directions
from ray_pcasgd.runs.plan.faults import check_faults, check_labels
from ray_pcasgd.runs.plan.fitting import fitting_optimizer
from ray_pcasgd.runs.plan.local_steps import (
    check_local_steps,
    check_overlap,
    check_pairs,
    rounds_of,
    steps_of_workers,
)
from ray_pcasgd.runs.plan.own import check_algorithm, try_out_own
from ray_pcasgd.runs.plan.pairs import check_pair_settings, pair_roster, with_acceleration
from ray_pcasgd.runs.plan.peers import barrier_of, check_changes, peer_roster, with_groups, with_probes
from ray_pcasgd.runs.plan.servers import check_membership_of_workers, check_server_settings, server_roster
from ray_pcasgd.runs.plan.tryout import try_out
from ray_pcasgd.runs.plan.wire import check_wire
from ray_pcasgd.runs.settings.errors import explain, one_line
from ray_pcasgd.runs.settings.loading import SettingsError
from ray_pcasgd.schedule.barrier import Barrier, NoBarrier
from ray_pcasgd.schedule.churn import ChurningPlanner
from ray_pcasgd.schedule.churn_servers import ChurningServerPlanner
from ray_pcasgd.schedule.info import ScheduleInfo
from ray_pcasgd.schedule.membership import Departure, away_times
from ray_pcasgd.schedule.recording import replayable
from ray_pcasgd.schedule.row_log import RowLog
from ray_pcasgd.schedule.scheduler import Recorded, Schedule, waits_for_losses
from ray_pcasgd.schedule.topology import Network
from ray_pcasgd.tasks.ray_stream import StreamedImages
from ray_pcasgd.tasks.task import TaskData


@dataclass(frozen=True)
class Plan:
    """A run that is ready to start."""

    config: Config
    """The settings, with everything filled in that was left to the run."""
    network: Network | None
    """Between peers; ``None`` with a server."""
    clusters: tuple[int, ...]
    data: TaskData
    specs: tuple[LearnerSpec, ...]
    """Of all agents; servers come last."""
    schedule: Schedule
    why_alone: str | None = None
    """Why the model cannot be stepped stacked, if so."""

    @cached_property
    def acting(self) -> Config:
        """The settings as the agents have them, with what fits the optimizer."""
        return fitting_optimizer(self.config)

    @property
    def servers(self) -> range:
        """The numbers of the servers, where there are any."""
        return range(self.config.num_agents, len(self.specs))

    @cached_property
    def rounds(self) -> Rounds:
        """Which mini-batches lie between the versions of the agents, servers excepted."""
        algorithm = self.config.algorithm
        if not isinstance(algorithm, ServerRule):
            return rounds_of(self.config)
        return Rounds(self.config.num_steps, steps_of_workers(self.config, algorithm))

    def progress_at(self, agent: int, version: int) -> int:
        """Return the steps that a version stands for: of a peer its mini-batches, else its number."""
        is_peer = isinstance(self.config.algorithm, Rule)
        return self.rounds.progress(agent, version) if is_peer else version

    def steps_in(self, row: Row) -> int:
        """Return the mini-batches that a row stands for: 0 of servers' rows, and of those that are no step."""
        if not is_agent_step(row, self.servers):
            return 0
        # Workers go on beyond num_steps until their servers have enough, and pairs have versions without a step.
        is_round = isinstance(self.config.algorithm, Rule)
        return self.rounds.steps_in(row.agent, row.step) if is_round else self.rounds.length(row.agent)

    def schedule_info(self, run: str, left: Iterable[int]) -> ScheduleInfo:
        """Return what the schedule's file says of the run, by its name and the agents that have left it."""
        kind = kind_of(self.config.algorithm)
        return ScheduleInfo(
            run=run,
            mode="live" if self.is_live else "planned",
            algorithm=self.config.algorithm.name,
            reading=kind.reading,
            num_agents=self.config.num_agents,
            num_servers=kind.num_servers,
            seed=self.config.seed,
            left=frozenset(left),
        )

    @cached_property
    def departures(self) -> tuple[Departure, ...]:
        """When agents leave, as a planned or a recorded schedule has it, and where they come back."""
        if self.is_live:
            return ()  # its agents say so themselves
        if isinstance(self.schedule, ChurningPlanner | ChurningServerPlanner):
            return self.schedule.departures
        if not isinstance(self.schedule, Recorded) or self.servers:
            return ()
        in_pairs = isinstance(self.config.algorithm, ADPSGD)
        found: list[Departure] = []
        last = dict.fromkeys(range(self.config.num_agents), 0)
        taken = dict.fromkeys(last, 0)
        for row in self.schedule.recorded:
            if row.kind == "rejoined" and not in_pairs:
                found.append(Departure(row.agent, last[row.agent], row.step + 1))
            last[row.agent] = max(last[row.agent], row.step + 1)
            # Of those that average in pairs, not every version is a step of their own.
            taken[row.agent] = taken[row.agent] + (row.kind == "step") if in_pairs else last[row.agent]
        found += [Departure(agent, last[agent], None) for agent in last if taken[agent] < self.rounds.last(agent)]
        return tuple(found)

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a reader of the run should know of its evaluations, in a line each."""
        if not isinstance(self.config.algorithm, Rule):
            return ()
        every, apart = self.config.evaluate_every, self.rounds.evaluated_every(self.config.evaluate_every)
        if every == apart:
            return ()
        return (f"evaluate_every = {every}: evaluations are {apart} steps apart, since rounds have local steps",)

    @property
    def is_live(self) -> bool:
        """Whether agents read what has come, instead of what a schedule names."""
        engine = self.config.engine
        return isinstance(engine, RaySettings) and engine.mode == "live"

    @property
    def pauses(self) -> bool:
        """Whether the run can be left before its end, and taken up from its state."""
        has_states = isinstance(self.config.algorithm, Rule | ServerRule) and not waits_for_losses(self.schedule)
        return isinstance(self.config.engine, LocalSettings) and has_states

    def replayable(self, rows: RowLog) -> tuple[RowLog, list[Event]]:
        """Return the run's rows as they can be executed, and remarks on what was changed."""
        algorithm = self.config.algorithm
        rule = algorithm if isinstance(algorithm, ServerRule) else None
        return replayable(
            rows,
            is_live=self.is_live,
            servers=self.servers,
            expires=rule is not None and bool(rule.gathering.expires or rule.gathering.epoch),
            workers_step=rule is not None and rule.workers_step,
            with_directions=waits_for_directions(self.config),
            flows=isinstance(algorithm, ADPSGD) and algorithm.acceleration is not None,
        )

    @cached_property
    def cluster(self) -> Cluster:
        """The cluster that the run needs, which is there before anything else of it."""
        return cluster_of(self.config.engine)

    def engine(self, folder: str = "") -> Engine:
        """Return the engine that executes the run, whose folder other processes know it by."""
        settings = self.config.engine
        if not isinstance(settings, RaySettings):
            return LocalEngine(settings, self.schedule)
        from ray_pcasgd.engines.live.injection import InjectedDelays
        from ray_pcasgd.engines.ray.engine import RayEngine, Upkeep
        from ray_pcasgd.engines.ray.naming import Identity

        config = self.config
        about: dict[str, Any] = {"mode": settings.mode, "algorithm": config.algorithm.name}
        about |= {"num_steps": config.num_steps, "num_servers": len(self.servers), "clusters": list(self.clusters)}
        about["has_rounds"] = isinstance(config.algorithm, Rule) and not self.rounds.are_single
        identity = Identity(folder, about)
        away = away_times(config.membership, config.num_agents) if self.is_live else ()
        upkeep = Upkeep(config.checkpoint.state_seconds, config.max_failures, away)
        if self.is_live:
            assert config.barrier is not None
            injection = InjectedDelays(config.seed, config.compute, config.links, self.clusters, config.barrier)
            return RayEngine(settings, injection, identity, upkeep, self.cluster)
        return RayEngine(settings, self.schedule, identity, upkeep, self.cluster)

    def elsewhere(self, folder: str, make: Callable[[], Callable[..., Any]]) -> Elsewhere | None:
        """Return a process of the run's cluster that calls what is made there; ``None`` where there is no cluster."""
        if not isinstance(self.config.engine, RaySettings):
            return None
        from ray_pcasgd.engines.ray.elsewhere import RayElsewhere
        from ray_pcasgd.engines.ray.naming import Identity

        return RayElsewhere(Identity(folder), make, self.cluster.agent_options)


def cluster_of(engine: LocalSettings | RaySettings) -> Cluster:
    """Return the cluster that a run needs."""
    if not isinstance(engine, RaySettings):
        return Cluster()
    from ray_pcasgd.engines.ray.cluster import RayCluster

    return RayCluster(engine)


@contextmanager
def joined(cluster: Cluster) -> Iterator[None]:
    """Join a cluster for as long as a run is on it.

    Raises:
        SettingsError: what the settings name cannot be a cluster.
        RunError: it does not start, or does not answer.

    """
    try:
        cluster.join()
    except ValueError as error:
        raise SettingsError(one_line(error)) from None
    try:
        yield
    finally:
        cluster.leave()


def make_plan(config: Config, runs_here: bool = True) -> Plan:
    """Return the plan of a run.

    Args:
        config: The settings.
        runs_here: Whether this process is to execute the run, so that it needs the local engine's GPU. A run for
            another process is tried out on the CPU where this one has no GPU.

    Raises:
        SettingsError: settings do not fit together, or name data that is not there.

    """
    config = with_defaults(config, runs_here)
    try:
        data = with_probes(config.task.load(), config.algorithm, config.task.data)
        check_labels(config, data)
        config = config.model_copy(update={"task": config.task.fitting(data)})
        if isinstance(data.train, StreamedImages) and isinstance(config.engine, LocalSettings):
            raise ValueError("engine.name = 'local': allowed with task.data.streamed is ray")
        # Before the network: a number of agents that is far too large would first make a matrix of its square.
        shards = config.partition.split(data.train, config.num_agents, config.seed)
        config = with_acceleration(with_num_steps(config, data, shards))
        if isinstance(data.train, StreamedImages):
            for agent, shard in enumerate(shards):
                data.train.batches_an_epoch(shard, config.batch_size, agent)
        clusters = cluster_of_each_agent(config)
        config = with_groups(config, clusters)
        acting = fitting_optimizer(config)
        tried = try_out(acting, data, shards, _training(acting))
        roster = _roster(acting, clusters, shards, tried.size)
    except ValidationError as error:
        raise SettingsError("\n".join(explain(error, {}))) from None
    except ValueError as error:
        raise SettingsError(one_line(error)) from None
    return Plan(config, roster.network, roster.clusters, data, roster.specs, roster.schedule, tried.why_alone)


def _roster(config: Config, clusters: tuple[int, ...], shards: Sequence[np.ndarray], size: ModelSize) -> Roster:
    """Return who takes part, as the algorithm's family has it."""
    training, algorithm = _training(config), config.algorithm
    if isinstance(algorithm, ServerRule):
        return server_roster(config, algorithm, training, clusters, shards, size)
    if isinstance(algorithm, ADPSGD):
        return pair_roster(config, training, clusters, shards, size)
    return peer_roster(config, algorithm, training, clusters, shards, size)


def with_defaults(config: Config, runs_here: bool = True) -> Config:
    """Return the settings with what was left to the run filled in.

    These are the barrier, the reliable staleness, whether predictions are bounded, and the units of delays. Whether the
    process has the local engine's GPU is asked where it ``runs_here``.

    Raises:
        SettingsError: a setting has no meaning, or no meaning together with another one.

    """
    barrier: Barrier = config.barrier or NoBarrier()
    try:
        _check_settings(config)
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
    _check_membership(config)
    if live:
        _check_live_network(config)
    engine = config.engine
    if isinstance(engine, RaySettings) and engine.join_later:
        _check_join_later(config, engine)
    if isinstance(engine, LocalSettings) and runs_here:
        _check_device(engine.device)
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


def _check_device(device: str) -> None:
    """Raise ``SettingsError`` where this machine does not have such a GPU."""
    if device == "cpu":
        return
    number = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not number:
        raise SettingsError(f"engine.device = {device!r}: allowed on this machine is 'cpu'; it has no GPU")
    if (torch.device(device).index or 0) >= number:
        there = "'cuda:0', its only GPU" if number == 1 else f"'cuda:0' to 'cuda:{number - 1}', its GPUs"
        raise SettingsError(f"engine.device = {device!r}: allowed on this machine are 'cpu', 'cuda' and {there}")


def _check_live_network(config: Config) -> None:
    """Raise ``SettingsError`` where a live run is given bandwidths."""
    given: list[tuple[str, object]] = [
        (f"links.{place}.bandwidth", link.bandwidth) for place, link in enumerate(config.links) if link.bandwidth
    ]
    for place, host in enumerate(config.hosts):
        given += [(f"hosts.{place}.{name}", value) for name, value in (("up", host.up), ("down", host.down)) if value]
    given += [(f"regions.{name}", list(agents)) for name, agents in config.regions.items()]
    for setting, value in given[:1]:
        raise SettingsError(f"{setting} = {value!r}: allowed in planned runs; a live run's network has its own")


def _check_membership(config: Config) -> None:
    """Raise ``SettingsError`` where agents cannot leave and come back as the settings say."""
    if not config.membership or config.schedule is not None:
        return
    if isinstance(config.algorithm, ServerRule) and config.algorithm.gathering.averages == "latest":
        raise SettingsError(
            f"membership: allowed with gathering.name = {config.algorithm.gathering.name!r} is an empty list; the last "
            "gradient of who leaves would stay in the table, and count in every update"
        )
    if isinstance(config.engine, RaySettings) and config.engine.mode == "live":
        _check_live_membership(config, config.engine)
        return
    algorithm = config.algorithm
    if isinstance(algorithm, ServerRule):
        try:
            check_membership_of_workers(config, algorithm)
        except ValueError as error:
            raise SettingsError(str(error)) from None
        return
    exchange = algorithm.exchange if isinstance(algorithm, Rule) else None
    sends_differences = isinstance(algorithm, Rule) and algorithm.sends_differences
    if exchange is None or exchange.reading != "newest" or exchange.waits_for_partners or sends_differences:
        raise SettingsError(
            f"membership: allowed with algorithm.name = {algorithm.name!r} is an empty list; who leaves and comes back "
            "is planned for workers of a server, and for peers that send each version to all of their neighbors, "
            "as those of pc-asgd do"
        )


def _check_live_membership(config: Config, engine: RaySettings) -> None:
    """Raise ``SettingsError`` where agents cannot leave a live run and come back as the settings say."""
    algorithm = config.algorithm
    num_servers = algorithm.shards if isinstance(algorithm, ServerRule) else 0
    try:
        away = away_times(config.membership, config.num_agents, num_servers)
    except ValueError as error:
        raise SettingsError(str(error)) from None
    if {one.agent for one in away if one.leaves == 0} == set(range(config.num_agents)):
        raise SettingsError("membership: allowed with engine.mode = 'live' is that an agent is there at the start")
    if both := sorted({one.agent for one in away} & set(engine.join_later)):
        raise SettingsError(
            f"engine.join_later = {list(engine.join_later)}: allowed are agents of which membership does not say when "
            f"they are there, as it does of {both[0]}"
        )


def _check_join_later(config: Config, engine: RaySettings) -> None:
    """Raise ``SettingsError`` where the run is not live, or does not have the agents that join later."""
    setting = f"engine.join_later = {list(engine.join_later)}"
    if engine.mode != "live":
        raise SettingsError(f"{setting}: allowed in live runs alone")
    absent = set(engine.join_later)
    if not absent < set(range(config.num_agents)):
        raise SettingsError(f"{setting}: allowed are some of the agents 0 to {config.num_agents - 1}, not all")


def _default_clusters(config: Config) -> int | tuple[tuple[int, ...], ...]:
    """Return the clusters of a run that is given none: its regions, if they hold every agent, or else two."""
    groups = tuple(tuple(agents) for agents in config.regions.values())
    is_whole = sorted(itertools.chain(*groups)) == list(range(config.num_agents))
    return groups if is_whole else min(2, config.num_agents)


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


def _check_settings(config: Config) -> None:
    if isinstance(config.algorithm, ServerRule):
        check_server_settings(config, config.algorithm)
    if isinstance(config.algorithm, ADPSGD):
        check_pair_settings(config)
    else:
        check_algorithm(config.algorithm, config.num_agents)
    check_local_steps(config)
    check_overlap(config)
    check_pairs(config)
    check_wire(config)
    try_out_own(config)
    step_size = fitting_optimizer(config).step_size
    if step_size is not None and (lowest := min(step_size.extremes())) < 0:
        raise ValueError(f"step_size = {lowest:g}: allowed are values from 0 on")
    _check_precision(config)
    _check_servers_gpus(config)
    check_faults(config)
    if config.accumulate > config.batch_size:
        raise ValueError(f"accumulate = {config.accumulate}: allowed are 1 to batch_size = {config.batch_size}")
    kept = config.checkpoint
    metrics = ["loss", *(metric.key for metric in config.task.measured)]
    # What a function of the user's measures is known once it was tried out.
    if kept.score is not None and kept.score not in metrics and not config.task.has_own_figures:
        raise ValueError(f"checkpoint.score = {kept.score!r}: allowed are {', '.join(metrics)}")
    for setting, value in (("score", kept.score), ("num_to_keep", kept.num_to_keep)):
        if value is not None and kept.every_evaluations is None:
            raise ValueError(f"checkpoint.{setting} = {value!r}: allowed with checkpoint.every_evaluations only")


def _check_servers_gpus(config: Config) -> None:
    """Raise ``ValueError`` where GPUs are asked for servers that an algorithm does not have."""
    engine, algorithm = config.engine, config.algorithm
    if isinstance(engine, RaySettings) and engine.gpus_per_server is not None and not isinstance(algorithm, ServerRule):
        raise ValueError(
            f"engine.gpus_per_server = {engine.gpus_per_server:g}: allowed with algorithm.name = {algorithm.name!r}, "
            "which has no servers, is null"
        )


def _check_precision(config: Config) -> None:
    """Raise ``ValueError`` where agents would compute with fp16 on a CPU."""
    if config.precision != "fp16":
        return
    engine = config.engine
    place, value, allowed = (
        ("engine.device", engine.device, "cuda")
        if isinstance(engine, LocalSettings)
        else ("engine.gpus_per_agent", f"{engine.gpus_per_agent:g}", "a number above 0")
    )
    if value in ("cpu", "0"):
        raise ValueError(
            f"precision = 'fp16': allowed on CPUs, as with {place} = {value}, are float32 and bf16; on GPUs, with "
            f"{place} = {allowed}, also fp16"
        )


def _training(config: Config) -> dict[str, Any]:
    """Return what every recipe holds."""
    return {
        "seed": config.seed,
        "num_steps": config.num_steps,
        "batch_size": config.batch_size,
        "optimizer": config.optimizer,
        "step_size": config.step_size,
        "warmup_steps": config.warmup_steps,
        "task": config.task.without_data,
        "device": config.engine.device,
        "evaluate_every": config.evaluate_every,
        "isolate_non_finite": config.on_non_finite_loss == "isolate",
        "mixed_buffers": config.mixed_buffers,
        "gradient_clipping": config.gradient_clipping,
        "accumulate": config.accumulate,
        "precision": config.precision,
        "faults": config.faults,
    }
