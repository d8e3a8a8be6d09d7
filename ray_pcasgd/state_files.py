"""The last states of a run, as files: whole, checked, and the older ones dropped."""

import hashlib
import os
import pickle
import shutil
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

from ray_pcasgd.config import CheckpointSettings
from ray_pcasgd.run_state import State, load_state, pace, save_state

_STATE, _CHECKSUM = "state.pt", "checksum"
_UNREADABLE = (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile)
"""What a file raises that is not there, not whole, or no state."""


class StateFiles:
    """Keeps the newest states of a run in a folder each, under rising numbers.

    A folder has its name only once everything in it is on the disk, so that whatever happens, the newest one that its
    checksum confirms is a state from which the run goes on.
    """

    def __init__(self, folder: Path, settings: CheckpointSettings) -> None:
        self._folder = folder
        self._settings = settings
        self._last = time.monotonic()
        self._cost_seconds = 0.0
        """What the last state took to write."""

    def is_due(self) -> bool:
        """Return whether it is time for the next state."""
        seconds = self._settings.state_seconds
        return seconds is not None and time.monotonic() - self._last >= pace(seconds, self._cost_seconds)

    def write(self, state: Callable[[], State]) -> None:
        """Write a state, and drop the ones that are too many.

        Raises:
            OSError: it could not be written; the states before it are as they were.

        """
        began = time.monotonic()
        names = self._names()
        number = int(names[-1]) + 1 if names else 1
        unfinished = self._folder / f"{number:06d}.unfinished"
        try:
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
            save_state(unfinished / _STATE, state())
            (unfinished / _CHECKSUM).write_text(_checksum(unfinished / _STATE), encoding="ascii")
            for path in (unfinished / _STATE, unfinished / _CHECKSUM, unfinished):
                _reach_disk(path)
            unfinished.rename(self._folder / f"{number:06d}")
        except (OSError, RuntimeError) as error:  # torch turns an error of the file system into its own
            shutil.rmtree(unfinished, ignore_errors=True)
            raise OSError(str(error).splitlines()[0]) from error
        finally:
            self._last = time.monotonic()
            self._cost_seconds = self._last - began
        for name in [*names, f"{number:06d}"][: -self._settings.states_to_keep]:
            shutil.rmtree(self._folder / name)

    def newest(self) -> tuple[State | None, list[str]]:
        """Return the newest state that is intact, nothing where there is none; and what was wrong with newer ones."""
        problems: list[str] = []
        for name in reversed(self._names()):
            path = self._folder / name
            try:
                if (path / _CHECKSUM).read_text(encoding="ascii") != _checksum(path / _STATE):
                    raise ValueError("its checksum differs")
                return load_state(path / _STATE), problems
            except _UNREADABLE as error:
                problems.append(f"state {path} cannot be used ({error}); an older one is taken")
        return None, problems

    def drop(self) -> None:
        """Drop all states, of a run that is complete."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _names(self) -> list[str]:
        return sorted(path.name for path in self._folder.glob("[0-9]*") if path.name.isdecimal())


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def _reach_disk(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
