"""Faults, injected into a run at given steps: what tests and the fault benchmark do to a run."""

import os
import re
import signal

from ray_pcasgd.records import Event, StepReport
from ray_pcasgd.run import Watcher


class Killer(Watcher):
    """Kills agents' processes once any agent has taken certain steps: ``kills`` has (step, agent), steps rising."""

    def __init__(self, *kills: tuple[int, int]) -> None:
        self._kills = list(kills)
        self._processes: dict[int, int] = {}
        self.events: list[Event] = []

    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]

    def happened(self, event: Event) -> None:
        self.events.append(event)
        if event.kind == "agent_started" and (found := re.match(r"process (\d+)", event.detail)):
            self._processes[event.agent] = int(found[1])

    def stepped(self, report: StepReport) -> None:
        if self._kills and report.row.step >= self._kills[0][0]:
            _, agent = self._kills.pop(0)
            os.kill(self._processes[agent], signal.SIGKILL)
