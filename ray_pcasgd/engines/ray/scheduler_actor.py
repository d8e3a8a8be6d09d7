"""The actor around the scheduler: where rows depend on losses, agents wait in it for their next rows."""

import os
import threading
from collections.abc import Sequence
from typing import NamedTuple

import ray

from ray_pcasgd.engines.ray.agent_state import AgentState
from ray_pcasgd.records import Event, Row, StepReport
from ray_pcasgd.schedule.scheduler import Cut, Schedule, Scheduler

Said = StepReport | Event | AgentState
"""What an agent says to the driver."""


class Call(NamedTuple):
    """What an agent says in one call."""

    agent: int
    number: int
    """Counts the agent's calls, from 0."""
    said: Sequence[Said]


class SchedulerActor:
    """Deals rows out and keeps what agents say until the driver has it, from several threads."""

    def __init__(self, schedule: Schedule, num_agents: int, first_row: int = 0) -> None:
        self.scheduler = Scheduler(schedule, num_agents, first_row)
        self.changed = threading.Condition()
        self._early: list[dict[int, Sequence[Said]]] = [{} for _ in range(num_agents)]
        """What each agent said in calls that came before others that it had made first, by their number."""
        self._taken: list[int | None] = [None] * num_agents
        """The number of each agent's next call; ``None`` where no call has come yet."""
        self._kept: list[Call] = []
        self._first_kept = 0
        """How many calls the driver is known to have."""
        self._with_driver = [0] * num_agents

    def __repr__(self) -> str:
        return "Scheduler"

    def ready(self) -> str:
        """Return where the scheduler lives."""
        return f"process {os.getpid()} on {ray.util.get_node_ip_address()}"

    def deal(self, agent: int, count: int) -> list[Row | Cut]:
        """Return what comes next for the agent once it is known; an empty list once its schedule is at its end."""
        with self.changed:
            while (dealt := self.scheduler.deal(agent, count)) is None:
                self.changed.wait()
            return dealt

    def cut(self) -> Cut:
        """Cut the schedule after the rows that were dealt so far."""
        with self.changed:
            return self.scheduler.cut()

    def record(self, agent: int, number: int, oldest: int, said: Sequence[Said]) -> int:
        """Take in what an agent says; return how many of its calls the driver is known to have.

        ``number`` counts its calls, which threads may take out of turn; ``oldest`` is the first of those that it knows
        no more of: a scheduler that takes the place of a lost one begins there.
        """
        with self.changed:
            early = self._early[agent]
            early[number] = said
            turn = self._taken[agent]
            turn = oldest if turn is None else turn
            while turn in early:
                self._take(Call(agent, turn, early.pop(turn)))
                turn += 1
            self._taken[agent] = turn
            self.changed.notify_all()
            return self._with_driver[agent]

    def _take(self, call: Call) -> None:
        self._kept.append(call)
        for report in call.said:
            if isinstance(report, StepReport):
                self.scheduler.tell(report.row, report.loss)

    def forget(self, agent: int) -> None:
        """Wait no longer for calls of a lost agent."""
        with self.changed:
            self._early[agent] = {}
            self._taken[agent] = None

    def drain(self, received: int) -> list[Call]:
        """Return what agents have reported since; ``received`` calls are known to be with the driver."""
        with self.changed:
            gone = received - self._first_kept
            for call in self._kept[:gone]:
                self._with_driver[call.agent] = call.number + 1
            self._kept = self._kept[gone:]
            self._first_kept = received
            return list(self._kept)
