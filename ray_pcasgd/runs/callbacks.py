"""Callbacks: hooks that a run calls on start, step, evaluation, event, checkpoint, pause and end."""

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ray_pcasgd.base.imports import import_object, import_path
from ray_pcasgd.base.state import State
from ray_pcasgd.config import Config
from ray_pcasgd.engines.base import Pause
from ray_pcasgd.engines.failures import described
from ray_pcasgd.records import Event, StepReport
from ray_pcasgd.runs.plan.plan import Plan
from ray_pcasgd.runs.result import Result
from ray_pcasgd.runs.settings.errors import yaml_value
from ray_pcasgd.runs.settings.loading import SettingsError
from ray_pcasgd.runs.storage.checkpoints import Checkpoint


class Callback:
    """Base class of callbacks. Every hook does nothing by default.

    All hooks are called in the driver's process and main thread, one after another, so a slow hook holds up how the run
    is recorded (not, on the ray engine, how agents train). An exception that a hook raises ends the run with its files
    intact and is raised again; one that is raised in ``on_end`` is raised again once the run has ended.

    >>> class Best(Callback):
    ...     def __init__(self):
    ...         self.accuracy = 0.0
    ...
    ...     def on_evaluation(self, rows):
    ...         self.accuracy = max([self.accuracy, *(row["test_accuracy"] for row in rows)])
    """

    keeps_states = False
    """Whether it keeps the run's states itself (``on_pause``), so that the run does not."""

    def on_start(self, plan: Plan, path: Path) -> None:
        """React to the start of a run, also of one that is resumed; ``path`` is its folder."""

    def on_step(self, report: StepReport) -> None:
        """React to a row of the schedule that an agent or server has executed."""

    def on_evaluation(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """React to new rows of ``metrics.parquet``; those of the averaged model have ``pandas.NA`` as ``agent``."""

    def on_event(self, event: Event) -> None:
        """React to an event: a line of ``events.jsonl``."""

    def on_checkpoint(self, checkpoint: Checkpoint, metrics: Mapping[str, Any]) -> None:
        """React to a model that has been kept after an evaluation (setting ``checkpoint``), with its test metrics."""

    def on_pause(self, pause: Pause, state: Callable[[], State]) -> None:
        """React to a point where the run can be left; ``state``, if called at once, returns the state to go on from."""

    def on_end(self, result: Result) -> None:
        """React to the end of the run, however it ended (``result.error``); all of its files are written."""


HOOKS = tuple(name for name in vars(Callback) if name.startswith("on_"))
"""The names of all hooks."""

_BLAMED = "raised in the callback "


def blame(error: Exception, callback: Callback, hook: str) -> None:
    """Note on an error which callback raised it, and in which hook."""
    error.add_note(f"{_BLAMED}{import_path(type(callback))}, {hook}")


def blamed(error: Exception) -> str | None:
    """Return what a callback raised in one line, with callback and hook; ``None`` where no callback did."""
    notes = (str(note) for note in getattr(error, "__notes__", ()))
    note = next((note for note in notes if note.startswith(_BLAMED)), None)
    return None if note is None else f"{note}: {described(error)}"


def split(callbacks: Sequence[Callback | str]) -> tuple[tuple[str, ...], tuple[Callback, ...]]:
    """Return those of a list of callbacks that are import paths, and those that are objects.

    Raises:
        SettingsError: it is something other than a list of callbacks, or one has a method that no run would call.

    """
    allowed = "allowed is a list of objects of classes that are derived from ray_pcasgd.Callback, or of import paths"
    if not isinstance(callbacks, list | tuple):
        raise SettingsError(f"callbacks = {yaml_value(callbacks)}: {allowed}")
    for place, callback in enumerate(callbacks):
        if not isinstance(callback, Callback | str):
            raise SettingsError(f"callbacks.{place} = {yaml_value(callback)}: {allowed}")
        if isinstance(callback, Callback):
            check_hooks(callback, f"callbacks.{place} = {import_path(callback)}")
    paths = tuple(one for one in callbacks if isinstance(one, str))
    return paths, tuple(one for one in callbacks if isinstance(one, Callback))


def check_hooks(callback: Callback, what: str) -> None:
    """Raise ``SettingsError`` where a callback, named ``what``, has a method ``on_...`` that is no hook.

    No run would ever call it. **Choice**: methods of one's own have any other name.
    """
    for name in dir(callback):
        if not name.startswith("on_") or name in HOOKS:
            continue
        found = inspect.getattr_static(callback, name)  # a property is no method, and runs no code here
        if callable(found) or isinstance(found, classmethod):
            nearest = difflib.get_close_matches(name, HOOKS, 1, 0.0)[0]
            raise SettingsError(
                f"{what}: {name} is no hook; did you mean {nearest}? Allowed as names of methods are the hooks "
                f"{', '.join(HOOKS)}, and names that do not begin with on_"
            )


def made(config: Config) -> tuple[Callback, ...]:
    """Return new callbacks of those that settings name by import path.

    Raises:
        SettingsError: one of them cannot be made, or is something other than a callback.

    """
    callbacks = []
    for place, given in enumerate(config.callbacks):
        what = f"callbacks.{place} = {import_path(given)!r}"
        try:
            callback = import_object(given)()
        except SettingsError as error:  # it says itself what is missing
            raise SettingsError(f"{what}: {error}") from error
        except Exception as error:  # whatever the user's own code raises
            raise SettingsError(f"{what}: cannot be called without arguments ({described(error)})") from error
        if not isinstance(callback, Callback):
            allowed = "allowed is what returns an object of a class that is derived from ray_pcasgd.Callback"
            raise SettingsError(f"{what}: returns an object of {type(callback).__name__}; {allowed}")
        check_hooks(callback, what)
        callbacks.append(callback)
    return tuple(callbacks)
