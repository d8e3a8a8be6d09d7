"""The actor around the scheduler: where rows depend on losses, agents wait in it for their next rows."""

import threading

from ray_pcasgd.records import Event, Row, StepReport
from ray_pcasgd.schedule.scheduler import Schedule, Scheduler


class SchedulerActor:
    """Deals rows out and takes reports in, from several threads."""

    def __init__(self, schedule: Schedule, num_agents: int) -> None:
        self.scheduler = Scheduler(schedule, num_agents)
        self.changed = threading.Condition()
        self._early: list[dict[int, list[StepReport | Event]]] = [{} for _ in range(num_agents)]
        """Reports of each agent that came before others that it had sent first, by their number."""
        self._taken = [0] * num_agents

    def deal(self, agent: int, count: int) -> list[Row]:
        """Return the agent's next rows once they are known; nothing once its schedule is at its end."""
        with self.changed:
            while (rows := self.scheduler.deal(agent, count)) is None:
                self.changed.wait()
            return rows

    def record(self, agent: int, number: int, reports: list[StepReport | Event]) -> None:
        """Take in what an agent reports; ``number`` counts its calls, from 0: threads may take them out of turn."""
        with self.changed:
            early = self._early[agent]
            early[number] = reports
            while (turn := early.pop(self._taken[agent], None)) is not None:
                self.scheduler.record(turn)
                self._taken[agent] += 1
            self.changed.notify_all()

    def drain(self) -> list[StepReport | Event]:
        """Return what has been reported since the last call."""
        with self.changed:
            return self.scheduler.drain()
