"""The one place of a run that knows who reads which version when: it deals rows out, and takes reports in."""

from collections import deque
from collections.abc import Iterable, Iterator

from ray_pcasgd.records import Event, Row, StepReport


class Scheduler:
    """Deals a planned schedule's rows to agents, and gathers what agents report. Never touches weights.

    A plain object: the ray engine puts it into an actor as it is.
    """

    def __init__(self, rows: Iterable[Row], num_agents: int) -> None:
        self._rows: Iterator[Row] = iter(rows)
        self._undealt: list[deque[Row]] = [deque() for _ in range(num_agents)]
        self._reports: list[StepReport | Event] = []

    def deal(self, agent: int, count: int) -> list[Row]:
        """Return the agent's next rows, at most ``count``; nothing once its schedule is at its end."""
        own = self._undealt[agent]
        while len(own) < count and (row := next(self._rows, None)) is not None:
            self._undealt[row.agent].append(row)
        return [own.popleft() for _ in range(min(count, len(own)))]

    def record(self, reports: list[StepReport | Event]) -> None:
        """Take in what an agent reports, each agent's in order."""
        self._reports.extend(reports)

    def drain(self) -> list[StepReport | Event]:
        """Return what has been reported since the last call."""
        reports, self._reports = self._reports, []
        return reports
