"""TensorBoard: a run's curves as event files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray_pcasgd.records import Event
from ray_pcasgd.runs.plan.plan import Plan
from ray_pcasgd.runs.trackers.base import AVERAGED, Tracker, folder_within, require_text, required

FOLDER = "tensorboard"


class TensorBoard(Tracker):
    """Writes a run's settings, figures and events for ``tensorboard --logdir runs``; extra ``tensorboard``.

    Args:
        folder: where the run's event files lie; ``tensorboard`` in the run's folder if not given, or, where that is
            remote, ``tensorboard/NAME`` in the working directory.

    Raises:
        SettingsError: tensorboard is not installed, or ``folder`` is no folder.

    """

    def __init__(self, folder: str | Path | None = None) -> None:
        super().__init__()
        if folder is not None:
            require_text(folder, "TensorBoard.folder", (str, Path))
        self._library = required("torch.utils.tensorboard", "TensorBoard", "tensorboard")
        self._folder = folder
        self._writer: Any = None

    def open(self, plan: Plan, path: Path, settings: Mapping[str, Any]) -> None:
        """Begin an event file with the settings: as a table, and for the tab that compares runs by them."""
        folder = folder_within(plan, path, FOLDER) if self._folder is None else self._folder
        self._writer = self._library.SummaryWriter(str(folder))
        lines = [f"| {name} | {_cell(value)} |" for name, value in settings.items()]
        self._writer.add_text("settings", "\n".join(["| setting | value |", "|---|---|", *lines]))
        metrics = ["loss", *(metric.key for metric in plan.config.task.measured)]
        known = {
            name: value if isinstance(value, bool | int | float) else str(value) for name, value in settings.items()
        }
        shown = {f"{AVERAGED}/test_{metric}": 0.0 for metric in metrics}
        for summary in self._library.summary.hparams(known, shown):
            self._writer.file_writer.add_summary(summary)
        self._writer.flush()

    def figures(self, values: Mapping[str, float], step: int) -> None:
        """Write the figures of one evaluation."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def event(self, event: Event) -> None:
        """Write an event as text."""
        self._writer.add_text(f"events/{event.kind}", event.detail or event.kind, max(0, event.step))

    def close(self, status: str, error: str) -> None:
        """Write how the run ended."""
        self._writer.add_text("status", f"{status}: {error}" if error else status)
        self._writer.close()


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|")
