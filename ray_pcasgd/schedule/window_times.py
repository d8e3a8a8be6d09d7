"""When agents that wait for nobody publish their versions: sums of compute times, window by window of virtual time."""

from typing import NamedTuple

import numpy as np

from ray_pcasgd.base.rounds import Rounds
from ray_pcasgd.schedule.segments import OutOfRangeError, bounds_of, merged, running_maximum, spread
from ray_pcasgd.schedule.simulation import A_SECOND, Timing, computing_agents

_ROUND_BITS = 5
_MOST_ROUNDS = 2**_ROUND_BITS - 2
LATEST = 2**57
"""The nanosecond, after 4.5 years, that all moments are before."""

_FEWEST = 32
"""Versions whose moments are drawn at once, of one agent."""
_ROOM = 4
"""How many times as many rows as are asked for a window may have."""


def moment_at(nanosecond: int) -> int:
    """Return the first moment of a nanosecond, see ``Window``."""
    return nanosecond << _ROUND_BITS


def moments_at(nanoseconds: np.ndarray) -> np.ndarray:
    """Return the first moments of nanoseconds."""
    result: np.ndarray = nanoseconds << _ROUND_BITS
    return result


def nanoseconds_of(moments: np.ndarray) -> np.ndarray:
    """Return the nanoseconds of moments; what was there before the first one has 0."""
    result: np.ndarray = np.maximum(moments, 0) >> _ROUND_BITS
    return result


def since_of(arrival: np.ndarray, moment: np.ndarray) -> np.ndarray:
    """Return the moments from which on messages have arrived: in the round after that in which they are sent at once.

    What arrives after the last of all moments never does.
    """
    since: np.ndarray = np.maximum(moments_at(np.minimum(arrival, LATEST)), moment + 1)
    return since


def nanosecond_of(moment: int) -> int:
    """Return the nanosecond of one moment."""
    return max(int(moment), 0) >> _ROUND_BITS


def begins_late(moments: np.ndarray) -> np.ndarray:
    """Return whether moments are in so late a round of their instant that numbers end soon."""
    late: np.ndarray = (moments & (2**_ROUND_BITS - 1)) > _MOST_ROUNDS
    return late


class Window(NamedTuple):
    """What is published from the moment ``begin`` until before the moment ``end``.

    A moment is a whole number that holds a nanosecond and a round within it: what happens in one round of one instant
    has the same moment, and what happens in a later round a later one. Version 0 has the moment -1.
    """

    begin: int
    end: int
    """The first moment of a nanosecond."""
    moments: np.ndarray
    """When each agent published its newest version before the window, and all later ones, as far as it is known: of
    those that have steps to take after the window, the next one too."""
    ready: np.ndarray
    """The nanosecond at which the gradient was ready that each of these versions came of."""
    bounds: np.ndarray
    """Where each agent's moments lie, shape (agents + 1,)."""
    counts: np.ndarray
    """How many versions each agent publishes in the window, shape (agents,)."""
    versions: np.ndarray
    """The newest version of each agent before the window, shape (agents,)."""

    @property
    def end_nanosecond(self) -> int:
        """The nanosecond that begins with ``end``."""
        return self.end >> _ROUND_BITS


class Course:
    """When agents have published, and will publish, as far as that is known, window by window."""

    def __init__(self, num_agents: int) -> None:
        self.begin = 0
        """The first moment of the next window."""
        self.versions = np.zeros(num_agents, dtype=np.int64)
        """The newest version of each agent before it."""
        self.known = np.zeros(num_agents, dtype=np.int64)
        """The newest version of each agent whose moment is known."""
        self.moments = np.full(num_agents, -1, dtype=np.int64)
        """Of versions from ``versions`` to ``known``, agent by agent."""
        self._ready = np.zeros(num_agents, dtype=np.int64)
        self.bounds = np.arange(num_agents + 1)
        """Where each agent's lie."""

    @property
    def newest(self) -> np.ndarray:
        """The newest moment of each agent that is known."""
        result: np.ndarray = self.moments[self.bounds[1:] - 1]
        return result

    def append(self, numbers: np.ndarray, moments: np.ndarray, ready: np.ndarray) -> None:
        """Take in the moments of the next versions, so many of each agent, and when their gradients were ready."""
        there = np.diff(self.bounds)
        bounds = bounds_of(there + numbers)
        old, new = spread(bounds[:-1], there), spread(bounds[:-1] + there, numbers)
        self.moments = merged(self.moments, old, moments, new)
        self._ready = merged(self._ready, old, ready, new)
        self.bounds = bounds
        self.known = self.known + numbers

    def skip_to_next(self, last: np.ndarray) -> None:
        """Begin the next window, unless it is the first, when something is published."""
        if self.begin > 0:
            following = self.moments[self.bounds[:-1][self.versions < last] + 1]
            self.begin = max(self.begin, int(following.min()))

    def cut(self, end: int) -> Window:
        """Return the window that ends so, and go on to the next."""
        before = bounds_of(self.moments < end)
        counts = before[self.bounds[1:]] - before[self.bounds[:-1]] - 1
        window = Window(self.begin, end, self.moments, self._ready, self.bounds, counts, self.versions)
        left = np.diff(self.bounds) - counts
        kept = spread(self.bounds[:-1] + counts, left)
        self.moments, self._ready, self.bounds = self.moments[kept], self._ready[kept], bounds_of(left)
        self.versions = self.versions + counts
        self.begin = end
        return window


class AgentTimes:
    """When each agent publishes which version, of agents that wait for nobody."""

    def __init__(self, timing: Timing, rounds: Rounds, num_agents: int) -> None:
        self._rounds = rounds
        self._are_single = rounds.are_single
        self._gradients = computing_agents(timing, num_agents)
        self.last = np.array([rounds.last(k) for k in range(num_agents)], dtype=np.int64)
        self._course = Course(num_agents)
        self._pace: float | None = None
        """Nanoseconds for each row of the last window."""

    def window(self, num_rows: int, longest: int) -> Window | None:
        """Return the next window, of about so many rows, and no longer than ``longest`` nanoseconds; ``None``: no more.

        Raises:
            OutOfRangeError: times are too late, or too many steps have no duration.

        """
        course = self._course
        has_more = course.versions < self.last
        if not has_more.any():
            return None
        self._draw(np.flatnonzero(has_more & (course.known == course.versions)), _FEWEST)
        last_ended_at = nanosecond_of(course.begin)
        course.skip_to_next(self.last)
        begins_at = nanosecond_of(course.begin)
        if self._pace is None:
            self._pace = 1 / float(self._rates().sum())
        lasts = min(longest, int(num_rows * self._pace) + 1)
        if int((self.last - course.versions).sum()) <= num_rows:
            lasts = longest
        ends_at = self._draw_until(begins_at, min(begins_at + lasts, LATEST), num_rows)
        window = course.cut(moment_at(ends_at))
        self._pace = (ends_at - last_ended_at) / max(1, int(window.counts.sum()))
        return window

    def _rates(self) -> np.ndarray:
        """Return the versions a nanosecond of each agent, so far."""
        rates: np.ndarray = self._course.known / (nanoseconds_of(self._course.newest) + 1)
        return rates

    def _draw_until(self, begins_at: int, ends_at: int, num_rows: int) -> int:
        """Draw all moments until a nanosecond, or an earlier one where they are far too many; return which."""
        course = self._course
        while True:
            known_until = nanoseconds_of(course.newest)
            short = np.flatnonzero((known_until < ends_at) & (course.known < self.last))
            if not len(short):
                return ends_at
            soonest = int(known_until[short].min())
            found = int(np.count_nonzero(course.moments < moment_at(ends_at))) - len(self.last)
            if found > _ROOM * num_rows and soonest > begins_at:
                return soonest
            wanted = (ends_at - known_until[short]) * self._rates()[short] * 1.1 + 2
            room = max(_FEWEST, _ROOM * num_rows // len(short))
            self._draw(short, np.clip(wanted, _FEWEST, room).astype(np.int64))

    def _draw(self, agents: np.ndarray, most: np.ndarray | int) -> None:
        """Draw the moments of the agents' next versions, so many of each at most."""
        if not len(agents):
            return
        course = self._course
        numbers = np.minimum(most, (self.last - course.known)[agents])
        newest = course.newest[agents]
        begun = nanoseconds_of(newest)
        asked = (agents, numbers, course.known[agents], begun)
        seconds = [self._seconds(*one) for one in zip(*(each.tolist() for each in asked), strict=True)]
        bounds = bounds_of(numbers)
        durations = _durations(np.concatenate(seconds), begun, bounds)
        taken = np.cumsum(durations)
        taken += np.repeat(begun - taken[bounds[:-1]] + durations[bounds[:-1]], numbers)
        of_all = np.zeros_like(self.last)
        of_all[agents] = numbers
        course.append(of_all, moments_at(taken) + self._turns(durations, bounds, newest), taken)

    def _seconds(self, agent: int, number: int, version: int, now: int) -> np.ndarray:
        """Return the seconds of an agent's next rounds, from a version on and from now on."""
        batches = [1] * number
        if not self._are_single:
            batches = [self._rounds.steps_in(agent, version + place) for place in range(number)]
        return self._gradients[agent].round_seconds(now, batches)

    def _turns(self, durations: np.ndarray, bounds: np.ndarray, newest: np.ndarray) -> np.ndarray | int:
        """Return in which round of its instant each step ends."""
        if durations.all():
            return 0
        counts = np.diff(bounds)
        place = spread(np.ones_like(counts), counts)
        # Steps without duration end in one round after another.
        latest = running_maximum(np.where(durations > 0, place, 0), bounds)
        before = np.where(newest < 0, -1, newest & (2**_ROUND_BITS - 1))
        turns: np.ndarray = place - latest + np.where(latest, 0, np.repeat(before, counts))
        if turns.max() > _MOST_ROUNDS:
            raise OutOfRangeError
        return turns


def _durations(seconds: np.ndarray, begun: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Return the nanoseconds of rounds that each agent begins then, one after another."""
    with np.errstate(over="ignore", invalid="ignore"):
        durations = np.rint(seconds * A_SECOND)
    if not np.all(np.add.reduceat(durations, bounds[:-1]) + begun < LATEST):
        raise OutOfRangeError
    result: np.ndarray = durations.astype(np.int64)
    return result
