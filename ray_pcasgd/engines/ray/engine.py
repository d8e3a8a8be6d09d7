"""The ray engine: reserves room for the actors of a run, lets a supervisor drive them, and ends everything again."""

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import NamedTuple

import ray
from ray.util.placement_group import remove_placement_group

from ray_pcasgd.agents.participant import LearnerSpec
from ray_pcasgd.agents.server import ServerSpec
from ray_pcasgd.agents.worker import WorkerSpec
from ray_pcasgd.base.state import State
from ray_pcasgd.engines.base import Cluster, InterruptionError, Leaving, Pause, Report, RunError
from ray_pcasgd.engines.live.injection import InjectedDelays
from ray_pcasgd.engines.ray.actor_group import ActorGroup
from ray_pcasgd.engines.ray.board import Board, own_board
from ray_pcasgd.engines.ray.discovery import noted
from ray_pcasgd.engines.ray.mail import Driving
from ray_pcasgd.engines.ray.naming import Identity
from ray_pcasgd.engines.ray.placement import OWN_CLUSTER_SECONDS, Reservation, reserve
from ray_pcasgd.engines.ray.settings import RaySettings
from ray_pcasgd.engines.ray.state_check import check_state
from ray_pcasgd.engines.ray.status import RunStatus
from ray_pcasgd.engines.ray.supervisor import LiveSupervisor, PlannedSupervisor
from ray_pcasgd.records import Event
from ray_pcasgd.schedule.membership import Away
from ray_pcasgd.schedule.scheduler import Schedule, waits_for_losses
from ray_pcasgd.schedule.simulation import Timing
from ray_pcasgd.tasks.task import TaskData

SHOWN_SECONDS = 0.5
"""How often the status that others see of a run is made anew."""


class Upkeep(NamedTuple):
    """How a run is kept alive."""

    state_seconds: float | None
    """How often its state is kept, if at all."""
    max_failures: int
    """How many lost agents of a live run come back; -1: any number."""
    away: Sequence[Away] = ()
    """Who of a live run is not there when, in its seconds."""


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
        self._status: RunStatus | None = None
        self._tested: dict[int, Mapping[str, float]] = {}
        """Test figures that were known before there was a status."""

    def run(
        self, specs: Sequence[LearnerSpec], data: TaskData, state: State | None = None
    ) -> Generator[Report, None, None]:
        """Execute all agents; see ``Engine.run``."""
        try:
            self._cluster.join()
        except ValueError as error:
            raise RunError(str(error)) from error
        try:
            reserved = yield from self._reserved(specs)
            try:
                pausing = self._upkeep.state_seconds if self.can_pause(specs) else None
                driving = Driving(
                    self._settings.message_seconds,
                    self._settings.threads,
                    pausing,
                    self._settings.silent_steps,
                    self._settings.max_lag,
                    self._settings.inline_bytes,
                    not isinstance(self._schedule, Timing),
                    max(spec.steps_a_version for spec in specs),
                    self._settings.transport,
                )
                if state is not None:
                    check_state(state, specs, data, is_live=isinstance(self._schedule, InjectedDelays))
                group = ActorGroup(self._identity, specs, data, reserved, driving, self._cluster.agent_options)
                try:
                    yield from self._shown(group, pausing, state)
                finally:
                    group.close()
            finally:
                if reserved.is_own:
                    remove_placement_group(reserved.group)
        except InterruptionError:
            # Whoever has joined it before goes on with another one.
            self._cluster.leave()
            raise

    def _reserved(self, specs: Sequence[LearnerSpec]) -> Generator[Event, None, Reservation]:
        """Return room for all agents, once it is there."""
        settings = self._settings
        seconds = settings.placement_seconds
        if seconds is None and self._cluster.is_own:
            seconds = OWN_CLUSTER_SECONDS
        servers = sum(isinstance(spec, ServerSpec) for spec in specs)
        name = f"{self._identity.run} agents"
        return (
            yield from reserve(settings, name, len(specs) - servers, servers, seconds, lambda: self.leaving.is_asked)
        )

    def _supervisor(
        self, group: ActorGroup, board: Board, pausing: float | None, state: State | None
    ) -> LiveSupervisor | PlannedSupervisor:
        """Return what drives the run, once it has made the first actors."""
        if not isinstance(self._schedule, InjectedDelays):
            return PlannedSupervisor(group, board, self._schedule, pausing, state, self.leaving)
        failures, absent, away = self._upkeep.max_failures, self._settings.join_later, self._upkeep.away
        return LiveSupervisor(group, board, self._schedule, failures, pausing, state, absent, away, self.leaving)

    def evaluated(self, step: int, figures: Mapping[str, float]) -> None:
        """Show test figures of the averaged model; see ``Engine.evaluated``."""
        if self._status is None:
            self._tested[step] = figures
        else:
            self._status.evaluated(step, figures)

    def can_pause(self, specs: Sequence[LearnerSpec]) -> bool:
        """Return whether the run can be left, and go on from a state."""
        spec = specs[0]
        if not spec.family.has_states:
            return False
        if not isinstance(self._schedule, InjectedDelays):
            # A schedule that depends on losses cannot be drawn again without them.
            return not waits_for_losses(self._schedule)
        # Several servers are at different versions.
        return not isinstance(spec, WorkerSpec) or spec.recipe.rule.shards == 1

    def _shown(self, group: ActorGroup, pausing: float | None, state: State | None) -> Iterator[Report]:
        """Yield what the run's supervisor reports, and show others from time to time what it says of its status."""
        self._status = status = RunStatus({**self._identity.about, "run": self._identity.run}, len(group.specs))
        for step, figures in self._tested.items():
            status.evaluated(step, figures)
        address = ray.get_runtime_context().gcs_address
        yield Event("cluster_joined", -1, -1, address)
        shown_at = 0.0
        with own_board(address, self._identity) as board, noted(self._identity.location, address):
            for report in self._supervisor(group, board, pausing, state).reports():
                if not isinstance(report, Pause):
                    status.take(report)
                if time.monotonic() - shown_at > SHOWN_SECONDS:
                    board.show(status.view())
                    shown_at = time.monotonic()
                yield report
