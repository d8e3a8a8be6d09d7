"""When the driver keeps a run's state, and from what: a cut of the schedule, or each live agent's newest state."""

import contextlib
import time
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import ray
from ray.exceptions import RayError

from ray_pcasgd.agents.participant import LearnerSpec
from ray_pcasgd.base.state import State, pace
from ray_pcasgd.engines.base import Leaving, Pause
from ray_pcasgd.engines.messages import LostError
from ray_pcasgd.engines.ray.actor_group import ActorGroup
from ray_pcasgd.engines.ray.agent_state import AgentState
from ray_pcasgd.engines.ray.cuts import Restored, fetched, join_parts
from ray_pcasgd.records import StepReport
from ray_pcasgd.schedule.scheduler import Cut


class PlannedStates:
    """Cuts a planned run's schedule from time to time, and joins what the agents give at the cut."""

    def __init__(self, group: ActorGroup, scheduler: Any, state_seconds: float, leaving: Leaving) -> None:
        self._group = group
        self._scheduler = scheduler
        self._state_seconds = state_seconds
        """How often the schedule is cut."""
        self._leaving = leaving
        self._cut: Cut | None = None
        self._parts: dict[int, AgentState] = {}
        self._cut_at = time.monotonic()
        self.cost_seconds = 0.0
        """What the last state took: its slowest agent to give its part, and the driver to join and to keep it."""

    def take(self, part: AgentState) -> None:
        """Take in an agent's part of the state."""
        self._parts[part.agent] = part

    def pauses(self, training: Collection[int], started_at: float) -> Iterator[Pause]:
        """Cut the schedule if it is time; yield a pause once all agents have come to the cut.

        Args:
            training: Agents that have steps left.
            started_at: When training began, in wall-clock seconds.

        """
        try:
            if self._cut is None:
                self._cut_if_due()
                return
            began = time.monotonic()
            # Those who have taken their last step come to no cut any more.
            for agent in self._group.actors.keys() - self._parts.keys() - set(training):
                self._parts[agent] = self._answer(self._group.actors[agent].own_part.remote(self._cut))
            if len(self._parts) < len(self._group.actors):
                return
            parts = [self._parts[agent] for agent in sorted(self._parts)]
            state = join_parts(self._cut, parts, time.time() - started_at, self._group.driving.answer_seconds)
        except (RayError, LostError):
            # An agent is lost, of which its own call says more.
            self._cut, self._cut_at = None, time.monotonic()
            return
        versions = [part.version for part in parts]
        yield Pause(min(versions), max(versions), lambda: state)
        self._cut, self._cut_at = None, time.monotonic()
        self.cost_seconds = self._cut_at - began + max(part.seconds for part in parts)

    def _cut_if_due(self) -> None:
        is_due = time.monotonic() - self._cut_at >= pace(self._state_seconds, self.cost_seconds)
        if is_due or self._leaving.is_asked:
            self._parts = {}
            self._cut = self._answer(self._scheduler.cut.remote())

    def _answer(self, call: Any) -> Any:
        return ray.get(call, timeout=self._group.driving.answer_seconds)


class LiveStates:
    """Keeps the newest state that each live agent has given, and how far each is known to have come."""

    def __init__(
        self, specs: Sequence[LearnerSpec], state: State | None, state_seconds: float | None, leaving: Leaving
    ) -> None:
        self._specs = specs
        self._state_seconds = state_seconds
        """How often the run's state is kept; ``None`` where its agents give none."""
        self._leaving = leaving
        self._kept_at = time.monotonic()
        kept = [None] * len(specs) if state is None else state["agents"]
        self.versions = [0 if own is None else int(own["version"]) for own in kept]
        """What each agent is known to have come to."""
        self.progress = [0] * len(specs)
        """The steps of its own that each is known to have taken."""
        # A worker's part is its version alone.
        known = {agent: own for agent, own in enumerate(kept) if own is not None}
        self._states: dict[int, State] = {k: own for k, own in known.items() if specs[k].family.counts}
        """Each agent's newest part of the run's state."""

    def has(self, agent: int) -> bool:
        """Return whether an agent's state is kept."""
        return agent in self._states

    def take(self, part: AgentState, answer_seconds: float) -> None:
        """Take in an agent's part of the state."""
        with contextlib.suppress(
            RayError, LostError
        ):  # lost together with its agent, or that hangs; an older one stays
            self._states[part.agent] = fetched(part.state, answer_seconds) | {"isolated": part.is_isolated}

    def note(self, report: StepReport) -> None:
        """Take in how far an agent has come."""
        agent, step = report.row[:2]
        self.versions[agent] = max(self.versions[agent], step + 1)
        self.progress[agent] = max(self.progress[agent], report.progress)

    def restored(self, agent: int) -> Restored | None:
        """Return what an agent goes on from; ``None`` where nothing of it was kept."""
        if not self._specs[agent].family.has_states:
            return Restored({"steps": self.progress[agent]}, (), {}, False)
        state = self._states.get(agent)
        return None if state is None else Restored(state, (), {}, state.get("isolated", False))

    def pauses(self, there: Collection[int], started_at: float) -> Iterator[Pause]:
        """Yield a pause if it is time, and every agent that is there has given its part of the state.

        Args:
            there: Agents that take part, and those that have finished.
            started_at: When training began, in wall-clock seconds.

        Raises:
            KeyboardInterrupt: the run is to be left, and the parts are not there yet.

        """
        is_due = self._state_seconds is not None and time.monotonic() - self._kept_at >= self._state_seconds
        if self._state_seconds is None or not (is_due or self._leaving.is_asked):
            return
        if any(not self.has(agent) and self._specs[agent].family.counts for agent in there):
            if self._leaving.is_asked:
                raise KeyboardInterrupt  # no agent's part is asked for; the next ones may be long in coming
            return
        agents = [self._kept(agent) for agent in range(len(self._specs))]
        state = {"seconds": time.time() - started_at, "agents": agents}
        versions = tuple(0 if one is None else int(one["version"]) for one in agents)
        yield Pause(min(versions), max(versions), lambda: state, versions)
        self._kept_at = time.monotonic()

    def _kept(self, agent: int) -> State | None:
        """Return an agent's part of the state; a worker's is how much of its work its server's state holds."""
        if self._specs[agent].family.counts:
            return self._states.get(agent)
        (server,) = self._specs[agent].neighbors
        state = self._states[server]
        return {"version": state["arrived"][agent], "progress": state["progress"]}
