"""The last states of a run, as files: whole, checked, and the older ones dropped."""

import hashlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from ray_pcasgd.base.own_files import UNFINISHED, is_file, make_folder, remove_files, remove_whole, whole_folder
from ray_pcasgd.base.state import State, StateFormatError, load_state, pace, require_format, save_state
from ray_pcasgd.config import CheckpointSettings
from ray_pcasgd.runs.settings.errors import one_line

_STATE, _CHECKSUM = "state.pt", "checksum"
_FILES = (_STATE, _CHECKSUM)
_LONGEST = 200
"""Characters of a problem that are shown."""
_MOST_DIGITS = 18


class Kept(NamedTuple):
    """A state that was kept, as it was found."""

    path: Path
    state: State | None
    """``None`` where it is damaged."""
    problem: str
    """What is wrong with it."""


class StateFiles:
    """Keeps the newest states of a run in a folder each, under rising numbers.

    A folder has its name only once everything in it is on the disk, so that whatever happens, the newest one that its
    checksum confirms is a state from which the run goes on.
    """

    def __init__(self, folder: Path, settings: CheckpointSettings) -> None:
        self.folder = folder
        """Where states are kept."""
        self._left: list[Path] = []
        """Where they were kept before."""
        self._settings = settings
        self._last = time.monotonic()
        self._cost_seconds = 0.0
        """What the last state took to write."""

    def write_to(self, folder: Path) -> None:
        """Keep states in another folder from now on."""
        self._left.append(self.folder)
        self.folder = folder

    def has_any(self) -> bool:
        """Return whether there is any state."""
        return bool(_names(self.folder))

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
        names = _names(self.folder)
        number = int(names[-1]) + 1 if names else 1
        try:
            make_folder(self.folder)
            with whole_folder(self.folder / f"{number:06d}", _FILES) as unfinished:
                save_state(unfinished / _STATE, state())
                (unfinished / _CHECKSUM).write_text(_checksum(unfinished / _STATE), encoding="ascii")
        except (OSError, RuntimeError) as error:  # torch turns an error of the file system into its own
            raise OSError(one_line(error)[:_LONGEST]) from error
        finally:
            self._last = time.monotonic()
        self._cost_seconds = self._last - began  # one that fails is soon tried again, however long it took to fail
        for name in [*names, f"{number:06d}"][: -self._settings.states_to_keep]:
            remove_whole(self.folder / name, _FILES)

    def kept(self) -> Iterator[Kept]:
        """Yield the states that are there, the newest first.

        Raises:
            StateFormatError: another version wrote one that is intact.

        """
        folders = [self.folder, *reversed(self._left)]
        for path in [folder / name for folder in folders for name in reversed(_names(folder))]:
            try:
                yield Kept(path, _loaded(path), "")
            except StateFormatError:
                raise
            except Exception as error:  # whatever a damaged file makes its reader raise
                yield Kept(path, None, one_line(error)[:_LONGEST] or type(error).__name__)

    def newest(self) -> tuple[State | None, list[str]]:
        """Return the newest state that is intact, or ``None`` without one; and what was wrong with newer ones."""
        problems: list[str] = []
        for path, state, problem in self.kept():
            if state is not None:
                return state, problems
            problems.append(f"state {path} cannot be used ({problem}); an older one is taken")
        return None, problems

    def drop(self) -> None:
        """Drop all states, of a run that is complete."""
        if self.folder.is_symlink():
            return
        for path in self.folder.glob("[0-9]*"):
            if path.name.removesuffix(UNFINISHED).isdecimal():
                remove_files(path, _FILES)
        remove_files(self.folder, ())


def require_readable(folder: Path) -> None:
    """Raise ``StateFormatError`` where another version wrote the newest state in a folder that is no damaged file."""
    for name in reversed(_names(folder)):
        try:
            require_format(folder / name / _STATE)
        except StateFormatError:
            raise
        except Exception:  # whatever a damaged file makes its reader raise
            continue
        return


def _names(folder: Path) -> list[str]:
    """Return the names of what was kept in a folder, by their numbers."""
    found = (path.name for path in folder.glob("[0-9]*") if path.is_dir())
    return sorted((name for name in found if name.isdecimal() and len(name) <= _MOST_DIGITS), key=int)


def _loaded(path: Path) -> State:
    for name in (_STATE, _CHECKSUM):
        if not is_file(path / name):
            raise FileNotFoundError(f"it has no {name}")
    with (path / _CHECKSUM).open("rb") as file:
        if file.read(1000).decode("ascii", errors="replace") != _checksum(path / _STATE):
            raise ValueError("its checksum differs")
    return load_state(path / _STATE)


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()
