"""Rows that wait for what they read: each is looked at when it is drawn, and when what it waits for is published."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator

from ray_pcasgd.engines.base import RunError
from ray_pcasgd.records import Row


class WaitingRows:
    """The rows of a schedule that were drawn and did not run yet, and which of them can run.

    It finds the same rows as ``Execution.take_ready``, without looking at all of them again each time.

    Args:
        rows: the schedule, of steps alone.
        num_agents: how many agents there are.
        at_once: rows among which those are looked for that can run; more where there are none.
        is_own: whether a row is one that the run takes.

    """

    def __init__(
        self,
        rows: Iterator[Row | None],
        num_agents: int,
        at_once: int,
        is_own: Callable[[Row], bool],
    ) -> None:
        self._rows = rows
        self._at_once = at_once
        self._is_own = is_own
        self.drawn = 0
        """Rows that the schedule was asked for."""
        self.newest = [0] * num_agents
        """The newest version of each agent."""
        self._queues: list[deque[tuple[int, Row]]] = [deque() for _ in range(num_agents)]
        """Of each agent, its rows with their places in the schedule."""
        self._waiting: list[list[int]] = [[] for _ in range(num_agents)]
        """Who waits for an agent's next version; some of them may have given up."""
        self._ready: dict[int, int] = {}
        """The place of each agent's next row that can run."""
        self._count = 0
        self._number = 0
        """How many rows were taken in."""

    def begin(self, versions: Iterable[int], drawn: int, rows: Iterable[Row]) -> None:
        """Go on where agents have these versions, and these rows are left of those that were drawn."""
        self.newest = list(versions)
        for _ in range(drawn):
            next(self._rows)
        self.drawn = drawn
        for row in rows:
            self._take_in(row)

    def take(self) -> list[Row]:
        """Take the rows that can run now, in the schedule's order; an empty list once all rows have run.

        Raises:
            RunError: rows are left, and none of them can ever run.

        """
        limit = self._at_once
        while True:
            is_exhausted = self._draw(limit)
            if self._ready:
                return self._taken()
            if not self._count:
                return []
            if is_exhausted:
                raise RunError(self._why_stuck(self.left()[0]))
            limit *= 2

    def published(self, agents: Iterable[int]) -> None:
        """Take in that agents have come to their next versions."""
        looked_at: dict[int, None] = {}
        for agent in agents:
            self.newest[agent] += 1
            looked_at[agent] = None
            if self._waiting[agent]:
                looked_at |= dict.fromkeys(self._waiting[agent])
                self._waiting[agent] = []
        for agent in looked_at:
            self._look_at(agent)

    def left(self) -> list[Row]:
        """Return the rows that have not run, in the schedule's order."""
        return [row for _, row in sorted((one for queue in self._queues for one in queue), key=lambda one: one[0])]

    def _taken(self) -> list[Row]:
        places = sorted(self._ready.items(), key=lambda item: item[1])
        self._ready = {}
        self._count -= len(places)
        return [self._queues[agent].popleft()[1] for agent, _ in places]

    def _draw(self, limit: int) -> bool:
        """Draw rows until so many wait; return whether there are no more."""
        while self._count < limit:
            row = next(self._rows, None)
            if row is None:
                return True
            self.drawn += 1
            if self._is_own(row):
                self._take_in(row)
        return False

    def _take_in(self, row: Row) -> None:
        queue = self._queues[row.agent]
        queue.append((self._number, row))
        self._number += 1
        self._count += 1
        if len(queue) == 1:
            self._look_at(row.agent)

    def _look_at(self, agent: int) -> None:
        """Find out whether an agent's next row can run, or for whom it waits."""
        queue, newest = self._queues[agent], self.newest
        if not queue or agent in self._ready:
            return
        place, row = queue[0]
        if row.step != newest[agent]:
            return  # its own next version lets it be looked at again
        for read in row.reads:
            if read[1] > newest[read[0]]:
                self._waiting[read[0]].append(agent)
                return
        self._ready[agent] = place

    def _why_stuck(self, row: Row) -> str:
        """Return why a row never becomes ready."""
        for read in row.reads:
            if read.version > self.newest[read.neighbor]:
                return (
                    f"schedule: agent {row.agent} reads version {read.version} of agent {read.neighbor} at step "
                    f"{row.step}, and no row before it publishes that version"
                )
        return f"schedule: agent {row.agent} has a row for step {row.step} and none for the step before it"
