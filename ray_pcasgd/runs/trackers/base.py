"""What all trackers of experiments share: settings in one level, figures by step, events, and how the run ended."""

import importlib
import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ray_pcasgd.base.errors import SettingsError
from ray_pcasgd.base.imports import import_path
from ray_pcasgd.base.own_files import make_folder
from ray_pcasgd.base.text import one_line
from ray_pcasgd.config import Config
from ray_pcasgd.engines.failures import described
from ray_pcasgd.records import Event
from ray_pcasgd.runs.callbacks import Callback
from ray_pcasgd.runs.plan.plan import Plan
from ray_pcasgd.runs.result import Result
from ray_pcasgd.runs.storage.remote import is_remote

AVERAGED = "averaged"
"""Stands for the averaged model among the agents."""

logger = logging.getLogger("ray_pcasgd")


def require_text(given: Any, name: str, kinds: tuple[type, ...] = (str,)) -> None:
    """Raise ``SettingsError`` where an argument of a tracker is neither a text nor a path, where it may be one."""
    if not isinstance(given, kinds) or not str(given):
        allowed = "a folder" if Path in kinds else "a text"
        raise SettingsError(f"{name} = {given!r}: allowed is {allowed}")


class Tracker(Callback, ABC):
    """Base class of trackers.

    What the tracker's library raises at the start is raised; what it raises later is logged once as a warning, and
    nothing more is tracked: a run is worth more than its curves.
    """

    def __init__(self) -> None:
        self._is_open = False

    @abstractmethod
    def open(self, plan: Plan, path: Path, settings: Mapping[str, Any]) -> None:
        """Begin a run, with its settings in one level (``flattened``)."""

    @abstractmethod
    def figures(self, values: Mapping[str, float], step: int) -> None:
        """Take in the figures of one evaluation, under names such as ``averaged/test_loss``."""

    @abstractmethod
    def event(self, event: Event) -> None:
        """Take in an event."""

    @abstractmethod
    def close(self, status: str, error: str) -> None:
        """End the run: it has ``finished``, ``failed`` or was ``interrupted``, with what error."""

    def on_start(self, plan: Plan, path: Path) -> None:
        """Begin a run; one that is resumed is another run to the tracker."""
        self.open(plan, path, flattened(settings_of(plan.acting)))
        self._is_open = True

    def on_evaluation(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Hand over the figures of the averaged model and of the agents."""
        for step in dict.fromkeys(int(row["step"]) for row in rows):
            self._tell(self.figures, figures_of([row for row in rows if row["step"] == step]), step)

    def on_event(self, event: Event) -> None:
        """Hand over an event."""
        self._tell(self.event, event)

    def on_end(self, result: Result) -> None:
        """Say how the run ended."""
        self._tell(self.close, ended_as(result), one_line(result.error or ""))
        self._is_open = False

    def _tell(self, method: Callable[..., None], *arguments: Any) -> None:
        if not self._is_open:
            return
        try:
            method(*arguments)
        except Exception as error:
            self._is_open = False
            logger.warning("%s tracks no more of the run: %s", type(self).__name__, described(error))


def required(module: str, tracker: str, extra: str) -> Any:
    """Return the module of a tracker's library.

    Raises:
        SettingsError: it is not installed.

    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise SettingsError(
            f"{tracker} needs a library that is not installed ({one_line(error, 200)}): "
            f"pip install 'ray-pcasgd[{extra}]'"
        ) from error


def settings_of(config: Config) -> dict[str, Any]:
    """Return a run's settings as ``config.yaml`` has them; the user's own objects by their import paths."""
    return config.model_dump(mode="json", fallback=import_path)


def flattened(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return settings in one level, by the names that they have after ``--set``; plain lists as JSON text.

    >>> flattened({"seed": 0, "algorithm": {"name": "pc-asgd"}, "links": [{"delay": 10}], "hidden": [64, 64]})
    {'seed': 0, 'algorithm.name': 'pc-asgd', 'links.0.delay': 10, 'hidden': '[64, 64]'}
    """
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        is_list_of_settings = isinstance(value, list) and any(isinstance(item, Mapping) for item in value)
        inner: Any = dict(enumerate(value)) if is_list_of_settings else value
        if isinstance(inner, Mapping) and inner:
            flat |= flattened(inner, f"{name}.")
        else:
            flat[name] = json.dumps(inner) if isinstance(inner, list | Mapping) else inner
    return flat


def figures_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the figures of one evaluation, of each agent (``agent_0/...``) and the averaged model (``averaged/...``).

    What is NaN was not measured, and is left out.
    """
    figures: dict[str, float] = {}
    for row in rows:
        who = AVERAGED if pd.isna(row["agent"]) else f"agent_{row['agent']}"
        measured = {name: float(value) for name, value in row.items() if name not in ("agent", "step")}
        figures |= {f"{who}/{name}": value for name, value in measured.items() if value == value}
    return figures


def ended_as(result: Result) -> str:
    """Return how a run ended, in the words of ``result.json``."""
    if result.error is None:
        return "finished"
    return "interrupted" if str(result.error) == "interrupted" else "failed"


def folder_within(plan: Plan, path: Path, name: str) -> Path:
    """Return a new or existing folder for a tracker's files: in the run's folder.

    The files of a run on remote storage are on this machine only for as long as it runs, so those of its trackers lie
    in the working directory, under the run's name.

    Raises:
        OSError: it cannot be made, or is a symbolic link.

    """
    if not is_remote(plan.config.storage_path):
        make_folder(folder := path / name)
        return folder
    Path(name).mkdir(exist_ok=True)
    make_folder(folder := Path(name) / path.name)
    return folder.resolve()
