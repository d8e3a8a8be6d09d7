"""A live run on actors: agents that are lost come back, and the others do not wait for them."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import ray
from ray.exceptions import RayError

from ray_pcasgd.agents.pair import PairSpec
from ray_pcasgd.agents.peer import AgentSpec
from ray_pcasgd.agents.server import ServerSpec
from ray_pcasgd.agents.worker import WorkerSpec
from ray_pcasgd.base.state import State
from ray_pcasgd.engines.base import InterruptionError, Leaving, Pause, Report, RunError
from ray_pcasgd.engines.live.commands import Command, Isolate, Join, Leave, SetDelay, agents_named
from ray_pcasgd.engines.live.injection import InjectedDelays
from ray_pcasgd.engines.ray.collecting import Collector
from ray_pcasgd.engines.ray.crew import ActorGroup, failure
from ray_pcasgd.engines.ray.cuts import AgentState, Restored, fetched
from ray_pcasgd.engines.ray.life import Heartbeats
from ray_pcasgd.engines.ray.lost import first_line
from ray_pcasgd.engines.ray.planned_run import POLL_SECONDS
from ray_pcasgd.records import Event, StepReport
from ray_pcasgd.schedule.scheduler import Recorded

RETURN_SECONDS = 60.0
"""Seconds that a run whose other agents are done waits for one that is coming back."""


class LiveRun:
    """Drives the actors of a live run."""

    def __init__(
        self,
        crew: ActorGroup,
        injection: InjectedDelays,
        max_failures: int,
        state_seconds: float | None,
        state: State | None,
        absent: Sequence[int] = (),
        driver_leaving: Leaving | None = None,
    ) -> None:
        self.crew = crew
        self.driver_leaving = driver_leaving or Leaving()
        self.injection = injection
        self.max_failures = max_failures
        self.state_seconds = state_seconds
        self.started_at = time.time() - (0.0 if state is None else state["seconds"])
        self.collector = Collector(crew.make_scheduler(Recorded()), len(crew.specs), crew.driving.answer_seconds)
        kept = [None] * len(crew.specs) if state is None else state["agents"]
        self.versions = [0 if own is None else int(own["version"]) for own in kept]
        """What each agent is known to have come to."""
        self.progress = [0] * len(crew.specs)
        """The steps of its own that each is known to have taken."""
        # A worker's part is its version alone.
        known = {agent: own for agent, own in enumerate(kept) if own is not None}
        self.states: dict[int, State] = {k: own for k, own in known.items() if not self.is_worker(k)}
        """Each agent's newest part of the run's state."""
        # Agents without a kept state come back into a resumed run as the mean of the others, or with their servers'.
        gone = set() if state is None else set(range(len(kept))) - self.states.keys()
        self.unknown = {agent for agent in gone if agent not in absent or self.versions[agent]}
        self.away = {agent for agent in absent if agent not in self.states} | self.unknown
        """Agents that are lost, have left, or are not there yet."""
        for agent in range(len(crew.specs)):
            if agent not in self.away:
                crew.make(agent, injection, self.restored(agent))
        self.training: dict[Any, int] = {}
        self.life = Heartbeats(crew)
        self.leaving: set[int] = set()
        self.returning: dict[Any, int] = {}
        """Those of them that are being made again; the calls return once there is room for them and they are built."""
        self.finished: set[int] = set()
        self.alone_since: float | None = None
        """Since when no agent trains, while one is coming back."""
        self.failures = 0
        self.kept_at = time.monotonic()

    def is_worker(self, agent: int) -> bool:
        """Return whether an agent works for servers."""
        return isinstance(self.crew.specs[agent], WorkerSpec)

    def restored(self, agent: int) -> Restored | None:
        """Return what an agent goes on from, if anything of it was kept."""
        if isinstance(self.crew.specs[agent], PairSpec):
            return Restored({"steps": self.progress[agent]}, (), {}, False)
        state = self.states.get(agent)
        return None if state is None else Restored(state, (), {}, state.get("isolated", False))

    def reports(self) -> Iterator[Report]:
        """Let all agents train, and yield what they say."""
        try:
            yield from self.train()
        except InterruptionError as interruption:
            if self.is_worker(0) and (self.state_seconds is not None or not any(self.versions)):
                raise  # the run goes on from its server's state, or begins anew before anything was done
            raise RunError(str(interruption)) from interruption

    def train(self) -> Iterator[Report]:
        """Let all agents train, and yield what they say."""
        for agent in sorted(self.away - self.unknown):
            yield Event("agent_left", agent, 0, f"agent {agent} has not joined yet; 'ray-pcasgd join' lets it come in")
        yield from self.start()
        failures: list[Exception] = []
        while (self.training or self.awaits_returns()) and not failures:
            calls = [*self.training, *self.returning]
            ready, _ = ray.wait(calls, num_returns=len(calls), timeout=POLL_SECONDS)
            done = [call for call in ready if call in self.training]
            for call in done:
                agent = self.training.pop(call)
                error = failure(call, agent)
                if isinstance(error, InterruptionError):
                    yield from self.lose(agent, error)
                elif error is not None:
                    failures.append(error)
                elif agent in self.leaving:
                    self.away.add(agent)
                    # Peers tell each other, except those that do not read the peers to which they push shares.
                    if not isinstance(self.crew.specs[agent], AgentSpec) or self.pushes:
                        self.tell_of_absence(agent)
                else:
                    self.finished.add(agent)
                    self.tell_of_end(agent)
            self.end_silent_agents()
            yield from self.drain()
            yield from self.obey()
            yield from self.look_for_those_who_return()
            yield from self.pauses()
            self.driver_leaving.give_up()
            if self.is_without_workers() and not failures:
                failures.append(RunError("every worker was lost, or has left"))
        if failures:
            self.crew.stop([agent for agent in self.training.values() if agent not in self.away], [*self.training])
            yield from self.drain()
            raise failures[0]
        if not self.finished:
            raise RunError("every agent was lost")

    def start(self) -> Iterator[Report]:
        """Wait until the actors are built, and let them begin; those that are lost meanwhile come back."""
        places = self.crew.places()
        yield from self.await_scheduler()
        lost: dict[int, InterruptionError] = {}
        for agent, place in places.items():
            try:
                yield self.crew.agent_started(agent, place)
            except InterruptionError as interruption:
                lost[agent] = interruption
        lost |= self.crew.connect(absent=lost)
        began = [agent for agent in self.crew.actors if agent not in lost]
        self.training = {self.crew.actors[agent].train.remote(self.started_at): agent for agent in began}
        for agent in self.away:
            self.tell_of_absence(agent)
        for agent, error in lost.items():
            yield from self.lose(agent, error)
        for agent in self.unknown:
            self.bring_back(agent)

    def await_scheduler(self) -> Iterator[Report]:
        """Wait until the scheduler is there, or another one in its place."""
        try:
            yield self.crew.scheduler_started()
        except InterruptionError as error:
            yield from self.replace_scheduler(error)

    def end_silent_agents(self) -> None:
        """End agents that do not answer, as which they are lost."""
        for agent in self.life.missing(self.training.values()):
            ray.kill(self.crew.actors[agent])

    def awaits_returns(self) -> bool:
        """Return whether the run ends later, because an agent is still coming back while no other trains."""
        servers_are_done = any(isinstance(self.crew.specs[agent], ServerSpec) for agent in self.finished)
        if self.training or not self.returning or servers_are_done:
            self.alone_since = None
            return False
        self.alone_since = self.alone_since or time.monotonic()
        return time.monotonic() - self.alone_since < RETURN_SECONDS

    def is_without_workers(self) -> bool:
        """Return whether the run has servers, and no worker that trains or is coming back any more."""
        workers = {spec.agent for spec in self.crew.specs if self.is_worker(spec.agent)}
        return bool(workers) and workers <= self.away - set(self.returning.values())

    def lose(self, agent: int, error: InterruptionError) -> Iterator[Report]:
        """Go on without an agent, until it comes back.

        Raises:
            InterruptionError: it is a server, without which the others cannot go on.

        """
        yield from self.drain()
        if isinstance(self.crew.specs[agent], ServerSpec):
            raise error
        self.failures += 1
        self.away.add(agent)
        yield Event("agent_lost", agent, self.versions[agent], str(error))
        self.tell_of_absence(agent)
        self.collector.scheduler.forget.remote(agent)
        if self.max_failures < 0 or self.failures <= self.max_failures:
            self.bring_back(agent)

    def tell_of_absence(self, agent: int) -> None:
        """Tell an agent's neighbors that it is not there."""
        for other, spec in enumerate(self.crew.specs):
            is_told = isinstance(spec, ServerSpec) or (
                isinstance(spec, AgentSpec | PairSpec) and agent in {*spec.neighbors, *spec.receivers}
            )
            if is_told and other not in self.away:
                self.crew.actors[other].neighbor_lost.remote(agent)

    @property
    def pushes(self) -> bool:
        """Whether agents push shares of their mass, which must not be lost."""
        spec = self.crew.specs[0]
        return isinstance(spec, AgentSpec) and spec.recipe.rule.reading == "every"

    def tell_of_end(self, agent: int) -> None:
        """Tell those who push shares to an agent that it has taken all its steps."""
        for other, spec in enumerate(self.crew.specs) if self.pushes else ():
            if agent in spec.receivers and other not in self.away:
                self.crew.actors[other].neighbor_done.remote(agent)

    def bring_back(self, agent: int) -> None:
        """Make a lost agent's actor again, and let it come back once there is room for it."""
        if agent in self.crew.actors:
            ray.kill(self.crew.actors[agent])
        self.leaving.discard(agent)
        made = self.crew.make(agent, self.injection, self.restored(agent), self.collector.next_call(agent))
        self.returning[made.ready.remote()] = agent

    def look_for_those_who_return(self) -> Iterator[Report]:
        """Let agents come back that are built again; those for which there is no room are left out at the end."""
        if not self.returning:
            return
        built, _ = ray.wait(list(self.returning), num_returns=len(self.returning), timeout=0)
        for call in built:
            agent = self.returning.pop(call)
            error = failure(call, agent)
            if isinstance(error, InterruptionError):
                yield from self.lose(agent, error)
                continue
            if error is not None:
                raise RunError(f"agent {agent} could not be built again: {error}")
            yield Event("agent_started", agent, self.versions[agent], ray.get(call))
            spec = self.crew.specs[agent]
            others = {k: self.crew.actors[k] for k in {*spec.neighbors, *spec.receivers} if k not in self.away}
            self.away.discard(agent)
            actor = self.crew.actors[agent]
            self.training[actor.come_back.remote(others, self.started_at, self.versions[agent] + 1)] = agent

    def obey(self) -> Iterator[Report]:
        """Carry out operators' commands, and report what was done."""
        try:
            asked: Any = self.collector.scheduler.commands.remote()
            commands: list[tuple[int, Command]] = ray.get(asked, timeout=self.crew.driving.answer_seconds)
        except RayError:
            return  # draining finds out that the scheduler is lost
        for number, command in commands:
            refusal = self.refusal(command)
            self.collector.scheduler.answer.remote(number, f"refused: {refusal}" if refusal else command.describe())
            if refusal is None:
                yield Event(f"command_{command.name}", -1, -1, command.describe())
                self.execute(command)

    def refusal(self, command: Command) -> str | None:
        """Return why a command cannot be carried out."""
        unknown = [agent for agent in agents_named(command) if not 0 <= agent < len(self.crew.specs)]
        if unknown:
            return f"agent {unknown[0]}; allowed are 0 to {len(self.crew.specs) - 1}"
        spec = self.crew.specs[0]
        if isinstance(command, Isolate) and not isinstance(spec, AgentSpec):
            return "isolate: allowed are runs between peers"
        if isinstance(command, SetDelay) and isinstance(spec, PairSpec) and command.entry.unit != "seconds":
            return "delay in steps: allowed with ad-psgd is seconds; pairs average what both have at that moment"
        if isinstance(command, Leave | Join) and isinstance(self.crew.specs[command.agent], ServerSpec):
            return f"{command.name}: allowed are workers; agent {command.agent} is a server"
        if isinstance(command, Isolate) and isinstance(spec, AgentSpec) and spec.recipe.rule.reading == "every":
            return "isolate: allowed are algorithms without push-sum, whose mass would be lost with the messages"
        if isinstance(command, Leave) and command.agent not in self.training.values():
            return f"agent {command.agent} does not train"
        if isinstance(command, Join) and (command.agent not in self.away or command.agent in self.returning.values()):
            return f"agent {command.agent} takes part already, or is coming back"
        return None

    def execute(self, command: Command) -> None:
        """Carry a command out."""
        if isinstance(command, Leave):
            self.leaving.add(command.agent)
            self.crew.actors[command.agent].leave.remote()
        elif isinstance(command, Join):
            self.collector.scheduler.forget.remote(command.agent)
            self.bring_back(command.agent)
        else:
            self.injection = self.injection.changed(self.injection.changes.after(command))
            for agent in self.crew.actors.keys() - self.away:
                self.crew.actors[agent].change_links.remote(self.injection)

    def drain(self) -> Iterator[Report]:
        """Yield what agents have said; keep their parts of the state."""
        said = None
        while said is None:
            try:
                said = self.collector.drain()
            except RayError as error:
                yield from self.replace_scheduler(error)
        for one in said:
            if isinstance(one, AgentState):
                try:
                    state = fetched(one.state, self.crew.driving.answer_seconds)
                    self.states[one.agent] = state | {"isolated": one.is_isolated}
                except RayError:
                    continue  # lost together with its agent, or that hangs; an older one stays
            else:
                if isinstance(one, StepReport):
                    agent, step = one.row[:2]
                    self.versions[agent] = max(self.versions[agent], step + 1)
                    self.progress[agent] = max(self.progress[agent], one.progress)
                yield one

    def replace_scheduler(self, error: Exception) -> Iterator[Report]:
        """Put another scheduler in the place of one that was lost; agents say again what it may have taken with it.

        Raises:
            RunError: more was lost than the run may outlive.

        """
        self.failures += 1
        yield Event("scheduler_lost", -1, -1, f"the scheduler was lost: {first_line(error)}")
        if 0 <= self.max_failures < self.failures:
            allowed = f"allowed are max_failures = {self.max_failures}"
            raise RunError(f"the scheduler was lost; {allowed} ({first_line(error)})")
        scheduler = self.crew.make_scheduler(Recorded())
        self.collector.replace(scheduler)
        # Those who are being made again were told of the lost one, too; they take the new one in once they are there.
        calls: dict[int, Any] = {agent: actor.adopt.remote(scheduler) for agent, actor in self.crew.actors.items()}
        there = [call for agent, call in calls.items() if agent not in self.away]
        if there:
            ray.wait(there, num_returns=len(there), timeout=30.0)
        yield from self.await_scheduler()

    def pauses(self) -> Iterator[Pause]:
        """Yield a pause if it is time, and every agent that is there has given its part of the state."""
        is_due = self.state_seconds is not None and time.monotonic() - self.kept_at >= self.state_seconds
        if self.state_seconds is None or not (is_due or self.driver_leaving.is_asked):
            return
        if any(agent not in self.states for agent in self.crew.actors.keys() - self.away if not self.is_worker(agent)):
            if self.driver_leaving.is_asked:
                raise KeyboardInterrupt  # no agent's part is asked for; the next ones may be long in coming
            return
        agents = [self.kept(agent) for agent in range(len(self.crew.specs))]
        state = {"seconds": time.time() - self.started_at, "agents": agents}
        versions = tuple(0 if one is None else int(one["version"]) for one in agents)
        yield Pause(min(versions), max(versions), lambda: state, versions)
        self.kept_at = time.monotonic()

    def kept(self, agent: int) -> State | None:
        """Return an agent's part of the state; a worker's is how much of its work its server's state holds."""
        if not self.is_worker(agent):
            return self.states.get(agent)
        (server,) = self.crew.specs[agent].neighbors
        state = self.states[server]
        return {"version": state["arrived"][agent], "progress": state["progress"]}
