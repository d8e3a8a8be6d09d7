"""The actor around the scheduler: where rows depend on losses, agents wait in it for their next rows."""

import os
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import ray

from ray_pcasgd.base.text import one_line
from ray_pcasgd.engines.live.commands import Command, decoded
from ray_pcasgd.engines.ray.cuts import AgentState
from ray_pcasgd.records import Event, Row, StepReport
from ray_pcasgd.schedule.scheduler import Cut, Schedule, Scheduler

Said = StepReport | Event | AgentState
"""What an agent says to the driver."""


ANSWER_SECONDS = 60.0
"""How long a command waits for the driver."""
_MOST_WAITING = 100
"""Commands that wait for the driver at once."""
_LONGEST_REASON = 300
"""Characters of why a command is refused."""


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
        self._status = ""
        self._commands: list[tuple[int, Command]] = []
        self._commands_given = 0
        self._answers: dict[int, str | None] = {}
        """Answers to the commands for which a caller waits, by their numbers."""

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

    @ray.method(concurrency_group="control")
    def status(self) -> str:
        """Return the run's status that the driver has given last: JSON, empty before the first one."""
        with self.changed:
            return self._status

    def show(self, status: str) -> None:
        """Take in the run's status."""
        with self.changed:
            self._status = status

    @ray.method(concurrency_group="control")
    def command(self, text: Any) -> str:
        """Hand an operator's command, which is JSON, to the driver; return what the driver says to it."""
        try:
            command = decoded(text)
        except ValueError as error:
            return f"refused: {one_line(error, _LONGEST_REASON)}"
        with self.changed:
            if len(self._answers) >= _MOST_WAITING:
                return f"refused: {_MOST_WAITING} commands are waiting already"
            number = self._commands_given
            self._commands_given += 1
            self._commands.append((number, command))
            self._answers[number] = None
            self.changed.wait_for(lambda: self._answers[number] is not None, ANSWER_SECONDS)
            return self._answers.pop(number) or "refused: the run does not answer"

    def commands(self) -> list[tuple[int, Command]]:
        """Return the commands that the driver has not taken yet."""
        with self.changed:
            commands, self._commands = self._commands, []
            return commands

    def answer(self, number: int, text: str) -> None:
        """Take in what the driver says to a command."""
        with self.changed:
            if number in self._answers:
                self._answers[number] = text
                self.changed.notify_all()

    def drain(self, received: int) -> list[Call]:
        """Return what agents have reported since; ``received`` calls are known to be with the driver."""
        with self.changed:
            gone = received - self._first_kept
            for call in self._kept[:gone]:
                self._with_driver[call.agent] = call.number + 1
            self._kept = self._kept[gone:]
            self._first_kept = received
            return list(self._kept)
