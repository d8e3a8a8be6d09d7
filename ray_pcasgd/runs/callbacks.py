"""Callbacks: hooks that a run calls on start, step, evaluation, event, pause and end."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ray_pcasgd.base.state import State
from ray_pcasgd.engines.base import Pause
from ray_pcasgd.records import Event, StepReport
from ray_pcasgd.runs.plan.plan import Plan


class Callback:
    """Is told of a run while it is running; the default ignores it."""

    keeps_states = False
    """Whether it keeps the run's states itself, so that the run need not."""

    def started(self, plan: Plan, path: Path) -> None:
        """Take in the plan, and the run's folder, before the first step."""

    def stepped(self, report: StepReport) -> None:
        """Take in one step."""

    def evaluated(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Take in metrics rows; that of the averaged model has no agent."""

    def happened(self, event: Event) -> None:
        """Take in an event."""

    def paused(self, pause: Pause, state: Callable[[], State]) -> None:
        """Take in that the run can be left here; ``state``, if called at once, returns the state to go on from."""

    def finished(self) -> None:
        """Take in that there will be no more steps."""


class Callbacks(Callback):
    """Several watchers, which are told one after another."""

    def __init__(self, *watchers: Callback) -> None:
        self._watchers = watchers

    @property
    def keeps_states(self) -> bool:  # type: ignore[override]
        """Whether one of them keeps the run's states itself."""
        return any(watcher.keeps_states for watcher in self._watchers)

    def started(self, plan: Plan, path: Path) -> None:
        """Take in the plan, and the run's folder."""
        for watcher in self._watchers:
            watcher.started(plan, path)

    def stepped(self, report: StepReport) -> None:
        """Take in one step."""
        for watcher in self._watchers:
            watcher.stepped(report)

    def evaluated(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Take in metrics rows."""
        for watcher in self._watchers:
            watcher.evaluated(rows)

    def happened(self, event: Event) -> None:
        """Take in an event."""
        for watcher in self._watchers:
            watcher.happened(event)

    def paused(self, pause: Pause, state: Callable[[], State]) -> None:
        """Take in that the run can be left here."""
        for watcher in self._watchers:
            watcher.paused(pause, state)

    def finished(self) -> None:
        """Take in that there will be no more steps."""
        for watcher in self._watchers:
            watcher.finished()
