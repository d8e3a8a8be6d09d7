"""How a run on its way is: what each agent has come to, how stale it reads, and who is there."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ray_pcasgd.records import Event, StepReport

_LEFT = {"agent_lost": "lost", "agent_isolated": "isolated", "agent_left": "has left"}
_SMOOTHING = 0.1
"""Weight of the last step in the mean of an agent's step times."""
_EVENTS = 20
"""The newest so many events are kept."""


@dataclass
class AgentStatus:
    """One agent, by its newest report."""

    agent: int
    step: int = 0
    """Steps taken."""
    loss: float = float("nan")
    """Of its newest mini-batch."""
    step_seconds: float = 0.0
    """Mean over its last steps."""
    staleness: dict[int, int] = field(default_factory=dict)
    """Of what it read last of each neighbor, in steps."""
    health: str = "starting"
    """starting, training, finished, lost, isolated or has left."""
    heard_at: float | None = None
    """Wall-clock seconds of its newest report (``time.time``)."""


class RunStatus:
    """Follows a run by what its agents report."""

    def __init__(self, about: Mapping[str, Any], num_agents: int) -> None:
        self.about = dict(about)
        self.agents = [AgentStatus(agent) for agent in range(num_agents)]
        self.events: list[Event] = []
        self._ended_at: dict[int, float] = {}

    def take(self, report: StepReport | Event) -> None:
        """Take in a report or an event."""
        if isinstance(report, StepReport):
            self._take_step(report)
            return
        self.events = [*self.events, report][-_EVENTS:]
        if report.kind in _LEFT:
            self.agents[report.agent].health = _LEFT[report.kind]

    def _take_step(self, report: StepReport) -> None:
        status, ended_at = self.agents[report.row.agent], self._ended_at.get(report.row.agent)
        if ended_at is not None:
            spent = max(0.0, report.wall_seconds - ended_at)
            status.step_seconds += _SMOOTHING * (spent - status.step_seconds) if status.step_seconds else spent
        self._ended_at[report.row.agent] = report.wall_seconds
        status.step, status.loss, status.heard_at = report.progress, report.loss, time.time()
        status.staleness |= {read.neighbor: read.staleness for read in report.row.reads}
        status.health = "finished" if report.progress >= self.about["num_steps"] else "training"

    def view(self) -> dict[str, Any]:
        """Return everything, as plain data."""
        agents = [asdict(status) for status in self.agents]
        return {**self.about, "agents": agents, "events": [event._asdict() for event in self.events]}
