"""The ray engine: finds room for the actors, lets them run, and takes everything down again."""

import time
from collections.abc import Generator, Iterator, Sequence
from typing import NamedTuple

import ray
from ray.util.placement_group import remove_placement_group

from ray_pcasgd.agents.participant import LearnerSpec
from ray_pcasgd.agents.peer import AgentSpec
from ray_pcasgd.agents.worker import WorkerSpec
from ray_pcasgd.base.state import State
from ray_pcasgd.engines.base import Cluster, Leaving, Pause, Report, RunError
from ray_pcasgd.engines.live.injection import InjectedDelays
from ray_pcasgd.engines.ray.crew import ActorGroup, Identity
from ray_pcasgd.engines.ray.discovery import noted
from ray_pcasgd.engines.ray.live_run import LiveRun
from ray_pcasgd.engines.ray.placement import reserve
from ray_pcasgd.engines.ray.planned_run import PlannedRun
from ray_pcasgd.engines.ray.settings import RaySettings
from ray_pcasgd.engines.ray.shell import Driving
from ray_pcasgd.engines.ray.state_check import check_state
from ray_pcasgd.engines.ray.status import RunStatus
from ray_pcasgd.records import Event
from ray_pcasgd.schedule.scheduler import Schedule, waits_for_losses
from ray_pcasgd.tasks.task import TaskData

SHOWN_SECONDS = 0.5
"""How often the status that others see of a run is made anew."""


class Upkeep(NamedTuple):
    """How a run is kept alive."""

    state_seconds: float | None
    """How often its state is kept, if at all."""
    max_failures: int
    """How many lost agents of a live run come back; -1: any number."""


class RayEngine:
    """Executes agents as actors: planned rows in planned mode, whatever has come in live mode."""

    def __init__(
        self,
        settings: RaySettings,
        schedule: Schedule | InjectedDelays,
        identity: Identity,
        upkeep: Upkeep,
        cluster: Cluster,
    ) -> None:
        self._settings = settings
        self._cluster = cluster
        self._schedule = schedule
        self._identity = identity
        self._upkeep = upkeep
        self.leaving = Leaving()

    def run(
        self, specs: Sequence[LearnerSpec], data: TaskData, state: State | None = None
    ) -> Generator[Report, None, None]:
        """Execute all agents; see ``Engine.run``."""
        try:
            self._cluster.join()
        except ValueError as error:
            raise RunError(str(error)) from error
        try:
            reserved = reserve(self._settings, len(specs))
            try:
                pausing = self._upkeep.state_seconds if self.can_pause(specs) else None
                driving = Driving(
                    self._settings.message_seconds,
                    self._settings.threads,
                    pausing,
                    self._settings.silent_steps,
                    self._settings.max_lag,
                    self._settings.inline_bytes,
                )
                if state is not None:
                    check_state(state, specs, data, is_live=isinstance(self._schedule, InjectedDelays))
                crew = ActorGroup(self._identity, specs, data, reserved, driving)
                try:
                    if isinstance(self._schedule, InjectedDelays):
                        absent = self._settings.join_later
                        max_failures = self._upkeep.max_failures
                        live = LiveRun(crew, self._schedule, max_failures, pausing, state, absent, self.leaving)
                        yield from self._shown(crew, live.reports())
                    else:
                        planned = PlannedRun(crew, self._schedule, pausing, state, self.leaving)
                        yield from self._shown(crew, planned.reports())
                finally:
                    crew.close()
            finally:
                if reserved.is_own:
                    remove_placement_group(reserved.group)
        finally:
            self._cluster.leave()

    def can_pause(self, specs: Sequence[LearnerSpec]) -> bool:
        """Return whether the run can be left, and go on from a state."""
        spec = specs[0]
        if isinstance(self._schedule, InjectedDelays):
            if not isinstance(spec, WorkerSpec):
                return isinstance(spec, AgentSpec)
            return spec.recipe.rule.shards == 1  # several servers are at different versions
        # A schedule that depends on losses cannot be drawn again without them.
        return isinstance(spec, AgentSpec | WorkerSpec) and not waits_for_losses(self._schedule)

    def _shown(self, crew: ActorGroup, reports: Iterator[Report]) -> Iterator[Report]:
        """Pass reports on, and show the scheduler from time to time what they say of the run's status."""
        status = RunStatus({**self._identity.about, "run": self._identity.run}, len(crew.specs))
        context = ray.get_runtime_context()
        yield Event("cluster_joined", -1, -1, context.gcs_address)
        shown_at = 0.0
        with noted(self._identity.location, context.gcs_address):
            for report in reports:
                if not isinstance(report, Pause):
                    status.take(report)
                if time.monotonic() - shown_at > SHOWN_SECONDS and crew.scheduler is not None:
                    crew.scheduler.show.remote(status.view())
                    shown_at = time.monotonic()
                yield report
