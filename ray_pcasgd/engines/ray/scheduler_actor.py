"""The actor around the scheduler: where rows depend on losses, agents wait in it for their next rows."""

import threading

from ray_pcasgd.records import Event, Row, StepReport
from ray_pcasgd.schedule.scheduler import Schedule, Scheduler


class SchedulerActor:
    """Deals rows out and takes reports in, from several threads."""

    def __init__(self, schedule: Schedule, num_agents: int) -> None:
        self.scheduler = Scheduler(schedule, num_agents)
        self.changed = threading.Condition()

    def deal(self, agent: int, count: int) -> list[Row]:
        """Return the agent's next rows once they are known; nothing once its schedule is at its end."""
        with self.changed:
            while (rows := self.scheduler.deal(agent, count)) is None:
                self.changed.wait()
            return rows

    def record(self, reports: list[StepReport | Event]) -> None:
        """Take in what an agent reports, each agent's in order."""
        with self.changed:
            self.scheduler.record(reports)
            self.changed.notify_all()

    def drain(self) -> list[StepReport | Event]:
        """Return what has been reported since the last call."""
        with self.changed:
            return self.scheduler.drain()
