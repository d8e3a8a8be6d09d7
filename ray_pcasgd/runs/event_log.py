"""A run's events and evaluations as log records, which know their run and agent."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ray_pcasgd.base.text import printable
from ray_pcasgd.records import Event
from ray_pcasgd.runs.callbacks import Callback
from ray_pcasgd.runs.plan.plan import Plan

logger = logging.getLogger("ray_pcasgd")
_WARNINGS = ("lost", "restarted", "rejected", "silent", "failed", "skipped", "not_", "isolated", "anew", "interrupted")


class EventLog(Callback):
    """Logs what happens in a run under the name ``ray_pcasgd``, with ``run``, ``agent``, ``event`` and ``step``.

    ``agent`` is -1 where the event is not about one agent. Where the records go is up to the process's logging.
    """

    def __init__(self) -> None:
        self._run = ""

    def on_start(self, plan: Plan, path: Path) -> None:
        """Take in the run's name."""
        self._run = path.name

    def on_event(self, event: Event) -> None:
        """Log an event; what went wrong as a warning."""
        level = logging.WARNING if any(word in event.kind for word in _WARNINGS) else logging.INFO
        extra = {"run": self._run, "agent": event.agent, "event": event.kind, "step": event.step}
        logger.log(level, printable(event.detail), extra=extra)

    def on_evaluation(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Log evaluations of the averaged model."""
        for row in rows:
            if pd.isna(row["agent"]):
                tested = {name: value for name, value in row.items() if name.startswith("test_")}
                figures = ", ".join(f"{name} {value:.4g}" for name, value in tested.items())
                extra = {"run": self._run, "agent": -1, "event": "evaluated", "step": row["step"], **tested}
                logger.info("averaged model at step %d: %s", row["step"], figures, extra=extra)
