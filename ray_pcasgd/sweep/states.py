"""Trials that can be left and taken up: their reports to Tune, with a run's state where one is due."""

import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, chdir, nullcontext
from pathlib import Path
from typing import Any

from ray import tune

from ray_pcasgd.base.state import State, load_state, save_state
from ray_pcasgd.engines.base import Pause
from ray_pcasgd.runs.storage.remote import RemoteStorage, is_remote, parent_of

_STATE_FILE = "state.pt"


def working_in(directory: str) -> AbstractContextManager[None]:
    """Look paths up from a directory, as the sweep's command does; Tune has gone to a folder of the trial's.

    Where another machine has no such directory, only whole paths are found.
    """
    return chdir(directory) if Path(directory).is_dir() else nullcontext()


def with_axis(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return metrics with the run's step under the name that Tune's TensorBoard logger takes for its axis."""
    return {**metrics, "timesteps_total": int(metrics["step"])}


class StateFile:
    """The file of a trial's state among the runs, which is whole at any time, on this machine or on remote storage."""

    def __init__(self, runs: str, name: str) -> None:
        self._runs = runs
        self._name = f"{name}.pt"

    def save(self, state: State) -> None:
        """Write a state in place of the last one.

        Raises:
            OSError: it cannot be written.

        """
        if not is_remote(self._runs):
            save_state(Path(self._runs) / self._name, state)
            return
        with tempfile.TemporaryDirectory() as folder:
            save_state(Path(folder) / self._name, state)
            storage, name = parent_of(self._runs)
            RemoteStorage(storage).put(name, self._name, (Path(folder) / self._name).read_bytes())

    def load(self) -> State | None:
        """Return the last state; ``None`` where there is none.

        Raises:
            OSError: it cannot be read.

        """
        if not is_remote(self._runs):
            file = Path(self._runs) / self._name
            return load_state(file) if file.exists() else None
        storage, name = parent_of(self._runs)
        content = RemoteStorage(storage).read(name, self._name)
        if content is None:
            return None
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / self._name).write_bytes(content)
            return load_state(Path(folder) / self._name)

    def drop(self) -> None:
        """Remove the last state, if there is one.

        Raises:
            OSError: it cannot be removed.

        """
        if is_remote(self._runs):
            storage, name = parent_of(self._runs)
            RemoteStorage(storage).withdraw(name, (self._name,))
        else:
            (Path(self._runs) / self._name).unlink(missing_ok=True)


class StateKeeper:
    """Reports to Tune what a trial came to, and from time to time keeps the state from which it goes on.

    A trial's state is kept in a file of its own, which is whole at any time. Only where trials go on from each other's
    states do these go through Tune's checkpoints: a sweep that is killed while Tune drops one could not be resumed.
    """

    def __init__(
        self, file: StateFile, every_seconds: float, every_steps: int | None = None, longest_round: int = 1
    ) -> None:
        self._file = file
        self._every_seconds = every_seconds
        self._every_steps = every_steps
        self._longest_round = longest_round
        """By how many steps at most a pause comes after the multiple of steps that it is for."""
        self._last = time.monotonic()

    def report(self, metrics: Mapping[str, Any], pause: Pause, state: Callable[[], State]) -> None:
        """Report metrics, at a pause."""
        metrics = with_axis(metrics)
        if self._every_steps is not None and self._is_due(pause.step, self._every_steps):
            with tempfile.TemporaryDirectory() as folder:
                save_state(Path(folder) / _STATE_FILE, {**state(), "next_step": pause.next_step})
                tune.report(dict(metrics), checkpoint=tune.Checkpoint.from_directory(folder))
            return
        tune.report(dict(metrics))
        if self._every_steps is None and time.monotonic() - self._last >= self._every_seconds:
            self._file.save({**state(), "next_step": pause.next_step})
            self._last = time.monotonic()

    def _is_due(self, step: int, every: int) -> bool:
        """Return whether the round that has ended at a step came to a multiple of ``every``."""
        return has_passed(step, every, self._longest_round)

    def last(self) -> State | None:
        """Return the state from which the trial goes on; ``None`` where it starts."""
        if (checkpoint := tune.get_checkpoint()) is not None:
            with checkpoint.as_directory() as folder:
                return load_state(Path(folder) / _STATE_FILE)
        return self._file.load()

    def forget(self) -> None:
        """Drop what was kept, once the trial is done."""
        self._file.drop()


def has_passed(step: int, every: int, back: int) -> bool:
    """Return whether there is a multiple of ``every`` among the last ``back`` steps up to ``step``.

    >>> has_passed(20, 10, 1), has_passed(21, 10, 1), has_passed(21, 10, 7), has_passed(28, 10, 7), has_passed(28, 7, 7)
    (True, False, True, False, True)
    """
    return step // every > (step - back) // every
