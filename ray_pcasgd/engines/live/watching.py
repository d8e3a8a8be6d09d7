"""Which neighbors a live peer leaves out of a step for being silent, behind its own pause, or too few steps ahead."""

import math
from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

from ray_pcasgd.base.rounds import Rounds
from ray_pcasgd.engines.live.reading import NeighborTracker, is_lagging
from ray_pcasgd.records import EventKind

LASTING_STEPS = 50
"""Steps without a neighbor that is too far behind, after which an event says so."""

SILENT_SECONDS = 1.0
"""A shorter time does not count as silence, however short steps are: machines pause their processes for as long."""


class Limits(NamedTuple):
    """How long a peer puts up with its neighbors."""

    wait_seconds: float
    """Longest wait of a barrier for a neighbor's version."""
    silent_steps: float | None
    """After how many steps without a new message a neighbor is not read any more; ``None``: never."""
    max_lag: float | None
    """By which share of its own steps the agent may be ahead of a neighbor that it reads; ``None``: any."""


class NeighborWatch:
    """What a peer knows of its neighbors' progress.

    Args:
        agent: The peer.
        neighbors: Those whose messages it reads.
        rounds: Which mini-batches lie between the versions of all agents.
        limits: How long the peer puts up with them.
        tell: Takes the kind and the detail of an event.

    """

    def __init__(
        self,
        agent: int,
        neighbors: Iterable[int],
        rounds: Rounds,
        limits: Limits,
        tell: Callable[[EventKind, str], None],
    ) -> None:
        self.agent = agent
        self.rounds = rounds
        self.limits = limits
        self.tell = tell
        self.trackers = {k: NeighborTracker(rounds.last(k)) for k in neighbors}
        """How far each neighbor has come, as its messages tell."""
        self.silent: set[int] = set()
        """Neighbors that are not known to be gone, and from which no message has come for too long."""
        self._silences: Counter[int] = Counter()
        self._left_out: Counter[int] = Counter()
        """For how many steps each neighbor was too far behind to be read, up to the present one."""
        self._episodes: Counter[int] = Counter()
        """How often that lasted."""

    def notice_silence(self, neighbor: int, step_seconds: float, now: float) -> None:
        """Note whether no new message of a neighbor has come for many steps: it is not read until one comes.

        A version that grows older and older soon does harm, whether a rule predicts from it or not. Messages count by
        when they were sent: those that have waited for an agent that was stopped itself are not new.

        Args:
            neighbor: The neighbor.
            step_seconds: The agent's own mean seconds for a step.
            now: The wall-clock second.

        """
        steps, newest = self.limits.silent_steps, self.trackers[neighbor].newest
        if steps is None:
            return
        if newest is None or newest.final or not newest.step_seconds:
            self.silent.discard(neighbor)
            return
        quiet = self.trackers[neighbor].lateness(now)
        if quiet <= max(steps * max(newest.step_seconds, step_seconds), SILENT_SECONDS):
            self.silent.discard(neighbor)
        elif neighbor not in self.silent:
            self.silent.add(neighbor)
            self._silences[neighbor] += 1
            if _is_told(self._silences[neighbor]):
                detail = f"no message of agent {neighbor} has come for {quiet:.3g} s; it is not read until one comes"
                times = f" (silent so far: {self._silences[neighbor]} times)" if self._silences[neighbor] > 1 else ""
                self.tell("neighbor_silent", detail + times)

    def is_behind(self, neighbor: int, step_seconds: float, now: float) -> bool:
        """Return whether the last message of a neighbor is older than a pause of the agent itself.

        The messages that came meanwhile are still to be taken in: until then the neighbor's step is not known.
        """
        newest = self.trackers[neighbor].newest
        if newest is None or newest.final:
            return False
        return self.trackers[neighbor].lateness(now) > 2 * max(newest.step_seconds, step_seconds)

    def lags(self, neighbor: int, step: int, now: float) -> bool:
        """Return whether a neighbor is too far behind ``step`` to be read; where that lasts, tell it."""
        lag = self._lag(neighbor, step, now)
        if not is_lagging(lag, step, self.limits.max_lag):
            self._left_out[neighbor] = 0
            return False
        self._left_out[neighbor] += 1
        if self._left_out[neighbor] == LASTING_STEPS:
            self._episodes[neighbor] += 1
            if _is_told(self._episodes[neighbor]):
                until = "it is not read until it has caught up (engine.max_lag)"
                unit = "steps" if self.rounds.are_single else "rounds"
                self.tell("neighbor_behind", f"agent {neighbor} is {lag} {unit} behind; {until}")
        return True

    def _lag(self, neighbor: int, step: int, now: float) -> int:
        """Return by how many own rounds a neighbor is behind; negative where it is ahead.

        **Choice**: where their rounds differ in length, by versions or by mini-batches, whichever is less: rounds of
        equal time leave slower agents behind in mini-batches, and those of equal speed in versions, both on purpose.
        """
        lag = self.trackers[neighbor].lag(step, now)
        own = self.rounds.length(self.agent)
        if own == self.rounds.length(neighbor):
            return lag
        behind = self.rounds.progress(self.agent, step) - self.rounds.progress(neighbor, step - lag)
        return min(lag, behind // own)

    def is_ending(self, neighbor: int, version: int) -> bool:
        """Return whether a neighbor takes no share any more that an agent at ``version`` sends it.

        It has taken its last step, or is ahead, and about to take it; where their rounds differ in length, versions do
        not tell who is ahead.
        """
        tracker = self.trackers.get(neighbor)
        if tracker is None or tracker.newest is None:
            return False
        alike = self.rounds.length(self.agent) == self.rounds.length(neighbor)
        ahead = (tracker.newest.version > version or not alike) and tracker.newest.version >= tracker.last_version - 1
        return tracker.has_finished() or ahead


def _is_told(times: int) -> bool:
    """Return whether what has happened so often is told: the first, the tenth, the hundredth time ..."""
    return math.log10(times).is_integer()
