"""Faults that are done to a run on real actors, each at a step of its own."""

import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

from ray_pcasgd.base.state import step_of
from ray_pcasgd.config import CheckpointSettings
from ray_pcasgd.records import Event, StepReport
from ray_pcasgd.runs.callbacks import Callback
from ray_pcasgd.runs.plan.plan import Plan
from ray_pcasgd.runs.storage.state_files import StateFiles

SCHEDULER = -1
"""Stands among the agents for the scheduler."""


class Fault(Callback):
    """Does something to a run once any of its agents has come to a step, and a further condition, if given, is true."""

    def __init__(
        self, at_step: int, act: Callable[["Fault"], None], waits_for: Callable[["Fault"], bool] = lambda _: True
    ) -> None:
        self.at_step = at_step
        self.act: Callable[[Fault], None] | None = act
        self.waits_for = waits_for
        self.events_before: int | None = None
        """How many events there were when it acted."""
        self.processes: dict[int, int] = {}
        """By agent."""
        self.folder = Path()
        self.events: list[Event] = []

    def kinds(self) -> list[str]:
        """Return the kinds of all events, in order."""
        return [event.kind for event in self.events]

    def on_start(self, plan: Plan, path: Path) -> None:
        """Note where the run's folder is."""
        self.folder = path

    def on_event(self, event: Event) -> None:
        """Note where agents live."""
        self.events.append(event)
        if event.kind in ("agent_started", "scheduler_started"):
            found = re.match(r"process (\d+)", event.detail)
            assert found
            self.processes[event.agent] = int(found[1])

    def on_step(self, report: StepReport) -> None:
        """Act when it is time."""
        if self.act is not None and report.row.step >= self.at_step and self.waits_for(self):
            act, self.act = self.act, None
            self.events_before = len(self.events)
            act(self)


def has_kept(step: int) -> Callable[[Fault], bool]:
    """Return what is true once a run would go on from a step, or a later one."""
    read: list[str] = []
    newest = -1

    def is_so(fault: Fault) -> bool:
        nonlocal newest
        folder = fault.folder / "states"
        there = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        if there != read:  # to read a state takes longer than many steps
            read[:] = there
            state, _ = StateFiles(folder, CheckpointSettings()).newest()
            newest = -1 if state is None else step_of(state["engine"])
        return newest >= step

    return is_so


def has_outlived(other: Fault) -> Callable[[Fault], bool]:
    """Return what is true once a run was restarted after another fault, and has kept a state that it would go on from.

    The run may also have been restarted without a fault: a busy machine makes an agent seem silent.
    """
    keeps = has_kept(1)

    def is_so(fault: Fault) -> bool:
        since = other.events_before
        return since is not None and "run_restarted" in fault.kinds()[since:] and keeps(fault)

    return is_so


def kill(agent: int) -> Callable[[Fault], None]:
    """Return what kills an agent's process, or the scheduler's."""
    return lambda fault: os.kill(fault.processes[agent], signal.SIGKILL)


def silence(agent: int) -> Callable[[Fault], None]:
    """Return what halts an agent's process, which then answers nobody and is not gone either."""
    return lambda fault: os.kill(fault.processes[agent], signal.SIGSTOP)


def kill_driver(fault: Fault) -> None:
    """Kill this process, which is the run's driver."""
    os.kill(os.getpid(), signal.SIGKILL)


def take_states_away(fault: Fault) -> None:
    """Make the run's states impossible to write from now on, as a full or lost disk does."""
    shutil.rmtree(fault.folder / "states", ignore_errors=True)
    (fault.folder / "states").write_text("in the way")


class Several(Callback):
    """Several faults of one run."""

    def __init__(self, *faults: Fault) -> None:
        self.faults = faults
        self.events = faults[0].events

    def kinds(self) -> list[str]:
        """Return the kinds of all events, in order."""
        return [event.kind for event in self.events]

    def on_start(self, plan: Plan, path: Path) -> None:
        """Hand the run's start on to each fault."""
        for fault in self.faults:
            fault.on_start(plan, path)

    def on_event(self, event: Event) -> None:
        """Hand an event on to each fault."""
        for fault in self.faults:
            fault.on_event(event)

    def on_step(self, report: StepReport) -> None:
        """Hand a step on to each fault."""
        for fault in self.faults:
            fault.on_step(report)
