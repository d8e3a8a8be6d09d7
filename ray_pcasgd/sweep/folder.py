"""Where a sweep lies: a folder of this machine, or one on remote storage, with its own files at hand here."""

import hashlib
import logging
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path, PurePath
from typing import Any

from pyarrow.fs import LocalFileSystem

from ray_pcasgd.base.errors import RunError
from ray_pcasgd.base.locations import refuse_key
from ray_pcasgd.base.own_files import TemporaryFolder, remove_files
from ray_pcasgd.base.own_state import own_folder
from ray_pcasgd.runs.settings.errors import yaml_value
from ray_pcasgd.runs.settings.loading import SettingsError
from ray_pcasgd.runs.storage.lock import FolderLock, LockedError
from ray_pcasgd.runs.storage.names import claimed_folder, reached, taken, unreachable
from ray_pcasgd.runs.storage.remote import RemoteStorage, is_remote, location_in, parent_of, reason_of

logger = logging.getLogger("ray_pcasgd")

SWEEP_FILE = "sweep.yaml"
BASE_FILE = "base.yaml"
DIRECTORY_FILE = "started_in"
"""Notes from where paths in the settings are looked up, also when the sweep goes on."""
PACKS_FILE = "packs.json"
TRIALS_FILE = "trials.parquet"
BEST_FILE = "best.yaml"
REPORT_FILE = "report.html"
OWN_FILES = (SWEEP_FILE, DIRECTORY_FILE, BASE_FILE)
"""By which a sweep is known as this user's."""
LEFT_FILES = (BEST_FILE, TRIALS_FILE, REPORT_FILE)
"""What a sweep leaves for its user."""
RUNS_FOLDER = "runs"
_SPOKEN = "sweep's folder"
_TUNES_FILE = re.compile(
    r"(tuner|trainable)\.pkl|\.validate_storage_marker|(experiment_state|searcher-state|search_gen_state)-.*"
)


class SweepFolder:
    """A sweep's folder.

    Its own files are written to ``path``, and ``publish`` copies them to where the sweep is, if that is elsewhere. Runs
    and Tune's files never pass through here: trials and Tune write them to ``location``.
    """

    def __init__(self, path: Path, remote: RemoteStorage | None = None, copy: TemporaryFolder | None = None) -> None:
        self.path = path
        """The folder of the sweep's own files, on this machine."""
        self.remote = remote
        """The storage that the sweep is on, unless that is this machine's."""
        self.name = path.name
        self._copy = copy
        self._lock: FolderLock | None = None

    @classmethod
    def create(cls, storage_path: str, name: str | None, files: Mapping[str, str]) -> "SweepFolder":
        """Make a new folder with such files, which no other sweep gets.

        Raises:
            SettingsError: the named one exists, or it cannot be made.

        """
        if not is_remote(storage_path):
            folder = cls(claimed_folder(storage_path, name, "sweep", _SPOKEN).resolve())
            _write(folder.path, files)
            folder._hold()
            return folder
        remote = reached(storage_path)
        try:
            first, text = next(iter(files.items()))
            folder = cls._with_copy(remote, remote.claim(name, "sweep", first, text.encode()))
            _write(folder.path, files)
            remote.mirror(folder.path, folder.name, (), ())
        except FileExistsError:
            raise taken(storage_path, name, _SPOKEN) from None
        except OSError as error:
            raise SettingsError(
                f"storage_path = {yaml_value(storage_path)}: cannot be written ({reason_of(error)})"
            ) from None
        folder._hold()
        return folder

    @classmethod
    def reopen(cls, location: str) -> "SweepFolder":
        """Return the folder of a sweep that was started; the settings of a remote one are copied to this machine.

        Raises:
            SettingsError: it is no such folder, cannot be reached, its sweep is running, or its location holds a key.

        """
        refuse_key(location)
        folder = cls._fetched(location) if is_remote(location) else cls(Path(location).expanduser().resolve())
        if not all((folder.path / name).is_file() for name in OWN_FILES):
            folder.close()
            raise SettingsError(f"{location}: is not the folder of a sweep that was started")
        try:
            folder._take_lock()
        except SettingsError:
            folder.close()
            raise
        return folder

    def _hold(self) -> None:
        """Take the lock of a new folder, which is taken back where the one that it replaces is still running."""
        try:
            self._take_lock()
        except SettingsError:
            self.discard()
            self.close()
            raise

    def _take_lock(self) -> None:
        """Keep other drivers away as long as this one lives; on object storage, those of this user on this machine.

        Raises:
            SettingsError: another driver has the sweep.

        """
        try:
            self._lock = FolderLock(self._lock_file())
            problem = self._lock.problem
        except LockedError:
            raise SettingsError(
                f"{self.location}: is running; allowed is to go on with a sweep that has ended"
            ) from None
        except OSError as error:  # of a home that cannot be written to
            problem = reason_of(error)
        if problem is not None:
            logger.warning("%s: no second driver is kept away from this sweep: %s", self.location, problem)

    def _lock_file(self) -> Path:
        if self.local_path is not None:
            return self.local_path / SWEEP_FILE
        place = self.location.partition("?")[0]
        file = own_folder("sweeping") / hashlib.blake2b(place.encode(), digest_size=16).hexdigest()
        file.touch()
        return file

    @classmethod
    def _fetched(cls, location: str) -> "SweepFolder":
        storage_path, name = parent_of(location)
        remote = reached(storage_path)
        folder = cls._with_copy(remote, name)
        try:
            for file in (*OWN_FILES, PACKS_FILE):
                if (content := remote.read(name, file)) is not None:
                    (folder.path / file).write_bytes(content)
        except OSError as error:
            folder.close()
            raise unreachable(storage_path, error) from None
        return folder

    @classmethod
    def _with_copy(cls, remote: RemoteStorage, name: str) -> "SweepFolder":
        copy = TemporaryFolder()
        (copy.path / name).mkdir()
        return cls(copy.path / name, remote, copy)

    @property
    def storage_path(self) -> str:
        """Where the folder lies."""
        return self.remote.storage_path if self.remote else str(self.path.parent)

    @property
    def place(self) -> tuple[Any, str]:
        """Pyarrow's file system, and the path there of the folder in which the sweep's own lies."""
        return self.remote.place if self.remote else (LocalFileSystem(), str(self.path.parent))

    @property
    def location(self) -> str:
        """Where the sweep is, for everybody who reads or writes there."""
        return location_in(self.remote.storage_path, self.name) if self.remote else str(self.path)

    @property
    def runs(self) -> str:
        """The location of the trials' run folders."""
        return location_in(self.location, RUNS_FOLDER) if self.remote else str(self.path / RUNS_FOLDER)

    @property
    def local_path(self) -> Path | None:
        """Where the sweep lies in this machine's own file system; ``None`` where it is on storage for everybody."""
        return self.remote.local_path(self.name) if self.remote else self.path

    def run(self, name: str) -> str:
        """Return the location of a run's folder."""
        return location_in(self.runs, name) if self.remote else str(self.path / RUNS_FOLDER / name)

    def trial(self, path: str) -> str:
        """Return the location of a trial's own folder, as Tune names it on the sweep's storage."""
        return location_in(self.location, PurePath(path).name) if self.remote else path

    def run_names(self) -> set[str]:
        """Return the names of what lies among the runs.

        Raises:
            OSError: it cannot be read.

        """
        if self.remote is not None:
            return set(self.remote.names_in(f"{self.name}/{RUNS_FOLDER}"))
        runs = self.path / RUNS_FOLDER
        return {one.name for one in runs.iterdir()} if runs.is_dir() else set()

    def drop_from_runs(self, files: set[str]) -> None:
        """Remove such files that lie among the runs.

        Raises:
            OSError: they cannot be removed.

        """
        if self.remote is not None:
            self.remote.withdraw(f"{self.name}/{RUNS_FOLDER}", files)
            return
        for file in files:
            (self.path / RUNS_FOLDER / file).unlink(missing_ok=True)

    def publish(self) -> None:
        """Copy the sweep's own files to its storage, where that is elsewhere.

        Raises:
            RunError: they cannot be written; they are where they were.

        """
        if self.remote is None:
            return
        try:
            self.remote.mirror(self.path, self.name, (), ())
        except OSError as error:
            path, self._copy = self.path, None
            raise RunError(
                f"storage_path = {yaml_value(self.storage_path)}: cannot be written ({reason_of(error)}); the sweep's "
                f"own files are in {path}"
            ) from None

    def discard(self) -> None:
        """Take the folder back, of a sweep that was refused before any trial, whose folder there would be.

        Only files that the sweep and Tune write: what somebody else has put there stays, and the folder with it.
        """
        if self.remote is None:
            names = [one.name for one in self.path.iterdir()]
            if not any(one.is_dir() for one in self.path.iterdir()):
                remove_files(self.path, written_early(names))
            return
        with suppress(OSError):
            if not self.remote.holds_folders(self.name):
                self.remote.withdraw(self.name, written_early(self.remote.names_in(self.name)))

    def close(self) -> None:
        """Let other drivers have the sweep, and remove this machine's copy of one that is elsewhere."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None
        if self._copy is not None:
            self._copy.remove()
            self._copy = None


def written_early(names: Iterable[str]) -> list[str]:
    """Return which of some files a sweep, or Tune, writes before its first trial.

    >>> written_early(["sweep.yaml", "tuner.pkl", "experiment_state-2026.json", "notes.txt"])
    ['sweep.yaml', 'tuner.pkl', 'experiment_state-2026.json']
    """
    return [name for name in names if name in (*OWN_FILES, PACKS_FILE) or _TUNES_FILE.fullmatch(name)]


def _write(path: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        (path / name).write_text(text, encoding="utf-8")
