"""The driver's loop of a run on actors: it polls Ray and carries out what follows, in planned runs and in live ones."""

import contextlib
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import grpc
import ray
from ray.exceptions import RayError

from ray_pcasgd.base.state import State
from ray_pcasgd.base.text import one_line
from ray_pcasgd.engines.base import InterruptionError, Leaving, Pause, Report, RunError
from ray_pcasgd.engines.failures import restoring
from ray_pcasgd.engines.live import agent_events as happened
from ray_pcasgd.engines.live import driver_actions as act
from ray_pcasgd.engines.live.commands import Command, decoded
from ray_pcasgd.engines.live.injection import InjectedDelays
from ray_pcasgd.engines.live.membership import Membership
from ray_pcasgd.engines.live.presence import Presence
from ray_pcasgd.engines.live.timetable import Timetable
from ray_pcasgd.engines.ray.actor_group import ActorGroup, Heartbeats, failure
from ray_pcasgd.engines.ray.agent_state import AgentState
from ray_pcasgd.engines.ray.board import Board
from ray_pcasgd.engines.ray.cuts import restored_parts
from ray_pcasgd.engines.ray.lost import first_line
from ray_pcasgd.engines.ray.reports import Collector
from ray_pcasgd.engines.ray.state_keeper import LiveStates, PlannedStates
from ray_pcasgd.records import Event, StepReport
from ray_pcasgd.schedule.membership import Away
from ray_pcasgd.schedule.scheduler import Recorded, Schedule

POLL_SECONDS = 0.1
"""How often the driver asks for reports while agents train."""
ADOPT_SECONDS = 30.0
"""Longest wait for agents that are there to take in a new scheduler."""
_LONGEST_REASON = 300
"""Characters of why a command is refused."""


class Supervisor:
    """Polls the actors of a run from the driver's one thread."""

    def __init__(
        self,
        group: ActorGroup,
        board: Board,
        schedule: Schedule,
        first_row: int,
        state: State | None,
        leaving: Leaving,
    ) -> None:
        self.group = group
        self.board = board
        self.leaving = leaving
        self._seconds_before = 0.0 if state is None else state["seconds"]
        self.begin()
        scheduler = group.make_scheduler(schedule, first_row)
        self.collector = Collector(scheduler, len(group.specs), group.driving.answer_seconds)
        self.heartbeats = Heartbeats(group)
        self.calls: dict[Any, int] = {}
        """Calls that have not returned yet, and whose they are."""

    def begin(self) -> None:
        """Count the run's seconds from now on: what it takes to build actors is not training."""
        self.started_at = time.time() - self._seconds_before

    def ended_calls(self) -> list[tuple[Any, int]]:
        """Return the calls that have returned, after a while where none has."""
        if not self.calls:  # whoever trains next is still to come back
            threading.Event().wait(POLL_SECONDS)
            return []
        done, _ = ray.wait(list(self.calls), num_returns=len(self.calls), timeout=POLL_SECONDS)
        return [(call, self.calls.pop(call)) for call in done]

    def commands(self) -> list[tuple[int, Command]]:
        """Return operators' new commands, with the numbers by which they are answered."""
        commands: list[tuple[int, Command]] = []
        with contextlib.suppress(grpc.RpcError):  # the head may be made anew; whoever asks is told that none answers
            for number, text in self.board.asked():
                try:
                    commands.append((number, decoded(text)))
                except ValueError as error:
                    self.answer(number, f"refused: {one_line(error, _LONGEST_REASON)}")
        return commands

    def answer(self, number: int, text: str) -> None:
        """Answer a command."""
        with contextlib.suppress(grpc.RpcError):
            self.board.answer(number, text)


class PlannedSupervisor(Supervisor):
    """Drives a planned run: each agent waits for exactly the versions that its rows name.

    Whatever is lost ends it, since its steps can be taken again from its last state.
    """

    def __init__(
        self,
        group: ActorGroup,
        board: Board,
        schedule: Schedule,
        state_seconds: float | None,
        state: State | None,
        leaving: Leaving,
    ) -> None:
        super().__init__(group, board, schedule, 0 if state is None else state["rows"], state, leaving)
        with restoring():
            restored = [None] * len(group.specs) if state is None else restored_parts(state)
        for agent, own in enumerate(restored):
            group.make(agent, None, own)
        scheduler = self.collector.scheduler
        self.states = None if state_seconds is None else PlannedStates(group, scheduler, state_seconds, leaving)
        """``None`` where the run's agents have no state to give."""

    def reports(self) -> Iterator[Report]:
        """Let all agents train, and yield what they report."""
        yield from self.group.started()
        for lost in self.group.connect().values():
            raise lost
        self.begin()
        self.calls = {actor.train.remote(self.started_at): agent for agent, actor in self.group.actors.items()}
        failures: list[Exception] = []
        while self.calls and not failures:
            ended = [failure(call, agent) for call, agent in self.ended_calls()]
            failures = [error for error in ended if error is not None]
            yield from self.drain()
            # Mostly the agents that wait for a silent one report it first; for the last rows no agent waits.
            for agent in self.heartbeats.missing(self.calls.values()):
                seconds = self.heartbeats.seconds
                failures.append(InterruptionError(f"agent {agent} has not answered for {seconds:g} s", agent))
            if not failures:
                self.leaving.give_up()
                self.refuse_commands()
                yield from self.pauses()
        if failures:
            # What has no remedy goes first: others wait in vain for an agent whose loss is not finite.
            error = min(failures, key=lambda error: isinstance(error, InterruptionError))
            if not isinstance(error, InterruptionError):
                self.group.stop([*self.calls.values()], [*self.calls])
            yield from self.drain()
            raise error

    def drain(self) -> Iterator[Report]:
        """Yield what agents have reported; keep their parts of the state.

        Raises:
            InterruptionError: the scheduler was lost, or an evaluation together with its agent.

        """
        try:
            said = self.collector.drain()
        except RayError as error:
            raise InterruptionError(f"the scheduler was lost: {first_line(error)}") from error
        for one in said:
            if isinstance(one, AgentState):
                if self.states is not None:
                    self.states.take(one)
            elif isinstance(one, Event) and one.kind == "evaluation_lost":
                raise InterruptionError(one.detail, one.agent)
            else:
                yield one

    def refuse_commands(self) -> None:
        """Refuse operators' commands, since a planned run follows its schedule."""
        for number, command in self.commands():
            reason = f"refused: {command.name}: a planned run follows its schedule; allowed are live runs"
            self.answer(number, reason)

    def pauses(self) -> Iterator[Pause]:
        """Yield a pause where the run's state can be kept."""
        if self.states is not None:
            yield from self.states.pauses(self.calls.values(), self.started_at)


class LiveSupervisor(Supervisor):
    """Drives a live run: agents that are lost are made again, and the others do not wait for them.

    What happens becomes an event of ``Membership``, whose actions it carries out.
    """

    def __init__(
        self,
        group: ActorGroup,
        board: Board,
        injection: InjectedDelays,
        max_failures: int,
        state_seconds: float | None,
        state: State | None,
        absent: Collection[int],
        away: Sequence[Away],
        leaving: Leaving,
    ) -> None:
        """Make the scheduler and the first actors.

        Args:
            group: The run's actors.
            board: Where operators' commands come.
            injection: What is added to the real network and the real machines.
            max_failures: How many lost agents and schedulers are made again; -1: any number.
            state_seconds: How often the run's state is kept; ``None`` where its agents give none.
            state: From which the run goes on.
            absent: Agents that are not there until an operator lets them join.
            away: Who else is not there when, in seconds of the run.
            leaving: Whether the run is to be left.

        """
        super().__init__(group, board, Recorded(), 0, state, leaving)
        self.injection = injection
        self.is_resumable = state_seconds is not None
        self.states = states = LiveStates(group.specs, state, state_seconds, leaving)
        without = {agent for agent in range(len(group.specs)) if not states.has(agent)}
        # Agents without a kept state come back into a resumed run as the mean of the others, or with their servers'.
        unknown = {k for k in without if state is not None and (k not in absent or states.versions[k])}
        absent = without.intersection(absent) - unknown
        timetable = Timetable(away, 0.0 if state is None else state["seconds"])
        self.membership = Membership(group.specs, max_failures, absent, unknown, timetable)
        self.is_over = False
        for agent in self.membership.those(Presence.STARTING):
            group.make(agent, injection, states.restored(agent))

    def reports(self) -> Iterator[Report]:
        """Let all agents train, and yield what they report."""
        try:
            yield from self.start()
            while not self.is_over:
                yield from self.poll()
                yield from self.handle(self.tick())
        except InterruptionError as interruption:
            # It goes on from its server's state, or begins anew before anything was done.
            has_servers = not self.group.specs[0].family.counts
            if has_servers and (self.is_resumable or not any(self.states.versions)):
                raise
            raise RunError(str(interruption)) from interruption

    def start(self) -> Iterator[Report]:
        """Wait until the actors are built, and let them begin; those that are lost meanwhile are made again."""
        yield from self.handle(happened.Starting())
        places = self.group.places()
        yield from self.await_scheduler()
        lost: dict[int, InterruptionError] = {}
        for agent, place in places.items():
            try:
                yield self.group.agent_started(agent, place)
            except InterruptionError as interruption:
                lost[agent] = interruption
        lost |= self.group.connect(absent=lost)
        yield from self.drain()
        self.begin()
        yield from self.handle(happened.Began(lost))
        yield from self.handle(self.tick())

    def poll(self) -> Iterator[Report]:
        """Take in what has happened since the last time, and carry out what follows."""
        ended = self.ended_calls()
        yield from self.drain()  # first, so that the last steps of an agent that is lost count
        # Those whose actor was built come last, so that they are not told of others that are gone by now.
        for call, agent in sorted(ended, key=lambda one: self.is_returning(one[1])):
            yield from self.handle(self.ending(call, agent))
        for agent in self.heartbeats.missing(self.membership.training):
            yield from self.handle(happened.Silent(agent))
        for number, command in self.commands():
            yield from self.handle(happened.Asked(number, command))
        yield from self.states.pauses(self.membership.there, self.started_at)
        self.leaving.give_up()

    def tick(self) -> happened.Tick:
        """Return that time has passed."""
        return happened.Tick(time.time() - self.started_at)

    def is_returning(self, agent: int) -> bool:
        """Return whether an agent's actor is being made again."""
        return self.membership.presence[agent] is Presence.RETURNING

    def ending(self, call: Any, agent: int) -> happened.AgentEvent:
        """Return what it means that a call has returned: an agent's training, or the building of its new actor."""
        error = failure(call, agent)
        if isinstance(error, InterruptionError):
            return happened.Lost(agent, error)
        if error is not None:
            return happened.Failed(agent, error)
        if self.is_returning(agent):
            return happened.Built(agent, ray.get(call))
        return happened.Finished(agent)

    def handle(self, event: happened.AgentEvent) -> Iterator[Report]:
        """Carry out what follows from an event."""
        for action in self.membership.handle(event, time.monotonic()):
            yield from self.execute(action)

    def execute(self, action: act.DriverAction) -> Iterator[Report]:
        """Carry out one action."""
        actors, scheduler = self.group.actors, self.collector.scheduler
        match action:
            case act.Announce(kind, agent, detail):
                yield Event(kind, agent, self.states.versions[agent] if agent >= 0 else -1, detail)
            case act.Train(agents):
                self.calls |= {actors[agent].train.remote(self.started_at): agent for agent in agents}
            case act.Make(agent):
                self.make(agent)
            case act.Rejoin(agent, others):
                at_least = self.states.versions[agent] + 1
                call: Any = actors[agent].come_back.remote({k: actors[k] for k in others}, self.started_at, at_least)
                self.calls[call] = agent
            case act.AskToLeave(agent):
                actors[agent].leave.remote()
            case act.TellLost(agent, to):
                for other in to:
                    actors[other].neighbor_lost.remote(agent)
            case act.TellDone(agent, to):
                for other in to:
                    actors[other].neighbor_done.remote(agent)
            case act.Forget(agent):
                scheduler.forget.remote(agent)
            case act.Kill(agent):
                ray.kill(actors[agent])
            case act.ChangeLinks(command, to):
                self.injection = self.injection.changed(self.injection.changes.after(command))
                for agent in to:
                    actors[agent].change_links.remote(self.injection)
            case act.Answer(number, text):
                self.answer(number, text)
            case act.ReplaceScheduler():
                yield from self.replace_scheduler()
            case act.Stop(agents):
                self.group.stop(agents, [call for call, agent in self.calls.items() if agent in agents])
                yield from self.drain()
            case act.End(error):
                if error is not None:
                    raise error
                self.is_over = True

    def make(self, agent: int) -> None:
        """Make an agent's actor again; the call returns once there is room for it and it is built."""
        if agent in self.group.actors:
            ray.kill(self.group.actors[agent])
        call = self.collector.next_call(agent)
        made = self.group.make(agent, self.injection, self.states.restored(agent), call)
        self.calls[made.ready.remote()] = agent

    def await_scheduler(self) -> Iterator[Report]:
        """Wait until the scheduler is there, or another one in its place."""
        try:
            yield self.group.scheduler_started()
        except InterruptionError as error:
            yield from self.handle(happened.SchedulerLost(first_line(error)))

    def replace_scheduler(self) -> Iterator[Report]:
        """Put another scheduler in place of a lost one; agents report again what it may have taken with it."""
        scheduler = self.group.make_scheduler(Recorded())
        self.collector.replace(scheduler)
        # Those who are being made again were told of the lost one, too; they take the new one in once they are there.
        calls: dict[int, Any] = {agent: actor.adopt.remote(scheduler) for agent, actor in self.group.actors.items()}
        there = [calls[agent] for agent in self.membership.there]
        if there:
            ray.wait(there, num_returns=len(there), timeout=ADOPT_SECONDS)
        yield from self.await_scheduler()

    def drain(self) -> Iterator[Report]:
        """Yield what agents have reported; keep their parts of the state."""
        said = None
        while said is None:
            try:
                said = self.collector.drain()
            except RayError as error:
                yield from self.handle(happened.SchedulerLost(first_line(error)))
        for one in said:
            if isinstance(one, AgentState):
                self.states.take(one, self.group.driving.answer_seconds)
                continue
            if isinstance(one, StepReport):
                self.states.note(one)
            yield one
