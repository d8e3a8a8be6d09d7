"""The status of a run on actors: the step of each agent, the staleness of what it reads, and which agents are lost."""

import json
import math
import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from ray_pcasgd.base.text import one_line
from ray_pcasgd.engines.ray.status_curves import MOST_POINTS, Evaluation, LossCurve, with_tested
from ray_pcasgd.records import Event, StepReport

LEFT = {"agent_lost": "lost", "agent_isolated": "isolated", "agent_left": "has left"}
"""Kinds of events after which an agent is not there, and what is said of it then."""
_SMOOTHING = 0.1
"""Weight of the last step in the mean of an agent's step times."""
_EVENTS = 20
"""Number of events that are kept, the newest ones."""


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
    """Of what it read last of each neighbor, in versions: steps, or rounds where these have local steps."""
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
        self.num_events = 0
        self.steps_taken = 0
        """Of all agents that learn, since their first reports."""
        self.tested: list[Evaluation] = []
        """The averaged model's test figures so far; of a run with servers, of their model."""
        self._losses = LossCurve()
        self._ended_at: dict[int, float] = {}

    def take(self, report: StepReport | Event) -> None:
        """Take in a report or an event."""
        if isinstance(report, StepReport):
            self._take_step(report)
            return
        self.events = [*self.events, report][-_EVENTS:]
        self.num_events += 1
        if report.kind in LEFT:
            self.agents[report.agent].health = LEFT[report.kind]
            self._ended_at.pop(report.agent, None)

    def _take_step(self, report: StepReport) -> None:
        status, ended_at = self.agents[report.row.agent], self._ended_at.get(report.row.agent)
        if ended_at is not None:
            # A round of local steps has one report.
            taken = max(1, report.progress - status.step) if self.about.get("has_rounds") else 1
            spent = max(0.0, report.wall_seconds - ended_at) / taken
            status.step_seconds += _SMOOTHING * (spent - status.step_seconds) if status.step_seconds else spent
        self._ended_at[report.row.agent] = report.wall_seconds
        # Who comes back may go on from anywhere.
        is_learner = report.row.agent < len(self.agents) - self.about["num_servers"]
        if is_learner and status.health == "training":
            self.steps_taken += max(0, report.progress - status.step)
        status.step, status.loss, status.heard_at = report.progress, report.loss, time.time()
        status.staleness |= {read.neighbor: read.staleness for read in report.row.reads}
        status.health = "finished" if report.progress >= self.about["num_steps"] else "training"
        # With servers, the run's steps are the servers' updates, not the workers' gradients.
        if not (is_learner and self.about["num_servers"]):
            self._losses.take(report.progress, report.loss)

    def evaluated(self, step: int, figures: Mapping[str, float]) -> None:
        """Take in the averaged model's test figures."""
        self.tested = with_tested(self.tested, step, figures)

    def _common_step(self) -> int | None:
        """Return the step that half of the agents in the curve have reached: a mean of the fastest few says little.

        ``None`` before the first steps, and with servers, whose updates are the run's.
        """
        if self.about["num_servers"]:
            return None
        steps = [status.step for status in self.agents if status.step and status.health in ("training", "finished")]
        return statistics.median_low(steps) if steps else None

    def view(self) -> str:
        """Return everything, as JSON; see ``RunView``."""
        agents = [asdict(status) | {"loss": _finite(status.loss)} for status in self.agents]
        events, tested = ([one._asdict() for one in some] for some in (self.events, self.tested))
        counts = {"num_events": self.num_events, "steps_taken": self.steps_taken}
        curves = {"losses": self._losses.points(self._common_step()), "tested": tested}
        tree = {**self.about, "agents": agents, "events": events, **counts, **curves}
        return json.dumps(tree, default=float)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


_LONGEST_VIEW = 64 * 2**20
"""Characters; a run of a thousand agents, all neighbors, has 15 million."""
_Text = Annotated[str, AfterValidator(lambda text: one_line(text, 2000))]
_Number = Annotated[float, Field(allow_inf_nan=False)]
_Count = Annotated[int, Field(ge=-(10**15), le=10**15)]


class _Plain(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)


class AgentView(_Plain):
    """One agent, as others see it; see ``AgentStatus``."""

    agent: _Count
    step: _Count
    loss: _Number | None
    step_seconds: _Number
    staleness: dict[_Count, _Count]
    health: _Text
    heard_at: _Number | None


class EventView(_Plain):
    """One event, as others see it."""

    kind: _Text
    agent: _Count
    step: _Count
    detail: _Text


class EvaluationView(_Plain):
    """Test figures, as others see them."""

    step: _Count
    figures: dict[_Text, _Number]


class RunView(_Plain):
    """A run's status as it travels: its reader checks it against this."""

    run: _Text
    algorithm: _Text
    mode: _Text
    num_steps: _Count
    num_servers: _Count
    """How many of the agents are servers; these come last."""
    has_rounds: bool = False
    """Whether agents take local steps from one version to the next, so that staleness counts rounds."""
    clusters: list[_Count]
    """The cluster of each agent."""
    agents: list[AgentView]
    events: list[EventView] = Field(max_length=_EVENTS)
    """The newest ones."""
    num_events: _Count
    """How many there were so far."""
    steps_taken: _Count
    """Steps of all agents that learn, since their first reports."""
    losses: list[tuple[_Count, _Number]] = Field(max_length=MOST_POINTS)
    """Steps, and the mean training loss there."""
    tested: list[EvaluationView] = Field(max_length=MOST_POINTS)
    """The averaged model's test figures so far."""


def viewed(text: Any) -> dict[str, Any]:
    """Return the status that came as a text; empty where the run has shown none yet.

    Raises:
        ValueError: it is no status.

    """
    if not isinstance(text, str) or len(text) > _LONGEST_VIEW:
        raise ValueError("the answer is not a run's status")
    try:
        return RunView.model_validate_json(text).model_dump() if text else {}
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(f"the answer is not a run's status ({place}: {one_line(first['msg'], 200)})") from None
