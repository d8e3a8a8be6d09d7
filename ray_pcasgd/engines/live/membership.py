"""Membership of a live run: what happens to its agents goes in, what the driver has to do about it comes out."""

from collections.abc import Collection, Mapping, Sequence

from ray_pcasgd.agents.participant import LearnerSpec
from ray_pcasgd.engines.base import InterruptionError, RunError
from ray_pcasgd.engines.live import agent_events as happened
from ray_pcasgd.engines.live import driver_actions as act
from ray_pcasgd.engines.live.commands import Command, Isolate, Join, Leave, SetDelay, agents_named
from ray_pcasgd.engines.live.presence import THERE, TRAINS, Presence
from ray_pcasgd.engines.live.timetable import Timetable
from ray_pcasgd.records import EventKind

RETURN_SECONDS = 60.0
"""Seconds that a run whose other agents are done waits for one whose actor is being made again."""


_COMMANDED: Mapping[str, EventKind] = {
    "delay": "command_delay",
    "isolate": "command_isolate",
    "heal": "command_heal",
    "leave": "command_leave",
    "join": "command_join",
}
"""The event that a command is, by its name."""


class Membership:
    """Where each agent of a live run is, and what follows from what happens to it.

    The driver's loop calls ``handle`` from its one thread, in the order in which things happen, and carries out the
    actions in the order in which they are returned.
    """

    def __init__(
        self,
        specs: Sequence[LearnerSpec],
        max_failures: int,
        absent: Collection[int] = (),
        unknown: Collection[int] = (),
        timetable: Timetable | None = None,
    ) -> None:
        """Begin a run.

        Args:
            specs: Of all agents.
            max_failures: How many lost agents and schedulers are made again; -1: any number.
            absent: Agents that are not there until an operator lets them join.
            unknown: Agents of a resumed run of which nothing was kept.
            timetable: When agents leave and come back by the run's settings; ``None``: they do not. Those whom it has
                as absent are not there, whatever was kept of them.

        """
        self._timetable = timetable or Timetable()
        self._specs = specs
        self._families = [spec.family for spec in specs]
        self._max_failures = max_failures
        self.failures = 0
        """Agents and schedulers that were lost."""
        self.presence = [Presence.STARTING for _ in specs]
        those = ((Presence.AWAY, absent), (Presence.UNKNOWN, unknown), (Presence.AWAY, self._timetable.absent))
        for presence, agents in those:
            for agent in agents:
                self.presence[agent] = presence
        self._alone_since: float | None = None
        """Since when no agent trains, while one is being made again."""

    def those(self, *presences: Presence) -> tuple[int, ...]:
        """Return the agents with one of these presences, sorted."""
        return tuple(agent for agent, presence in enumerate(self.presence) if presence in presences)

    @property
    def training(self) -> tuple[int, ...]:
        """The agents that train, those included that were asked to leave."""
        return self.those(*TRAINS)

    @property
    def there(self) -> tuple[int, ...]:
        """The agents whose actors take messages."""
        return self.those(*THERE)

    def handle(self, event: happened.AgentEvent, now: float) -> list[act.DriverAction]:
        """Take in an event; return what has to be done, in this order; ``now`` is in seconds of a monotonic clock."""
        match event:
            case happened.Starting():
                return [act.Announce("agent_left", k, self._why_absent(k)) for k in self.those(Presence.AWAY)]
            case happened.Began(lost):
                return self._begin(lost)
            case happened.Finished(agent):
                return self._finish(agent)
            case happened.Lost(agent, error):
                return self._lose(agent, error)
            case happened.Failed(agent, failure):
                return self._fail(agent, failure)
            case happened.Silent(agent):
                return [act.Kill(agent)]
            case happened.Built(agent, place):
                self.presence[agent] = Presence.TRAINING
                spec = self._specs[agent]
                others = tuple(k for k in self.there if k in {*spec.neighbors, *spec.receivers})
                return [act.Announce("agent_started", agent, place), act.Rejoin(agent, others)]
            case happened.Asked(number, command):
                return self._obey(number, command)
            case happened.SchedulerLost(reason):
                return self._replace_scheduler(reason)
            case happened.Tick(second):
                return [*self._keep_time(second), *self._tick(now)]

    def _why_absent(self, agent: int) -> str:
        if agent not in self._timetable.absent:
            return f"agent {agent} has not joined yet; 'ray-pcasgd join' lets it come in"
        back_at = self._timetable.back_at(agent)
        until = "" if back_at is None else f" before second {back_at:g}"
        return f"agent {agent} is not there{until}, as membership says"

    def _begin(self, lost: Mapping[int, InterruptionError]) -> list[act.DriverAction]:
        unknown, absent = self.those(Presence.UNKNOWN), self.those(Presence.AWAY, Presence.UNKNOWN)
        for agent in self.those(Presence.STARTING):
            self.presence[agent] = Presence.AWAY if agent in lost else Presence.TRAINING
        actions: list[act.DriverAction] = [act.Train(self.training)]
        actions += [self._tell_lost(agent) for agent in absent]
        actions += [action for agent, error in lost.items() for action in self._lose(agent, error)]
        return actions + [self._make(agent) for agent in unknown]

    def _finish(self, agent: int) -> list[act.DriverAction]:
        family = self._families[agent]
        if self.presence[agent] is Presence.LEAVING:
            self.presence[agent] = Presence.AWAY
            # Peers tell each other, except those that do not read the peers to which they push shares.
            return [] if family.tells_neighbors and not family.pushes else [self._tell_lost(agent)]
        self.presence[agent] = Presence.FINISHED
        if not family.pushes:
            return []
        return [act.TellDone(agent, tuple(k for k in self.there if agent in self._specs[k].receivers))]

    def _lose(self, agent: int, error: InterruptionError) -> list[act.DriverAction]:
        if not self._families[agent].may_be_lost:
            return [act.End(error)]
        self.failures += 1
        self.presence[agent] = Presence.AWAY
        lost: list[act.DriverAction] = [
            act.Announce("agent_lost", agent, str(error)),
            self._tell_lost(agent),
            act.Forget(agent),
        ]
        return lost if self._has_lost_too_many else [*lost, self._make(agent)]

    def _fail(self, agent: int, error: Exception) -> list[act.DriverAction]:
        was, self.presence[agent] = self.presence[agent], Presence.AWAY
        if was is Presence.RETURNING:
            error = RunError(f"agent {agent} could not be built again: {error}")
        return [act.Stop(self.training), act.End(error)]

    def _replace_scheduler(self, reason: str) -> list[act.DriverAction]:
        self.failures += 1
        lost = act.Announce("scheduler_lost", -1, f"the scheduler was lost: {reason}")
        if not self._has_lost_too_many:
            return [lost, act.ReplaceScheduler()]
        allowed = f"allowed are max_failures = {self._max_failures}"
        return [lost, act.End(RunError(f"the scheduler was lost; {allowed} ({reason})"))]

    @property
    def _has_lost_too_many(self) -> bool:
        return 0 <= self._max_failures < self.failures

    def _make(self, agent: int) -> act.Make:
        self.presence[agent] = Presence.RETURNING
        return act.Make(agent)

    def _tell_lost(self, agent: int) -> act.TellLost:
        specs = self._specs
        return act.TellLost(agent, tuple(k for k in self.there if agent in {*specs[k].neighbors, *specs[k].receivers}))

    def _obey(self, number: int, command: Command) -> list[act.DriverAction]:
        if (refusal := self.refusal(command)) is not None:
            return [act.Answer(number, f"refused: {refusal}")]
        said = command.describe()
        done: list[act.DriverAction] = [act.Answer(number, said), act.Announce(_COMMANDED[command.name], -1, said)]
        if isinstance(command, Leave | Join):
            return [*done, *self._change(command)]
        return [*done, act.ChangeLinks(command, self.there)]

    def _change(self, command: Leave | Join) -> list[act.DriverAction]:
        agent = command.agent
        if isinstance(command, Join):
            return [act.Forget(agent), self._make(agent)]
        self.presence[agent] = Presence.LEAVING
        return [act.AskToLeave(agent)]

    def _keep_time(self, second: float) -> list[act.DriverAction]:
        """Return what the settings ask for by now."""
        actions: list[act.DriverAction] = []
        for turn in self._timetable.due(second, self.presence):
            command = Join(agent=turn.agent) if turn.is_back else Leave(agent=turn.agent)
            detail = f"{command.describe()} at second {turn.second:g}, as membership says"
            actions += [act.Announce(_COMMANDED[command.name], -1, detail), *self._change(command)]
        return actions

    def refusal(self, command: Command) -> str | None:
        """Return why a command cannot be carried out; ``None`` where it can."""
        unknown = [agent for agent in agents_named(command) if not 0 <= agent < len(self._specs)]
        if unknown:
            return f"agent {unknown[0]}; allowed are 0 to {len(self._specs) - 1}"
        family = self._families[0]
        if isinstance(command, Isolate) and not family.may_be_isolated:
            if family.pushes:
                return "isolate: allowed are algorithms without push-sum, whose mass would be lost with the messages"
            return "isolate: allowed are runs between peers"
        if isinstance(command, SetDelay) and not family.holds_in_steps and command.entry.unit != "seconds":
            return "delay in steps: allowed with ad-psgd is seconds; pairs average what both have at that moment"
        if not isinstance(command, Leave | Join):
            return None
        agent, presence = command.agent, self.presence[command.agent]
        if not self._families[agent].may_be_lost:
            return f"{command.name}: allowed are workers; agent {agent} is a server"
        if isinstance(command, Leave) and presence not in TRAINS:
            return f"agent {agent} does not train"
        if isinstance(command, Join) and presence is not Presence.AWAY:
            return f"agent {agent} takes part already, or is coming back"
        return None

    def _tick(self, now: float) -> list[act.DriverAction]:
        """Return what ends the run, if it has come to its end."""
        workers = {agent for agent, family in enumerate(self._families) if not family.counts}
        away = self.those(Presence.AWAY)
        is_awaited = any(self._timetable.returns(agent) for agent in away)
        if workers and workers <= {*away} and not is_awaited:
            return [act.Stop(self.training), act.End(RunError("every worker was lost, or has left"))]
        if self.training:
            self._alone_since = None
            return []
        finished = self.those(Presence.FINISHED)
        servers_are_done = any(not self._families[agent].may_be_lost for agent in finished)
        if is_awaited and not servers_are_done:
            self._alone_since = None
            return []
        if self.those(Presence.RETURNING) and not servers_are_done:
            self._alone_since = now if self._alone_since is None else self._alone_since
            if now - self._alone_since < RETURN_SECONDS:
                return []
        return [act.End(None if finished else RunError("every agent was lost"))]
