"""The ray engine: starts the actors, streams their reports, and takes everything down again."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import ray
import torch
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.placement_group import remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ray_pcasgd.agent import AgentSpec
from ray_pcasgd.engines.base import RunError
from ray_pcasgd.engines.ray.agent_actor import PlannedAgentActor
from ray_pcasgd.engines.ray.injection import Injection
from ray_pcasgd.engines.ray.live import LiveAgentActor
from ray_pcasgd.engines.ray.pair_actors import LivePairActor, PlannedPairActor
from ray_pcasgd.engines.ray.placement import Reservation, connect, reserve
from ray_pcasgd.engines.ray.scheduler_actor import SchedulerActor
from ray_pcasgd.engines.ray.server_actors import PlannedServerActor, PlannedWorkerActor
from ray_pcasgd.engines.ray.server_live import LiveServerActor, LiveWorkerActor
from ray_pcasgd.engines.ray.settings import RaySettings
from ray_pcasgd.engines.ray.shell import Driving
from ray_pcasgd.learner import LearnerSpec, NonFiniteLossError
from ray_pcasgd.pairs import PairSpec
from ray_pcasgd.records import Event, Snapshot, StepReport
from ray_pcasgd.schedule.scheduler import Recorded, Schedule, waits_for_losses
from ray_pcasgd.server import ServerSpec, WorkerSpec
from ray_pcasgd.tasks.task import TaskData

POLL_SECONDS = 0.1
"""How often the driver asks for reports while agents train."""

_remote: Any = ray.remote  # its stubs know no concurrency groups
_GROUPS = {"train": 1, "mail": 1}
SchedulerRemote = _remote(num_cpus=0)(SchedulerActor)
PLANNED: dict[type[LearnerSpec], Any] = {
    AgentSpec: _remote(concurrency_groups=_GROUPS)(PlannedAgentActor),
    WorkerSpec: _remote(concurrency_groups=_GROUPS)(PlannedWorkerActor),
    ServerSpec: _remote(concurrency_groups=_GROUPS)(PlannedServerActor),
    PairSpec: _remote(concurrency_groups=_GROUPS)(PlannedPairActor),
}
LIVE: dict[type[LearnerSpec], Any] = {
    AgentSpec: _remote(concurrency_groups=_GROUPS)(LiveAgentActor),
    WorkerSpec: _remote(concurrency_groups=_GROUPS)(LiveWorkerActor),
    ServerSpec: _remote(concurrency_groups=_GROUPS)(LiveServerActor),
    PairSpec: _remote(concurrency_groups=_GROUPS)(LivePairActor),
}


class RayEngine:
    """Executes agents as actors: planned rows in planned mode, whatever has come in live mode."""

    def __init__(self, settings: RaySettings, schedule: Schedule | Injection) -> None:
        self._settings = settings
        self._schedule = schedule

    def run(self, specs: Sequence[LearnerSpec], data: TaskData) -> Iterator[StepReport | Event]:
        """Execute all agents; see ``Engine.run``."""
        started_cluster = connect(self._settings)
        try:
            reserved = reserve(self._settings, len(specs))
            try:
                run = _Run(self._settings, self._schedule, specs, data, reserved)
                try:
                    yield from run.reports()
                finally:
                    run.close()
            finally:
                if reserved.is_own:
                    remove_placement_group(reserved.group)
        finally:
            if started_cluster:
                ray.shutdown()


class _Run:
    def __init__(
        self,
        settings: RaySettings,
        schedule: Schedule | Injection,
        specs: Sequence[LearnerSpec],
        data: TaskData,
        reserved: Reservation,
    ) -> None:
        live = isinstance(schedule, Injection)
        self.is_live = live
        planned = Recorded() if isinstance(schedule, Injection) else schedule
        # Where rows depend on losses, each agent may wait in it for its rows, and still it takes reports.
        threads = len(specs) + 2 if waits_for_losses(planned) else 1
        self.scheduler = SchedulerRemote.options(max_concurrency=threads).remote(planned, len(specs))
        driving = Driving(settings.message_seconds, settings.threads)
        shared = ray.put(data)
        self.actors: list[ActorHandle[Any]] = []
        for place, spec in enumerate(specs):
            bundle, strategy = reserved.bundle, PlacementGroupSchedulingStrategy
            options: dict[str, Any] = {
                "num_cpus": bundle.get("CPU", 0),
                "num_gpus": bundle.get("GPU", 0),
                "resources": {k: v for k, v in bundle.items() if k not in ("CPU", "GPU")},
                "scheduling_strategy": strategy(reserved.group, placement_group_bundle_index=reserved.first + place),
            }
            actor_class = (LIVE if live else PLANNED)[type(spec)].options(**options)
            extra = (schedule,) if live else ()
            self.actors.append(actor_class.remote(spec, shared, driving, self.scheduler, *extra))
        self.specs = specs
        self.lost: list[int] = []

    def reports(self) -> Iterator[StepReport | Event]:
        yield from self.started()
        ray.get(
            [
                actor.connect.remote({k: self.actors[k] for k in spec.receivers})
                for actor, spec in zip(self.actors, self.specs, strict=True)
            ]
        )
        started_at = time.time()
        training: dict[Any, int] = {actor.train.remote(started_at): i for i, actor in enumerate(self.actors)}
        failures: list[Exception] = []
        while training and not failures:
            done, _ = ray.wait(list(training), num_returns=len(training), timeout=POLL_SECONDS)
            for call in done:
                agent = training.pop(call)
                failure = self.failure(call, agent)
                if isinstance(failure, Event):
                    yield failure
                elif failure is not None:
                    failures.append(failure)
            yield from self.drain()
        if failures:
            self.stop(list(training))
            yield from self.drain()
            raise failures[0]
        if len(self.lost) == len(self.actors):
            raise RunError("every agent was lost")

    def started(self) -> Iterator[Event]:
        """Wait until every agent is built, and report where."""
        ready: list[Any] = [actor.ready.remote() for actor in self.actors]
        for agent, place in enumerate(ready):
            try:
                yield Event("agent_started", agent, 0, ray.get(place))
            except RayTaskError as error:
                raise RunError(f"agent {agent} could not be built: {error.cause}") from error
            except RayError as error:
                raise RunError(f"agent {agent} could not be started: {str(error).splitlines()[0]}") from error

    def failure(self, call: Any, agent: int) -> Exception | Event | None:
        """Return what ended an agent's training other than its last step."""
        try:
            ray.get(call)
        except RayTaskError as error:
            cause = error.cause
            return cause if isinstance(cause, NonFiniteLossError | RunError) else error
        except RayActorError as error:
            self.lost.append(agent)
            reason = str(error).splitlines()[0]
            if self.is_live and not isinstance(self.specs[agent], ServerSpec):
                for server, spec in enumerate(self.specs):
                    if isinstance(spec, ServerSpec) and server not in self.lost:
                        self.actors[server].neighbor_lost.remote(agent)
                return Event("agent_lost", agent, -1, reason)
            return RunError(f"agent {agent} was lost: {reason}")
        return None

    def drain(self) -> Iterator[StepReport | Event]:
        for report in ray.get(self.scheduler.drain.remote()):
            if isinstance(report, StepReport) and report.snapshot is not None:
                reference: Any = report.snapshot
                report = report._replace(snapshot=_snapshot(ray.get(reference)))
            yield report

    def stop(self, training: list[Any]) -> None:
        """Ask all agents to stop, and wait for those that can."""
        for i, actor in enumerate(self.actors):
            if i not in self.lost:
                actor.stop.remote()
        ray.wait(training, num_returns=len(training), timeout=30.0) if training else None

    def close(self) -> None:
        for actor in [*self.actors, self.scheduler]:
            ray.kill(actor)


def _snapshot(portable: Any) -> Snapshot:
    weights, buffers, integers = portable
    return Snapshot(
        torch.from_numpy(weights.copy()),
        torch.from_numpy(buffers.copy()),
        {name: torch.as_tensor(value.copy()) for name, value in integers.items()},
    )
