"""Who leaves a run and comes back when: its settings, and what follows from them agent by agent."""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from pydantic import BeforeValidator, Field, model_validator

from ray_pcasgd.base.settings import Settings
from ray_pcasgd.schedule.law_base import LARGEST
from ray_pcasgd.schedule.law_text import read_law
from ray_pcasgd.schedule.simulation import in_nanoseconds
from ray_pcasgd.schedule.trace_files import read_columns


def _seconds(given: Any) -> Any:
    """Return a time with a unit, such as ``20s``, in seconds; what is no text comes back as it is."""
    if not isinstance(given, str):
        return given
    allowed = f"{given!r}: allowed are seconds, such as 20s, 500ms or 20"
    try:
        law, unit = read_law(given)
    except ValueError:
        raise ValueError(allowed) from None
    if unit != "seconds" or not isinstance(law, Mapping) or law["name"] != "constant":
        raise ValueError(allowed)
    return law["value"]


Second = Annotated[Annotated[float, Field(ge=0, le=LARGEST)], BeforeValidator(_seconds)]
"""A second of the run, such as ``20s``, ``500ms`` or ``20``."""


class Away(NamedTuple):
    """A time in which an agent is not there."""

    agent: int
    leaves: float
    """Second of the run; 0: it is not there at the start."""
    returns: float
    """Second of the run; infinite: it has left for good."""


class Departure(NamedTuple):
    """What such a time comes to in a schedule."""

    agent: int
    version: int
    """The agent's last version before it; 0: it has taken no step yet."""
    back_at: int | None
    """The version at which it comes back; ``None``: it does not."""


class Change(NamedTuple):
    """One agent leaves or comes back."""

    moment: int
    """In nanoseconds of the run."""
    agent: int
    is_back: bool


def changes_of(away: Iterable[Away]) -> list[Change]:
    """Return all changes after the start, by their moments and agents."""
    away = list(away)
    leaving = [Change(in_nanoseconds(one.leaves), one.agent, False) for one in away if one.leaves > 0]
    back = [Change(in_nanoseconds(one.returns), one.agent, True) for one in away if not math.isinf(one.returns)]
    return sorted(leaving + back)


class Absence(Settings):
    """When agents are not there: ``{agent: 3, leaves: 20s, returns: 45s}``; or a file that says it, by ``trace``."""

    agent: int | None = None
    """The agent."""
    agents: tuple[int, ...] = ()
    """Agents that leave and return together, in place of ``agent``."""
    leaves: Second | None = None
    """Second of the run at which they leave, such as ``20s``; not given: they are not there at the start."""
    returns: Second | None = None
    """Second at which they are there again; not given: they have left for good."""
    trace: Path | None = None
    """In place of all the others, a CSV or Parquet file with the columns ``agent``, ``start`` and ``end``: from which
    second to which an agent is there. An agent may have several lines; an empty ``end`` is the run's. Agents that the
    file does not name are there all the time."""

    @model_validator(mode="after")
    def _whole(self) -> "Absence":
        if self.trace is not None:
            if self.model_fields_set > {"trace"}:
                raise ValueError(f"trace = {str(self.trace)!r}: allowed without other settings; the file has them")
            assert self.of_trace
            return self
        if (self.agent is None) == (not self.agents):
            raise ValueError("agent: is required, or agents, or trace; one of them")
        if len(set(self.agents)) < len(self.agents):
            raise ValueError(f"agents = {list(self.agents)}: allowed is each once")
        if self.leaves is None and self.returns is None:
            raise ValueError("leaves: is required, or returns, or both")
        if self.leaves is not None and self.returns is not None and self.returns <= self.leaves:
            raise ValueError(f"returns = {self.returns:g}: allowed is later than leaves = {self.leaves:g}")
        return self

    @cached_property
    def of_trace(self) -> tuple[Away, ...]:
        """Return when the agents of the file are not there, by agent and time.

        Raises:
            ValueError: there is no such file or column, or it holds what is no time in which an agent is there.

        """
        assert self.trace is not None
        numbers, starts, ends = read_columns(self.trace, ("agent", "start", "end"), may_be_empty=("end",))
        ends = np.where(np.isnan(ends), np.inf, ends)
        wrong = (numbers != np.floor(numbers)) | (numbers < 0) | (starts < 0) | ~(starts < ends)
        for row in np.flatnonzero(wrong | (starts > LARGEST) | (numbers > LARGEST))[:1]:
            raise ValueError(
                f"trace = {str(self.trace)!r}: row {row + 1} is {numbers[row]:g}, {starts[row]:g}, {ends[row]:g}; "
                f"allowed are an agent, and a start below its end, from 0 to {LARGEST:g}"
            )
        there: dict[int, list[tuple[float, float]]] = {}
        for number, start, end in zip(numbers.tolist(), starts.tolist(), ends.tolist(), strict=True):
            there.setdefault(int(number), []).append((start, end))
        return tuple(Away(agent, *gap) for agent in sorted(there) for gap in _gaps(_joined(there[agent])))

    @property
    def away(self) -> tuple[Away, ...]:
        """When which agents are not there."""
        if self.trace is not None:
            return self.of_trace
        agents = self.agents if self.agent is None else (self.agent,)
        returns = math.inf if self.returns is None else self.returns
        return tuple(Away(agent, self.leaves or 0.0, returns) for agent in agents)


def _joined(times: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return times as they are without touching each other, rising."""
    joined: list[tuple[float, float]] = []
    for start, end in sorted(times):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        else:
            joined.append((start, end))
    return joined


def _gaps(times: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the times before, between and after some that rise and do not touch."""
    around = [(0.0, 0.0), *times, (math.inf, math.inf)]
    return [(end, start) for (_, end), (start, _) in pairwise(around) if end < start]


def _one_as_a_list(given: Any) -> Any:
    """Return a single entry, such as ``{trace: availability.csv}``, as a list of it."""
    return (given,) if isinstance(given, Mapping | Absence) else given


Membership = Annotated[tuple[Absence, ...], BeforeValidator(_one_as_a_list)]
"""Entries of who is away when; one alone may stand without a list."""


def away_times(membership: Sequence[Absence], num_agents: int, num_servers: int = 0) -> tuple[Away, ...]:
    """Return when which agents are not there, by agent and time; times of one agent do not touch.

    Args:
        membership: The entries.
        num_agents: Agents that may leave; servers, whose numbers follow theirs, stay.
        num_servers: How many servers there are.

    Raises:
        ValueError: an agent is named that the run does not have, or for the same time twice, or nobody is ever there.

    """
    times: dict[int, list[tuple[float, float, str]]] = {}
    for place, entry in enumerate(membership):
        named = "trace" if entry.trace is not None else "agents" if entry.agent is None else "agent"
        setting = f"membership.{place}.{named}"
        for agent, leaves, returns in entry.away:
            if not 0 <= agent < num_agents:
                server = " is a server, which stays" if num_agents <= agent < num_agents + num_servers else ""
                raise ValueError(f"{setting}: agent {agent}{server}; allowed are 0 to {num_agents - 1}")
            times.setdefault(agent, []).append((leaves, returns, setting))
    for agent, own in times.items():
        for (*one, _), (*other, setting) in pairwise(sorted(own)):
            if other[0] < one[1]:
                raise ValueError(
                    f"{setting}: agent {agent} is away {_told(*one)}, and {_told(*other)} too; allowed are times apart"
                )
    away = tuple(Away(agent, *one) for agent in sorted(times) for one in _joined(time[:2] for time in times[agent]))
    if num_agents and sum(one.leaves == 0 and math.isinf(one.returns) for one in away) == num_agents:
        raise ValueError("membership: no agent is ever there; allowed is that one is")
    return away


def _told(leaves: float, returns: float) -> str:
    return f"from {leaves:g} s on" if math.isinf(returns) else f"from {leaves:g} to {returns:g} s"
