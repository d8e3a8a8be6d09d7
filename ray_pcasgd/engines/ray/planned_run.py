"""A planned run on actors: each waits for exactly the versions that its rows name, so lost steps can be taken again."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import ray
from ray.exceptions import RayError

from ray_pcasgd.base.state import State, pace
from ray_pcasgd.engines.base import InterruptionError, Leaving, Pause, Report
from ray_pcasgd.engines.failures import restoring
from ray_pcasgd.engines.ray.collecting import Collector
from ray_pcasgd.engines.ray.crew import ActorGroup, failure
from ray_pcasgd.engines.ray.cuts import AgentState, join_parts, restored_parts
from ray_pcasgd.engines.ray.life import Heartbeats
from ray_pcasgd.engines.ray.lost import first_line
from ray_pcasgd.engines.transport import LostError
from ray_pcasgd.records import Event
from ray_pcasgd.schedule.scheduler import Cut, Schedule

POLL_SECONDS = 0.1
"""How often the driver asks for reports while agents train."""


class PlannedRun:
    """Drives the actors of a planned run, and cuts its schedule from time to time to keep the run's state."""

    def __init__(
        self, crew: ActorGroup, schedule: Schedule, state_seconds: float | None, state: State | None, leaving: Leaving
    ) -> None:
        self.crew = crew
        self.leaving = leaving
        self.state_seconds = state_seconds
        """How often the schedule is cut, in seconds; ``None`` where the run's agents have no state to give."""
        self.started_at = time.time() - (0.0 if state is None else state["seconds"])
        scheduler = crew.make_scheduler(schedule, 0 if state is None else state["rows"])
        with restoring():
            restored = [None] * len(crew.specs) if state is None else restored_parts(state)
        for agent, own in enumerate(restored):
            crew.make(agent, None, own)
        self.scheduler = scheduler
        self.collector = Collector(scheduler, len(crew.specs), crew.driving.answer_seconds)
        self.training: dict[Any, int] = {}
        self.life = Heartbeats(crew)
        self.cut: Cut | None = None
        self.parts: dict[int, AgentState] = {}
        self.cut_at = time.monotonic()
        self.cost_seconds = 0.0
        """What the last state took to join and to keep."""

    def reports(self) -> Iterator[Report]:
        """Let all agents train, and yield what they say."""
        yield from self.crew.started()
        for lost in self.crew.connect().values():
            raise lost
        self.training = {actor.train.remote(self.started_at): agent for agent, actor in self.crew.actors.items()}
        failures: list[Exception] = []
        while self.training and not failures:
            done, _ = ray.wait(list(self.training), num_returns=len(self.training), timeout=POLL_SECONDS)
            ended = [failure(call, self.training.pop(call)) for call in done]
            failures = [error for error in ended if error is not None]
            yield from self.drain()
            # Mostly the agents that wait for a silent one report it first; for the last rows no agent waits.
            for agent in self.life.missing(self.training.values()):
                failures.append(InterruptionError(f"agent {agent} has not answered for {self.life.seconds:g} s", agent))
            if not failures:
                self.leaving.give_up()
                self.refuse_commands()
                yield from self.pauses()
        if failures:
            # What has no remedy goes first: others wait in vain for an agent whose loss is not finite.
            error = min(failures, key=lambda error: isinstance(error, InterruptionError))
            if not isinstance(error, InterruptionError):
                self.crew.stop([*self.training.values()], [*self.training])
            yield from self.drain()
            raise error

    def drain(self) -> Iterator[Report]:
        """Yield what agents have said; keep their parts of the state.

        Raises:
            InterruptionError: the scheduler was lost, or an evaluation together with its agent.

        """
        try:
            said = self.collector.drain()
        except RayError as error:
            raise InterruptionError(f"the scheduler was lost: {first_line(error)}") from error
        for one in said:
            if isinstance(one, AgentState):
                self.parts[one.agent] = one
            elif isinstance(one, Event) and one.kind == "evaluation_lost":
                raise InterruptionError(one.detail, one.agent)
            else:
                yield one

    def refuse_commands(self) -> None:
        """Refuse operators' commands, since a planned run follows its schedule."""
        with contextlib.suppress(RayError):  # draining finds out that the scheduler is lost
            asked: Any = self.scheduler.commands.remote()
            for number, command in ray.get(asked, timeout=self.crew.driving.answer_seconds):
                reason = f"refused: {command.name}: a planned run follows its schedule; allowed are live runs"
                self.scheduler.answer.remote(number, reason)

    def pauses(self) -> Iterator[Pause]:
        """Cut the schedule if it is time; yield a pause once all agents have come to the cut."""
        if self.state_seconds is None:
            return
        try:
            if self.cut is None:
                is_due = time.monotonic() - self.cut_at >= pace(self.state_seconds, self.cost_seconds)
                if is_due or self.leaving.is_asked:
                    self.parts = {}
                    asked: Any = self.scheduler.cut.remote()
                    self.cut = ray.get(asked, timeout=self.crew.driving.answer_seconds)
                return
            began = time.monotonic()
            # Those who have taken their last step come to no cut any more.
            for agent in self.crew.actors.keys() - self.parts.keys() - set(self.training.values()):
                asked = self.crew.actors[agent].own_part.remote(self.cut)
                self.parts[agent] = ray.get(asked, timeout=self.crew.driving.answer_seconds)
            if len(self.parts) < len(self.crew.actors):
                return
            parts = [self.parts[agent] for agent in sorted(self.parts)]
            seconds = time.time() - self.started_at
            state = join_parts(self.cut, parts, seconds, self.crew.driving.answer_seconds)
        except (RayError, LostError):
            # An agent is lost, of which its own call says more.
            self.cut, self.cut_at = None, time.monotonic()
            return
        versions = [part.version for part in parts]
        yield Pause(min(versions), max(versions), lambda: state)
        self.cut, self.cut_at = None, time.monotonic()
        self.cost_seconds = self.cut_at - began
