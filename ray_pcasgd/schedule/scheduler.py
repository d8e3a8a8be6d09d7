"""The one place of a run that knows who reads which version when: it deals rows out, and takes reports in."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from ray_pcasgd.records import Event, Row, StepReport
from ray_pcasgd.schedule.gathering import AdaSync
from ray_pcasgd.schedule.server_planner import ServerPlanner, ServerRows


class Schedule(Protocol):
    """Who reads which version when: planned, or recorded."""

    def __iter__(self) -> Iterator[Row | None]:
        """Return the rows from the first one on, in an order in which they can be executed.

        Nothing (``None``) stands where what comes next depends on losses that have not been told (``tell``).
        """
        ...


def tell(rows: Iterator[Row | None], row: Row, loss: float) -> None:
    """Tell a schedule's rows the loss of one that was executed; only some plans care."""
    if isinstance(rows, ServerRows) and row.kind == "step":
        rows.tell(row, loss)


@dataclass(frozen=True)
class Recorded:
    """A schedule that was recorded, executed as it stands; an empty one for runs that record their own."""

    recorded: tuple[Row, ...] = ()

    def __iter__(self) -> Iterator[Row]:
        return iter(self.recorded)


def waits_for_losses(schedule: Schedule) -> bool:
    """Return whether a schedule's rows depend on losses."""
    return isinstance(schedule, ServerPlanner) and isinstance(schedule.gathering, AdaSync)


class Scheduler:
    """Deals a planned schedule's rows to agents, and gathers what agents report. Never touches weights.

    A plain object: the ray engine puts it into an actor as it is.
    """

    def __init__(self, schedule: Schedule, num_agents: int) -> None:
        self._rows = iter(schedule)
        self._undealt: list[deque[Row]] = [deque() for _ in range(num_agents)]
        self._reports: list[StepReport | Event] = []

    def deal(self, agent: int, count: int) -> list[Row] | None:
        """Return the agent's next rows, at most ``count``; an empty list once its schedule is at its end.

        Nothing (``None``) is returned where its next row depends on losses that have not been recorded.
        """
        own = self._undealt[agent]
        is_open = False
        while len(own) < count:
            try:
                row = next(self._rows)
            except StopIteration:
                break
            if row is None:
                is_open = True
                break
            self._undealt[row.agent].append(row)
        if is_open and not own:
            return None
        return [own.popleft() for _ in range(min(count, len(own)))]

    def record(self, reports: list[StepReport | Event]) -> None:
        """Take in what an agent reports, each agent's in order."""
        for report in reports:
            if isinstance(report, StepReport):
                tell(self._rows, report.row, report.loss)
        self._reports.extend(reports)

    def drain(self) -> list[StepReport | Event]:
        """Return what has been reported since the last call."""
        reports, self._reports = self._reports, []
        return reports
