"""Progress of a run, on a terminal or as plain lines: what each agent does, how fast, and the time left."""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ray_pcasgd.base.text import NOTHING, duration, format_value, main_metric, spoken
from ray_pcasgd.runs.pace import Pace

_FRAME_SECONDS = 0.25
_LINE_SECONDS = 5.0
_MOST_LINES = 50
"""In the log of a long run, each further line comes after this fraction of its time so far: one part in 50."""
_WINDOW = 20
"""Steps over which losses, staleness and choices are averaged, about, where they are shown."""
_OTHER_LINES = 7
"""Lines of the terminal that the table needs in addition to those of the agents."""


class Progress:
    """Shows a run live: one line per agent on a terminal, and lines of text every few seconds elsewhere.

    ``step`` costs about a microsecond; drawing happens in it at most four times a second, and in no other thread.

    Args:
        console: where to write; decides whether it is a terminal.
        num_agents: number of agents.
        num_servers: how many of them, the last ones, are servers; these alone say how far the run is.
        num_steps: steps that each agent takes.
        at_once: whether agents run at the same time, so that the slowest one decides how long it still takes;
            otherwise they share one process, and only the number of steps left counts.
        title: stands above the table and before each line.
        clock: seconds since any instant.

    """

    def __init__(
        self,
        console: Console,
        num_agents: int,
        num_steps: int,
        at_once: bool = False,
        title: str = "",
        clock: Callable[[], float] = time.perf_counter,
        num_servers: int = 0,
    ) -> None:
        self._console = console
        self._num_steps = num_steps
        self._at_once = at_once
        self._title = title
        self._clock = clock
        self._agents = [_Agent(str(number)) for number in range(num_agents)]
        self._leading = self._agents[num_agents - num_servers :] if num_servers else self._agents
        for place, server in enumerate(self._leading if num_servers else ()):
            server.name = "server" if num_servers == 1 else f"server {place}"
        self._averaged: dict[str, float] = {}
        self._averaged_step = 0
        self._reported = 0
        self._pace = Pace()
        self._first: float | None = None
        self._next = 0.0
        self._live: Live | None = None
        self._is_terminal = console.is_terminal and not console.is_dumb_terminal
        self._finished = False

    def step(
        self,
        agent: int,
        steps_taken: int,
        loss: float,
        staleness: float,
        predicting: float | None = None,
        counts: int = 1,
    ) -> None:
        """Take in one step of an agent.

        ``steps_taken`` counts it too, ``staleness`` is the mean over its reads, and ``predicting`` its choice in
        [0, 1], ``None`` where it made none. ``counts`` is for how many agent-steps it counts.
        """
        now = self._clock()
        if counts:
            self._pace.count(now, counts)
        if self._first is None:
            self._first = now
            self._next = now + (0 if self._is_terminal else _LINE_SECONDS)
        self._reported += 1
        self._agents[agent].step(steps_taken, loss, staleness, predicting)
        if now >= self._next:
            self._show(now)

    def evaluation(self, agent: int | None, metrics: Mapping[str, float], step: int) -> None:
        """Take in the test metrics of an agent at a step, or of the averaged model, which comes after its agents.

        They may come when the agents have taken further steps.
        """
        tested = {name if name.startswith("test_") else f"test_{name}": value for name, value in metrics.items()}
        if agent is not None:
            self._agents[agent].metrics = tested
            return
        self._averaged = tested
        self._averaged_step = step
        # One that fails has no figures, and an event says so.
        failed = bool(tested) and all(math.isnan(value) for value in tested.values())
        if not (self._is_terminal or failed):
            self._print(self._evaluation_line())

    def leave(self, agent: int) -> None:
        """Take in that an agent will take no more steps."""
        self._agents[agent].has_left = True

    def finish(self) -> None:
        """Show the last state, and end the display; a second call has no effect."""
        if self._finished:
            return
        self._finished = True
        now = self._clock()
        if self._live is not None:
            self._live.update(self._table(now), refresh=True)
            self._live.stop()
        if self._first is not None:
            taken = f"{self._pace.number} agent-steps in {duration(now - self._first)}"
            self._print(f"{taken}, {_rate_text(self._pace.rate)}")

    def seconds_left(self, now: float) -> float | None:
        """Return how long the run still takes, in seconds, at the speed so far; ``None`` as long as it is unknown."""
        if self._first is None or now <= self._first or self._reported < 2:
            return None
        elapsed = now - self._first
        going = [one for one in self._taking_part() if one.steps < self._num_steps]
        # The clock starts with the first report, which therefore does not count.
        if not self._at_once:
            rate = elapsed / max(1, sum(one.reported for one in self._leading) - 1)
            return sum(self._num_steps - one.steps for one in going) * rate
        if any(one.reported < 2 for one in going):
            return None
        return max(((self._num_steps - one.steps) * elapsed / (one.reported - 1) for one in going), default=0.0)

    def _taking_part(self) -> list["_Agent"]:
        return [one for one in self._leading if not one.has_left]

    def _show(self, now: float) -> None:
        if self._is_terminal:
            if self._live is None:
                self._live = Live(console=self._console, auto_refresh=False)
                self._live.start()
            self._live.update(self._table(now), refresh=True)
            # Counted from the end of the drawing, so that a slow terminal never takes all of the time.
            self._next = self._clock() + _FRAME_SECONDS
        else:
            self._print(self._step_line(now))
            assert self._first is not None
            self._next = now + max(_LINE_SECONDS, (now - self._first) / _MOST_LINES)

    def _print(self, line: str) -> None:
        prefix = f"{self._title}: " if self._title else ""
        self._console.print(f"{prefix}{line}", markup=False, highlight=False, soft_wrap=True)

    def _step_line(self, now: float) -> str:
        every = _mean_line(self._leading, "", None)
        parts = [f"step {every.steps} of {self._num_steps}", f"loss {format_value('loss', every.loss)}"]
        parts.append(f"staleness {format_value('staleness', every.staleness)}")
        if not math.isnan(every.predicting):
            parts.append(f"predicting {format_value('predicting_share', every.predicting)}")
        return ", ".join([*parts, _rate_text(self._pace.rate_at(now)), self._left_text(now)])

    def _evaluation_line(self) -> str:
        name = main_metric(self._averaged)
        if name is None:
            return f"step {self._averaged_step}: evaluated"
        values = [one.metrics[name] for one in self._taking_part() if name in one.metrics]
        model = "averaged model" if self._leading is self._agents else "server's model"
        line = f"step {self._averaged_step}: {spoken(name)} of the {model} {format_value(name, self._averaged[name])}"
        if not values or self._leading is not self._agents:
            return line
        low, mean, high = (format_value(name, value) for value in (min(values), sum(values) / len(values), max(values)))
        return f"{line}, of the agents {mean} ({low} to {high})"

    def _table(self, now: float) -> Group:
        metric = main_metric([*self._averaged, *(column for one in self._agents for column in one.metrics)])
        chooses = any(not math.isnan(one.predicting) for one in self._agents)
        table = Table(box=box.SIMPLE_HEAD, title=self._title or None, title_justify="left", pad_edge=False)
        for heading in ("agent", "step", "loss", spoken(metric or "test"), "staleness"):
            table.add_column(heading, justify="right", no_wrap=True)
        if chooses:
            table.add_column("predicting", justify="right", no_wrap=True)
        for line in self._lines(metric):
            cells = [line.name, line.steps, format_value("loss", line.loss), format_value(metric or "", line.tested)]
            cells += [format_value("staleness", line.staleness), format_value("predicting_share", line.predicting)]
            table.add_row(*cells[: len(table.columns)], style="dim" if line.has_left else None)
        return Group(table, Text(self._status(now, metric), overflow="ellipsis", no_wrap=True))

    def _lines(self, metric: str | None) -> list["_Line"]:
        """Return a line for each of as many agents as the terminal has room for, and one for all others."""
        room = max(4, self._console.size.height - _OTHER_LINES)
        num_shown = len(self._agents) if len(self._agents) <= room else room - 1
        others = self._agents[num_shown:]
        lines = [_mean_line([one], one.name, metric) for one in self._agents[:num_shown]]
        return [*lines, _mean_line(others, f"{len(others)} more", metric)] if others else lines

    def _status(self, now: float, metric: str | None) -> str:
        if self._leading is self._agents:
            taken = f"{sum(one.steps for one in self._agents)}/{len(self._agents) * self._num_steps} agent-steps"
        else:
            taken = f"{min(one.steps for one in self._leading)}/{self._num_steps} steps"
        parts = [taken, _rate_text(self._pace.rate_at(now)), self._left_text(now)]
        if metric in self._averaged:
            value = format_value(str(metric), self._averaged[str(metric)])
            parts.append(f"averaged model {value} at step {self._averaged_step}")
        return " · ".join(parts)

    def _left_text(self, now: float) -> str:
        left = self.seconds_left(now)
        return f"{NOTHING if left is None else duration(left)} left"


class _Agent:
    """What is known of one agent."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.steps = 0
        self.reported = 0
        self.loss = math.nan
        self.staleness = math.nan
        self.predicting = math.nan
        self.metrics: dict[str, float] = {}
        self.has_left = False

    def step(self, steps_taken: int, loss: float, staleness: float, predicting: float | None) -> None:
        self.steps = steps_taken
        self.reported += 1
        share = max(1 / self.reported, 1 / _WINDOW)
        self.loss = _towards(self.loss, loss, share)
        self.staleness = _towards(self.staleness, staleness, share)
        if predicting is not None:
            self.predicting = _towards(self.predicting, predicting, share)


def _rate_text(rate: float | None) -> str:
    return f"{NOTHING if rate is None else f'{rate:,.0f}'} agent-steps/s"


def _towards(mean: float, value: float, share: float) -> float:
    # A mean that is no number yet, or has met a value that is none, starts afresh.
    return mean + share * (value - mean) if math.isfinite(mean) else value


class _Line(NamedTuple):
    """One line of the table: one agent, or the mean of several."""

    name: str
    steps: str
    loss: float
    tested: float
    staleness: float
    predicting: float
    has_left: bool


def _mean_line(agents: Sequence[_Agent], name: str, metric: str | None) -> _Line:
    low, high = min(one.steps for one in agents), max(one.steps for one in agents)
    return _Line(
        name=name,
        steps=f"{low}" if low == high else f"{low} to {high}",
        loss=_mean(one.loss for one in agents),
        tested=_mean(one.metrics[metric] for one in agents if metric in one.metrics),
        staleness=_mean(one.staleness for one in agents),
        predicting=_mean(one.predicting for one in agents),
        has_left=all(one.has_left for one in agents),
    )


def _mean(values: Iterable[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
