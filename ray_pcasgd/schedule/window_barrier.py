"""When agents publish that wait for all their neighbors: one step of all agents after another, in (max, +) algebra."""

from collections import deque

import numpy as np

from ray_pcasgd.base.rounds import Rounds
from ray_pcasgd.schedule.segments import OutOfRangeError, bounds_of
from ray_pcasgd.schedule.simulation import A_SECOND, Timing, computing_agents
from ray_pcasgd.schedule.window_links import Links, Published
from ray_pcasgd.schedule.window_queues import Queues
from ray_pcasgd.schedule.window_times import (
    LATEST,
    Course,
    Window,
    begins_late,
    moment_at,
    moments_at,
    nanosecond_of,
    nanoseconds_of,
    since_of,
)

_DRAWN = 32
"""Steps whose compute times are drawn at once."""
_APART = 64
"""Steps, on average, between the slowest agent and all others from which on no windows are made: who does not even
hear of each other may be as far apart as they like."""


class BarrierTimes:
    """When each agent publishes which version: as its gradient is ready, and what its barrier asks for has come.

    That is a version of each neighbor, ``staleness`` before the agent's own; or its last one, once it has taken all its
    steps. Queues and delays of links are those of ``Queues``, a step of all agents at a time: agents that share the
    queue of a host do not take it in the order of their steps.
    """

    def __init__(self, timing: Timing, rounds: Rounds, links: Links, staleness: int) -> None:
        num_agents = len(links.degree)
        self._rounds = rounds
        self._links = links
        self._queues = Queues(links, ())
        self._gradients = computing_agents(timing, num_agents)
        self.last = np.array([rounds.last(k) for k in range(num_agents)], dtype=np.int64)
        self._course = Course(num_agents)
        self._step = 0
        """The step that all agents take next, unless they have taken all."""
        self._durations: deque[np.ndarray] = deque()
        """The nanoseconds of the next steps, shape (agents,) each; -1 where they depend on when the step begins."""
        self._published = np.full(num_agents, -1, dtype=np.int64)
        """The moment of each agent's newest version."""
        start = np.full(len(links.sender), -1, dtype=np.int64)
        self._since = deque([start] * (staleness + 1), staleness + 1)
        """For the next steps: from which moment on the version is there, by link, that the barrier asks for."""
        self._has_neighbors = links.degree > 0

    def window(self, num_rows: int, longest: int) -> Window | None:
        """Return the next window, of about so many rows, and no longer than ``longest`` nanoseconds; ``None``: no more.

        Raises:
            OutOfRangeError: times are too late, too many steps have no duration, or agents are too far apart.

        """
        course, num_agents = self._course, len(self.last)
        has_more = course.versions < self.last
        if not has_more.any():
            return None
        while True:
            known = int((course.known - course.versions).sum())
            if known > 2 * num_rows + _APART * num_agents:
                raise OutOfRangeError
            self._take(max(1, (num_rows - known) // num_agents))
            course.skip_to_next(self.last)
            is_open = course.known < self.last
            newest = course.newest
            ends_at = nanosecond_of(newest[is_open].min()) if is_open.any() else nanosecond_of(newest.max()) + 1
            begins_at = nanosecond_of(course.begin)
            if ends_at > begins_at:
                return course.cut(moment_at(min(ends_at, begins_at + longest)))

    def _take(self, number: int) -> None:
        """Let all agents take so many more steps, unless they have taken all."""
        number = min(number, int(self.last.max()) - self._step)
        if number < 1:
            return
        taken = [self._take_one() for _ in range(number)]
        moments, ready, is_taken = (np.array(each).T for each in zip(*taken, strict=True))
        self._course.append(is_taken.sum(axis=1), moments[is_taken], ready[is_taken])

    def _take_one(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return when all agents publish their next version, when its gradient is ready, and who takes the step."""
        is_taken = self._step < self.last
        begun = nanoseconds_of(self._published)
        durations = self._next_durations(begun, is_taken)
        ready = begun + durations
        if ready.max() >= LATEST:
            raise OutOfRangeError
        # A step without duration is over in the next round.
        moments = np.where(durations > 0, moments_at(ready), self._published + 1)
        since = self._since[0]
        if len(since):
            asked = np.maximum.reduceat(since, self._links.bounds[:-1][self._has_neighbors])
            moments[self._has_neighbors] = np.maximum(moments[self._has_neighbors], asked)
        moments = np.where(is_taken, moments, self._published)
        self._published = moments
        self._step += 1
        self._send(is_taken)
        return moments, ready, is_taken

    def _send(self, is_taken: np.ndarray) -> None:
        """Find from when on the versions are there that were just published."""
        agent = np.flatnonzero(is_taken)
        moment = self._published[agent]
        if moment.max() >= moment_at(LATEST) or begins_late(moment).any():
            raise OutOfRangeError
        counts = is_taken.astype(np.int64)
        version = np.full(len(agent), self._step)
        published = Published(counts, bounds_of(counts), agent, version, moment, nanoseconds_of(moment))
        sent = self._links.send(published)
        arrival, _ = self._queues.arrivals(sent, published, LATEST)
        # Of those that have taken all their steps the last version was waited for already.
        since = np.full(len(self._links.sender), -1, dtype=np.int64)
        since[is_taken[self._links.sender]] = since_of(arrival, sent.moment)
        self._since.append(since)

    def _next_durations(self, begun: np.ndarray, is_taken: np.ndarray) -> np.ndarray:
        """Return the nanoseconds that the agents' next gradients take, which they begin then."""
        if not self._durations:
            self._draw()
        durations = self._durations.popleft()
        for k in np.flatnonzero(is_taken & (durations < 0)).tolist():
            now = int(begun[k])
            ready = self._gradients[k].ready_at(now, self._rounds.steps_in(k, self._step))
            durations[k] = min(ready - now, LATEST)
        return durations

    def _draw(self) -> None:
        """Draw the compute times of the next steps."""
        drawn = np.full((_DRAWN, len(self.last)), -1.0)
        for k, gradients in enumerate(self._gradients):
            number = min(_DRAWN, int(self.last[k]) - self._step)
            if number > 0 and gradients.ignores_moments:
                lengths = [self._rounds.steps_in(k, self._step + place) for place in range(number)]
                drawn[:number, k] = gradients.round_seconds(0, lengths)
        with np.errstate(over="ignore"):
            nanoseconds = np.where(drawn < 0, -1, np.rint(drawn * A_SECOND))
        self._durations.extend(np.minimum(nanoseconds, LATEST).astype(np.int64))
