"""Faults of a live run: agents killed and stopped, at moments that are easily forgotten."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from experiments.faults.injecting import Fault
from ray_pcasgd.records import Event, StepReport

MARKS = "RAY_PCASGD_LIVE_FAULTS"
"""Environment variable that names the folder of marks: a process whose mark is there dies in its next evaluation."""


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the share of labels with the highest score; a process that is marked dies here, in the evaluation."""
    mark = Path(os.environ.get(MARKS, "/nonexistent")) / str(os.getpid())
    if mark.exists():
        mark.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    return (outputs.argmax(-1) == targets).float().mean()


class Nothing(Fault):
    """Does nothing to a run."""

    def __init__(self) -> None:
        super().__init__(10**9, lambda fault: None)


class AtStart(Fault):
    """Kills an agent once it is built, before its first step."""

    def __init__(self, agent: int) -> None:
        super().__init__(10**9, lambda fault: None)
        self.agent = agent
        self.is_done = False

    def on_event(self, event: Event) -> None:
        """Kill it when it reports where it lives."""
        super().on_event(event)
        if event.kind == "agent_started" and event.agent == self.agent and not self.is_done:
            self.is_done = True
            os.kill(self.processes[self.agent], signal.SIGKILL)


class AtStepOf(Fault):
    """Does something once a given agent has come to a step of its own."""

    def __init__(self, agent: int, at_step: int, act: Callable[[Fault], None]) -> None:
        super().__init__(at_step, act)
        self.agent = agent

    def on_step(self, report: StepReport) -> None:
        """Act when it is time."""
        if report.row.agent == self.agent:
            super().on_step(report)


class AgainAndAgain(Fault):
    """Kills the same agent several times: at a step, and whenever it has been back for a while."""

    def __init__(self, agent: int, at_step: int, times: int, pause: int) -> None:
        super().__init__(at_step, lambda fault: None)
        self.agent, self.next_step, self.left, self.pause = agent, at_step, times, pause

    def on_step(self, report: StepReport) -> None:
        """Kill it when it is time."""
        row = report.row
        if row.agent == self.agent and row.kind == "step" and row.step >= self.next_step and self.left:
            self.left -= 1
            self.next_step = row.step + self.pause
            os.kill(self.processes[self.agent], signal.SIGKILL)


def kill(*agents: int) -> Callable[[Fault], None]:
    """Return what kills agents' processes."""

    def act(fault: Fault) -> None:
        for agent in agents:
            os.kill(fault.processes[agent], signal.SIGKILL)

    return act


def stop(agent: int, seconds: float, then: signal.Signals = signal.SIGCONT) -> Callable[[Fault], None]:
    """Return what stops an agent's process for so many seconds, or ends it after them."""

    def act(fault: Fault) -> None:
        process = fault.processes[agent]
        os.kill(process, signal.SIGSTOP)
        timer = threading.Timer(seconds, os.kill, (process, then))
        timer.daemon = True
        timer.start()

    return act


def kill_in_evaluation(agent: int, marks: Path) -> Callable[[Fault], None]:
    """Return what lets an agent's process die in its next evaluation."""
    return lambda fault: (marks / str(fault.processes[agent])).touch()


@contextmanager
def busy(loops: int) -> Iterator[None]:
    """Let other processes, so many, compute as fast as they can meanwhile."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(loops)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()
