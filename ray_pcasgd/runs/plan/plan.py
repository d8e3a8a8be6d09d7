"""Plans a run: from settings to everything that it needs, checked before any actor starts."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from pydantic import ValidationError

from ray_pcasgd.agents.participant import LearnerSpec
from ray_pcasgd.base.rounds import Rounds
from ray_pcasgd.config import Config
from ray_pcasgd.engines.base import Cluster, Elsewhere, Engine
from ray_pcasgd.engines.local.engine import LocalEngine, LocalSettings
from ray_pcasgd.engines.ray.settings import RaySettings
from ray_pcasgd.records import Event, Row
from ray_pcasgd.rules.adpsgd import ADPSGD
from ray_pcasgd.rules.base import Rule
from ray_pcasgd.rules.server import ServerRule
from ray_pcasgd.runs.pace import is_agent_step
from ray_pcasgd.runs.plan.common import ModelSize, Roster, gathering_of, kind_of, waits_for_directions
from ray_pcasgd.runs.plan.defaults import cluster_of_each_agent, with_defaults, with_num_steps
from ray_pcasgd.runs.plan.faults import check_labels, too_many_attackers
from ray_pcasgd.runs.plan.fitting import fitting_optimizer
from ray_pcasgd.runs.plan.local_steps import (
    rounds_of,
    steps_of_workers,
)
from ray_pcasgd.runs.plan.pairs import pair_roster, with_acceleration
from ray_pcasgd.runs.plan.peers import peer_roster, with_groups, with_probes
from ray_pcasgd.runs.plan.servers import server_roster
from ray_pcasgd.runs.plan.tryout import try_out
from ray_pcasgd.runs.settings.errors import explain, one_line
from ray_pcasgd.runs.settings.loading import SettingsError
from ray_pcasgd.schedule.churn import ChurningPlanner
from ray_pcasgd.schedule.churn_servers import ChurningServerPlanner
from ray_pcasgd.schedule.info import ScheduleInfo
from ray_pcasgd.schedule.membership import Departure, away_times
from ray_pcasgd.schedule.network import Network
from ray_pcasgd.schedule.recording import replayable
from ray_pcasgd.schedule.row_log import RowLog
from ray_pcasgd.schedule.scheduler import Recorded, Schedule, waits_for_losses
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
            gathering=gathering_of(self.config.algorithm),
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
        """What a reader of the run should know of its evaluations and attackers, in a line each."""
        return (*self._on_evaluations(), *too_many_attackers(self.config, self.network))

    def _on_evaluations(self) -> Iterator[str]:
        if not isinstance(self.config.algorithm, Rule):
            return
        every, apart = self.config.evaluate_every, self.rounds.evaluated_every(self.config.evaluate_every)
        if every != apart:
            yield f"evaluate_every = {every}: evaluations are {apart} steps apart, since rounds have local steps"

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
