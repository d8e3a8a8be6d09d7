"""Create, recreate and kill the actors of one run, and detect agents that hang."""

import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from ray_pcasgd.agents.combining import CombiningSpec
from ray_pcasgd.agents.differing import DifferingSpec
from ray_pcasgd.agents.learner import LearnerError
from ray_pcasgd.agents.local_momentum_worker import LocalMomentumWorkerSpec
from ray_pcasgd.agents.pair import PairSpec
from ray_pcasgd.agents.participant import LearnerSpec
from ray_pcasgd.agents.peer import AgentSpec
from ray_pcasgd.agents.server import ServerSpec
from ray_pcasgd.agents.snapshot_worker import SnapshotWorkerSpec
from ray_pcasgd.agents.worker import WorkerSpec
from ray_pcasgd.engines.base import InterruptionError, RunError
from ray_pcasgd.engines.failures import described_text
from ray_pcasgd.engines.live.injection import InjectedDelays
from ray_pcasgd.engines.ray.actor import Actor, MakeDriver
from ray_pcasgd.engines.ray.cuts import Restored
from ray_pcasgd.engines.ray.live_pair import PairDriver
from ray_pcasgd.engines.ray.live_peer import PeerDriver
from ray_pcasgd.engines.ray.live_server import ServerDriver
from ray_pcasgd.engines.ray.live_worker import WorkerDriver
from ray_pcasgd.engines.ray.lost import GONE, LOST, first_line
from ray_pcasgd.engines.ray.mail import Driving
from ray_pcasgd.engines.ray.naming import Identity
from ray_pcasgd.engines.ray.placement import Reservation
from ray_pcasgd.engines.ray.planned import PlannedDriver
from ray_pcasgd.engines.ray.scheduler_actor import SchedulerActor
from ray_pcasgd.engines.ray.serialization import compact
from ray_pcasgd.records import Event
from ray_pcasgd.schedule.scheduler import Schedule, waits_for_losses
from ray_pcasgd.tasks.task import TaskData

_remote: Any = ray.remote  # its stubs know no concurrency groups
_GROUPS = {"train": 1, "mail": 1}
# Without Ray's records of single calls: thousands a minute, among which nobody finds anything.
_SCHEDULER = _remote(num_cpus=0, enable_task_events=False)(SchedulerActor)
_ACTOR = _remote(concurrency_groups=_GROUPS, enable_task_events=False)(Actor)
_LIVE_DRIVERS: dict[type[LearnerSpec], Any] = {
    AgentSpec: PeerDriver,
    CombiningSpec: PeerDriver,
    DifferingSpec: PeerDriver,
    PairSpec: PairDriver,
    WorkerSpec: WorkerDriver,
    SnapshotWorkerSpec: WorkerDriver,
    LocalMomentumWorkerSpec: WorkerDriver,
    ServerSpec: ServerDriver,
}

LAST_SECONDS = 1.0
"""Seconds that an overdue answer still gets, in case this process was held up itself."""

CONNECT_SECONDS = 60.0
"""Longest wait for agents that are built to take in who their neighbors are."""


class ActorGroup:
    """Creates, names and kills the actors of one run; the driver's loop calls it from its one thread."""

    def __init__(
        self,
        identity: Identity,
        specs: Sequence[LearnerSpec],
        data: TaskData,
        reserved: Reservation,
        driving: Driving,
        agent_options: Mapping[str, Any],
    ) -> None:
        self.identity = identity
        self.specs = specs
        self._data = ray.put(compact(data))
        self._reserved = reserved
        self.driving = driving
        self._agent_options = agent_options
        self.actors: dict[int, ActorHandle[Any]] = {}
        self.scheduler: ActorHandle[Any] | None = None

    def make_scheduler(self, schedule: Schedule, first_row: int = 0) -> ActorHandle[Any]:
        """Make the scheduler's actor, also in the place of a lost one."""
        # Where rows depend on losses, each agent may wait in it for its rows, and still it takes reports.
        threads = len(self.specs) + 2 if waits_for_losses(schedule) else 1
        if self.scheduler is not None:
            ray.kill(self.scheduler)
        arguments = (schedule, len(self.specs), first_row)
        # With the driver, so that one lost node is one loss. Not softly: Ray then puts it anywhere at times, and the
        # driver's node lives as long as the driver.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        options = {"max_concurrency": threads, "scheduling_strategy": here}
        self.scheduler = self.identity.actor(self.identity.scheduler, _SCHEDULER, options, *arguments)
        return self.scheduler

    def make(
        self, agent: int, injection: InjectedDelays | None, restored: Restored | None = None, first_call: int = 0
    ) -> ActorHandle[Any]:
        """Make an agent's actor; a live one where there is an injection."""
        bundle, spec = self._reserved.bundles[agent], self.specs[agent]
        place = PlacementGroupSchedulingStrategy(
            self._reserved.group, placement_group_bundle_index=self._reserved.first + agent
        )
        options = {
            "num_cpus": bundle.get("CPU", 0),
            "num_gpus": bundle.get("GPU", 0),
            "resources": {k: v for k, v in bundle.items() if k not in ("CPU", "GPU")},
            "scheduling_strategy": place,
            **self._agent_options,
        }
        driver: MakeDriver = PlannedDriver
        if injection is not None:
            driver = partial(_LIVE_DRIVERS[type(spec)], injection=injection)
        arguments = (compact(spec), self._data, self.driving, self.scheduler, driver, restored, first_call)
        made = self.identity.actor(f"{self.identity.run} agent {agent}", _ACTOR, options, *arguments)
        self.actors[agent] = made
        return made

    def started(self) -> Iterator[Event]:
        """Wait until the scheduler and every agent is built, and report where.

        Raises:
            InterruptionError: one of them was lost meanwhile.
            RunError: an agent could not be built.

        """
        places = self.places()
        yield self.scheduler_started()
        for agent, place in places.items():
            yield self.agent_started(agent, place)

    def places(self) -> dict[int, Any]:
        """Return calls that return where each agent lives, once it is built."""
        return {agent: actor.ready.remote() for agent, actor in self.actors.items()}

    def agent_started(self, agent: int, place: Any) -> Event:
        """Wait until an agent is built, and report where.

        Raises:
            InterruptionError: it was lost meanwhile.
            RunError: it could not be built.

        """
        try:
            return Event("agent_started", agent, 0, ray.get(place))
        except RayTaskError as error:
            raise RunError(f"agent {agent} could not be built: {described_text(str(error))}") from error
        except RayError as error:
            if isinstance(error, GONE) and not getattr(error, "actor_init_failed", False):
                raise InterruptionError(f"agent {agent} was lost: {first_line(error)}", agent) from error
            raise RunError(f"agent {agent} could not be built: {described_text(str(error))}") from error

    def scheduler_started(self) -> Event:
        """Wait until the scheduler is there, and report where.

        Raises:
            InterruptionError: it was lost meanwhile.

        """
        assert self.scheduler is not None
        place: Any = self.scheduler.ready.remote()
        try:
            return Event("scheduler_started", -1, 0, ray.get(place))
        except GONE as error:
            raise InterruptionError(f"the scheduler was lost: {first_line(error)}") from error

    def connect(self, absent: Collection[int] = ()) -> dict[int, InterruptionError]:
        """Tell every agent whom it sends to; return those that were lost, or do not answer."""
        there = {agent: actor for agent, actor in self.actors.items() if agent not in absent}
        calls: dict[int, Any] = {
            agent: actor.connect.remote({k: there[k] for k in self.specs[agent].receivers if k in there})
            for agent, actor in there.items()
        }
        if calls:
            ray.wait(list(calls.values()), num_returns=len(calls), timeout=CONNECT_SECONDS)
        lost = {}
        for agent, call in calls.items():
            try:
                ray.get(call, timeout=0)
            except (*GONE, GetTimeoutError) as error:
                lost[agent] = InterruptionError(f"agent {agent} was lost: {first_line(error)}", agent)
        return lost

    def stop(self, agents: Sequence[int], training: Sequence[Any], seconds: float = 30.0) -> None:
        """Ask agents to stop, and wait for those that can."""
        for agent in agents:
            self.actors[agent].stop.remote()
        if training:
            ray.wait(list(training), num_returns=len(training), timeout=seconds)

    def close(self) -> None:
        """End all actors."""
        for actor in [*self.actors.values(), *([self.scheduler] if self.scheduler else [])]:
            ray.kill(actor)


def failure(call: Any, agent: int) -> Exception | None:
    """Return what ended an agent's training, if it was not its last step."""
    try:
        ray.get(call)
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, LOST):
            return InterruptionError(f"agent {agent} lost a message or its scheduler: {first_line(cause)}", agent)
        return cause if isinstance(cause, LearnerError | RunError) else error
    except GONE as error:
        return InterruptionError(f"agent {agent} was lost: {first_line(error)}", agent)
    return None


class _Question(NamedTuple):
    call: Any
    asked_at: float


class Heartbeats:
    """Detects agents that hang: Ray reports an actor that died, never one that does not answer.

    The driver's loop calls it again and again with the agents that train.
    """

    def __init__(self, group: ActorGroup) -> None:
        self._group = group
        # Those who wait for a silent agent give up first: it may answer again.
        self.seconds = 2 * group.driving.wait_seconds
        self._questions: dict[int, _Question] = {}

    def missing(self, agents: Iterable[int]) -> list[int]:
        """Return those of the agents that have not answered for ``seconds``."""
        return [agent for agent in agents if self._is_missing(agent)]

    def _is_missing(self, agent: int) -> bool:
        question = self._questions.get(agent)
        age = time.monotonic() - question.asked_at if question else self.seconds
        if question and age < self.seconds / 4:
            return False
        is_overdue = age > self.seconds
        if question and not ray.wait([question.call], timeout=LAST_SECONDS if is_overdue else 0)[0]:
            return is_overdue
        self._questions[agent] = _Question(self._group.actors[agent].ready.remote(), time.monotonic())
        return False
