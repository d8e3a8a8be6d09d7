"""Weights & Biases: a run in a project, offline unless asked otherwise."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray_pcasgd.base.errors import SettingsError
from ray_pcasgd.records import Event
from ray_pcasgd.runs.plan.plan import Plan
from ray_pcasgd.runs.trackers.base import Tracker, require_text, required

_STEP = "step"
_MODES = ("online", "offline", "disabled", "dryrun", "run", "shared")
"""Its own words; the last three are other words of it for the first ones."""


class WandB(Tracker):
    """Hands a run's settings, figures and events to Weights & Biases; extra ``wandb``.

    Args:
        project: its project.
        mode: ``online``, ``offline`` or ``disabled``. Not given: what the library's own variable ``WANDB_MODE`` says,
            else ``offline``, so that nothing leaves this machine until ``wandb sync``.
        folder: where its folder ``wandb`` lies.
        more: further arguments of ``wandb.init``, such as ``entity``, ``group`` or ``tags``.

    Raises:
        SettingsError: wandb is not installed, or an argument is none of these.

    """

    def __init__(
        self, project: str = "ray_pcasgd", mode: str | None = None, folder: str | Path = ".", **more: Any
    ) -> None:
        super().__init__()
        require_text(project, "WandB.project")
        require_text(folder, "WandB.folder", (str, Path))
        _require_mode("WandB.mode", mode)
        _require_mode("WANDB_MODE", None if mode else os.environ.get("WANDB_MODE"))
        self._library = required("wandb", "WandB", "wandb")
        self._given = {"project": project, "dir": str(folder), **more}
        self._mode = mode
        self._run: Any = None

    def open(self, plan: Plan, path: Path, settings: Mapping[str, Any]) -> None:
        """Begin a run there, next to others of this process."""
        mode = self._mode or (None if "WANDB_MODE" in os.environ else "offline")
        # What the driver prints may be of several runs.
        quiet = self._library.Settings(console="off")
        own = {"name": path.name, "mode": mode, "reinit": "create_new", "config": dict(settings), "settings": quiet}
        self._run = self._library.init(**own | self._given)
        # Agents' events come in no order of steps, which its own counter would refuse.
        self._run.define_metric(_STEP)
        self._run.define_metric("*", step_metric=_STEP)

    def figures(self, values: Mapping[str, float], step: int) -> None:
        """Log the figures of one evaluation."""
        self._run.log({**values, _STEP: step})

    def event(self, event: Event) -> None:
        """Log an event."""
        told = {"kind": event.kind, "agent": event.agent, "detail": event.detail}
        self._run.log({**{f"event/{name}": value for name, value in told.items()}, _STEP: max(0, event.step)})

    def close(self, status: str, error: str) -> None:
        """End the run; one that did not finish is marked as failed."""
        self._run.summary.update({"status": status, "error": error})
        self._run.finish(exit_code=0 if status == "finished" else 1)


def _require_mode(name: str, mode: str | None) -> None:
    if mode is not None and mode not in _MODES:
        raise SettingsError(f"{name} = {mode!r}: allowed are online, offline and disabled")
