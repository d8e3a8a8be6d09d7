"""The scheduler, the one place of a run that knows who reads which version when: it deals rows out."""

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from ray_pcasgd.records import Row
from ray_pcasgd.schedule.churn import PeerRows
from ray_pcasgd.schedule.churn_servers import ChurningServerRows
from ray_pcasgd.schedule.plan_servers import ServerPlanner, ServerRows

if TYPE_CHECKING:  # its actor unpacks no rows that are planned, and reads no files
    from ray_pcasgd.schedule.row_log import RowLog


class Schedule(Protocol):
    """Who reads which version when: planned, or recorded."""

    def __iter__(self) -> Iterator[Row | None]:
        """Return the rows from the first one on, in an order in which they can be executed.

        ``None`` stands where what comes next depends on losses that have not been told (``tell_loss``).
        """
        ...


def tell_loss(rows: Iterator[Row | None], row: Row, loss: float) -> None:
    """Tell a schedule's rows the loss of one that was executed; only some plans care."""
    if isinstance(rows, ServerRows) and row.kind == "step":
        rows.tell(row, loss)


def away_from(rows: Iterator[Row | None]) -> Mapping[int, int]:
    """Return the agents that are away where a schedule's rows have been drawn to, and the versions that they left at.

    They ask for no version that is there by then, but for the newest ones when they come back. Of recorded schedules it
    is not known.
    """
    return rows.away if isinstance(rows, PeerRows | ChurningServerRows) else {}


@dataclass(frozen=True)
class Recorded:
    """A schedule that was recorded, executed as it stands; an empty one for runs that record their own."""

    recorded: "RowLog | tuple[Row, ...]" = ()

    def __iter__(self) -> Iterator[Row]:
        return iter(self.recorded)


def waits_for_losses(schedule: Schedule) -> bool:
    """Return whether a schedule's rows depend on losses."""
    return isinstance(schedule, ServerPlanner) and schedule.gathering.adapts_every is not None


class Cut(NamedTuple):
    """A place in a schedule, between two rows.

    The rows before it do not need those after it. So the agents, each at the version that it has there, and the
    messages that are under way there, are a state from which all that comes after is the same.
    """

    number: int
    """Cuts of one scheduler are numbered from 1."""
    rows: int
    """Rows of the schedule before it."""
    versions: tuple[int, ...]
    """What each agent has come to by then, if it takes as many steps."""


class Scheduler:
    """Deals a planned schedule's rows to agents, from ``first_row`` on. Never touches weights.

    A plain object: the ray engine puts it into an actor as it is.
    """

    def __init__(self, schedule: Schedule, num_agents: int, first_row: int = 0) -> None:
        self._rows = iter(schedule)
        self._undealt: list[deque[Row | Cut]] = [deque() for _ in range(num_agents)]
        self._drawn = 0
        self._versions = [0] * num_agents
        self._cuts = 0
        for _ in range(first_row):
            self._draw()

    def cut(self) -> Cut:
        """Return a cut after the rows that were drawn so far; each agent is dealt it between its own rows."""
        self._cuts += 1
        cut = Cut(self._cuts, self._drawn, tuple(self._versions))
        for own in self._undealt:
            own.append(cut)
        return cut

    def _draw(self) -> Row | None:
        row = next(self._rows)
        if row is not None:
            self._drawn += 1
            self._versions[row.agent] = row.step + 1
        return row

    def deal(self, agent: int, count: int) -> list[Row | Cut] | None:
        """Return what comes next for the agent, at most ``count``; an empty list once its schedule is at its end.

        ``None`` is returned where its next row depends on losses that have not been told.
        """
        own, rows = self._undealt[agent], self._rows
        is_open = False
        while len(own) < count:
            if isinstance(rows, PeerRows | ChurningServerRows) and rows.is_over(agent):
                break  # others may have many rows yet
            try:
                row = self._draw()
            except StopIteration:
                break
            if row is None:
                is_open = True
                break
            self._undealt[row.agent].append(row)
        if is_open and not own:
            return None
        return [own.popleft() for _ in range(min(count, len(own)))]

    def tell(self, row: Row, loss: float) -> None:
        """Tell the schedule the loss of a row that was executed; only some plans care."""
        tell_loss(self._rows, row, loss)
