"""The files of one run."""

import contextlib
import errno
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from ray_pcasgd.base.imports import import_path
from ray_pcasgd.base.locations import refuse_key
from ray_pcasgd.base.own_files import (
    UNFINISHED,
    TemporaryFolder,
    append,
    identity_of,
    is_file,
    make_folder,
    move_aside,
    remove_files,
    remove_unfinished,
    whole_folder,
    write_whole,
)
from ray_pcasgd.base.plain_json import dumps, read_mapping
from ray_pcasgd.base.yaml_text import write_yaml
from ray_pcasgd.config import Config
from ray_pcasgd.engines.ray.discovery import driven
from ray_pcasgd.records import Row
from ray_pcasgd.runs.settings.errors import yaml_value
from ray_pcasgd.runs.settings.loading import SettingsError
from ray_pcasgd.runs.settings.trust import note_settings
from ray_pcasgd.runs.storage.lock import FolderLock, LockedError
from ray_pcasgd.runs.storage.model_file import MODEL_FILES, write_model
from ray_pcasgd.runs.storage.names import (
    CHECKPOINTS,
    CONFIG,
    EVENTS,
    KEPT_FILES,
    KEPT_METRICS,
    KEPT_MODEL,
    METRICS,
    RESULT,
    RUN_FILES,
    SCHEDULE,
    SCREENING,
    STATES,
    UNFINISHED_FOLDER,
    claimed_folder,
    reached,
    require_free,
    taken,
)
from ray_pcasgd.runs.storage.remote import RemoteStorage, is_remote, location_in, parent_of, reason_of
from ray_pcasgd.schedule.parquet import write_rows

_SPOKEN = "run folder"


class RunFolder:
    """One run's folder, written as the run goes, so that a run that fails leaves what it had.

    While it is open, its lock keeps other drivers away.
    """

    def __init__(
        self, path: Path, remote: RemoteStorage | None = None, temporary: TemporaryFolder | None = None
    ) -> None:
        self.path = path
        self.remote = remote
        """Where the folder is published, unless it stays where it is."""
        self.is_reopened = False
        """Whether it was there before this process."""
        self.rescued_from: Path | None = None
        """The folder that could not be written any more, if there was one."""
        self._name = path.name
        self._temporary = temporary
        self._config = ""
        self._earlier_bytes = 0
        """Of events of earlier attempts."""
        self._events: list[str] = []
        """The lines of this process, so that none is lost with the folder."""
        self._unwritten = ""
        """Events that could not be written yet."""
        self._lock: FolderLock | None = None
        self._driven = contextlib.ExitStack()
        """What ends the note that the run is running."""
        self._identity: tuple[int, int] | None = None

    @classmethod
    def create(cls, config: Config, step_size: str = "") -> "RunFolder":
        """Make a new folder for the run, which no other process gets, and write its settings there.

        Where the settings have no step size, a comment says which one the agents have: ``step_size``, in words.

        A remote ``storage_path`` is given the settings at once; all else is written to a temporary folder, from where
        ``publish`` copies it.

        Raises:
            SettingsError: the folder exists, or cannot be made.

        """
        storage, kind = config.storage_path, config.algorithm.name
        text = write_yaml(config.model_dump(mode="json", fallback=import_path))
        if step_size and config.step_size is None:
            text = re.sub(r"^step_size: null$", f"step_size: null  # {step_size}", text, flags=re.MULTILINE)
        try:
            if is_remote(storage):
                folder = cls._in_temporary(storage, config.name, kind, text)
            else:
                folder = cls(claimed_folder(storage, config.name, kind, _SPOKEN))
        except FileExistsError:
            raise taken(storage, config.name, _SPOKEN) from None
        except OSError as error:
            raise SettingsError(
                f"storage_path = {yaml_value(storage)}: cannot be written ({reason_of(error)})"
            ) from None
        folder._config = text
        try:
            write_whole(folder.path / CONFIG, text)
            folder._take_lock()
        except OSError as error:
            folder.discard()
            raise SettingsError(
                f"storage_path = {yaml_value(storage)}: cannot be written ({reason_of(error)})"
            ) from None
        note_settings(text)
        return folder

    @staticmethod
    def require_free(config: Config) -> None:
        """See to it that a new run can have its name: before Ray starts, which takes seconds.

        Raises:
            SettingsError: the folder exists, or its place cannot be reached.

        """
        require_free(config.storage_path, config.name, _SPOKEN)

    @classmethod
    def _in_temporary(cls, storage: str, name: str | None, kind: str, config: str) -> "RunFolder":
        remote = reached(storage)
        name = remote.claim(name, kind, CONFIG, config.encode())
        temporary = TemporaryFolder()
        (temporary.path / name).mkdir()
        return cls(temporary.path / name, remote, temporary)

    @classmethod
    def reopen(cls, location: str) -> "RunFolder":
        """Return the folder of a run that was interrupted; a remote one is copied to this machine.

        The run goes on in the folder that is named: a local one is not published, whatever its settings say.

        Raises:
            SettingsError: there is no such run, it is complete, another driver has it, or its location holds a key.

        """
        refuse_key(location)
        folder = cls._fetched(location) if is_remote(location) else cls(_named(Path(location).expanduser()))
        folder.is_reopened = True
        try:
            if not is_file(folder.path / CONFIG):
                raise SettingsError(f"{location}: is no run folder; allowed are folders with a config.yaml")
            if folder.is_complete:
                raise SettingsError(f"{location}: the run is complete; allowed is one that was interrupted")
            try:
                folder._config = (folder.path / CONFIG).read_text(encoding="utf-8")
                events = folder.path / EVENTS
                folder._earlier_bytes = events.stat().st_size if is_file(events) else 0
                folder._take_lock()
                folder._tidy()
            except (OSError, UnicodeDecodeError) as error:
                raise SettingsError(f"{location}: cannot be read ({reason_of(error)})") from None
            except LockedError:
                raise SettingsError(
                    f"{location}: another driver is running this run; allowed is one driver at a time"
                ) from None
        except SettingsError:
            folder.close()
            raise
        return folder

    @classmethod
    def _fetched(cls, location: str) -> "RunFolder":
        """Return a copy of a remote run folder on this machine."""
        storage, name = parent_of(location)
        temporary = TemporaryFolder()
        try:
            remote = RemoteStorage(storage)
            remote.fetch(name, temporary.path / name, (STATES, CHECKPOINTS))
        except OSError as error:
            temporary.remove()
            raise SettingsError(f"{location}: cannot be read ({reason_of(error)})") from None
        return cls(temporary.path / name, remote, temporary)

    def _tidy(self) -> None:
        """Remove what a driver that was killed was writing."""
        remove_unfinished(self.path, RUN_FILES)
        for group in (self.states, self.checkpoints):
            if not group.is_symlink():
                for path in group.glob(f"*{UNFINISHED}"):
                    if UNFINISHED_FOLDER.fullmatch(path.name):
                        remove_files(path, KEPT_FILES)

    def _take_lock(self) -> None:
        self._identity = identity_of(self.path)
        there = self.remote.local_path(self._name) if self.remote else None
        self._lock = FolderLock((there or self.path) / CONFIG)
        self._driven.enter_context(driven(self.location))

    @property
    def location(self) -> str:
        """Where the folder is, or will be."""
        return location_in(self.remote.storage_path, self._name) if self.remote else str(self.path.resolve())

    @property
    def name(self) -> str:
        """The run's name."""
        return self._name

    @property
    def why_unlocked(self) -> str | None:
        """Why other drivers are not kept away, where that is so."""
        return self._lock.problem if self._lock else None

    def stays_here(self, storage_path: str) -> bool:
        """Return whether the run's settings have it published, and it is gone on with where it was copied to."""
        return is_remote(storage_path) and self.remote is None

    @property
    def is_complete(self) -> bool:
        """Whether the run has come to its end."""
        result = read_mapping(self.path / RESULT)
        return result is not None and result.get("error") is None

    @property
    def is_gone(self) -> bool:
        """Whether the folder was removed, or another one put in its place."""
        found = identity_of(self.path)
        if found is None or not self.path.is_dir():
            return True
        if self.rescued_from or self.remote or self._lock is None:
            return False
        # Not by the numbers alone: some storage gives a folder others now and then.
        return found != self._identity and self._lock.has_lost_its_file()

    def check(self) -> None:
        """Raise ``OSError`` where the folder was removed, or another one put in its place."""
        if self.is_gone:
            raise FileNotFoundError(errno.ENOENT, "the run's folder is not there any more", str(self.path))

    @property
    def states(self) -> Path:
        """The folder of the run's states."""
        return self.path / STATES

    @property
    def checkpoints(self) -> Path:
        """The folder of the models that are kept while the run is running."""
        return self.path / CHECKPOINTS

    @property
    def schedule(self) -> Path:
        """The schedule's file."""
        return self.path / SCHEDULE

    @property
    def has_model(self) -> bool:
        """Whether there is a consensus model's file."""
        return any((self.path / name).exists() for name in MODEL_FILES)

    def links(self) -> list[Path]:
        """Return what in the folder is a symbolic link where the run would write."""
        paths = [self.path / name for name in (*RUN_FILES, STATES, CHECKPOINTS)]
        return [path for path in paths if path.is_symlink()]

    def add_event(self, event: Mapping[str, Any]) -> OSError | None:
        """Append one event; return what kept it from being written, in which case the next call tries again."""
        self._events.append(dumps(event) + "\n")
        self._unwritten += self._events[-1]
        try:
            self.write_events()
        except OSError as error:
            return error
        return None

    def write_events(self) -> None:
        """Write the events that could not be written yet.

        Raises:
            OSError: they still cannot.

        """
        self.check()
        append(self.path / EVENTS, self._unwritten)
        self._unwritten = ""

    @property
    def has_unwritten_events(self) -> bool:
        """Whether events are still to be written."""
        return bool(self._unwritten)

    def rescue(self) -> Path:
        """Go on in a temporary folder of this machine, since the run's own cannot be written.

        Raises:
            OSError: that cannot be written either.

        """
        unwritable, rescued = self.path, TemporaryFolder().path / self._name
        rescued.mkdir()
        write_whole(rescued / CONFIG, self._config)
        if self._earlier_bytes and is_file(unwritable / EVENTS):
            with contextlib.suppress(OSError), (unwritable / EVENTS).open("rb") as file:
                write_whole(rescued / EVENTS, file.read(self._earlier_bytes))
        append(rescued / EVENTS, "".join(self._events))
        self._unwritten = ""
        self.path, self.rescued_from = rescued, unwritable
        return rescued

    def write_metrics(self, frame: pd.DataFrame) -> None:
        """Write the metrics rows so far."""
        self._write_table(METRICS, frame)

    def write_screening(self, frame: pd.DataFrame) -> None:
        """Write how often each agent's messages were screened out."""
        self._write_table(SCREENING, frame)

    def _write_table(self, name: str, frame: pd.DataFrame) -> None:
        self.check()

        def write(path: Path) -> None:
            with path.open("wb") as file:
                frame.to_parquet(file, index=False)

        write_whole(self.path / name, write)

    def write_schedule(self, rows: Iterable[Row], metadata: Mapping[str, str]) -> None:
        """Write the rows that were executed."""
        self.check()
        write_whole(self.schedule, lambda path: write_rows(path, rows, dict(metadata)))

    def write_model(
        self,
        state: Mapping[str, Any],
        metadata: Mapping[str, str],
        configuration_files: Mapping[str, bytes] | None = None,
    ) -> str:
        """Write a state dict and the model's configuration; return why it is not ``model.safetensors``, if so."""
        self.check()
        return write_model(self.path, state, metadata, configuration_files)

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write the run's summary."""
        self.check()
        write_whole(self.path / RESULT, dumps(result, indent=2) + "\n")

    def keep_checkpoint(
        self,
        step: int,
        state: Mapping[str, Any],
        metrics: Mapping[str, float],
        configuration_files: Mapping[str, bytes] | None = None,
    ) -> Path:
        """Write a checkpoint folder of the consensus model at ``step``; it has its name only once it is whole."""
        self.check()
        make_folder(self.checkpoints)
        folder = self.checkpoints / f"step_{step:08d}"
        with whole_folder(folder, KEPT_FILES) as unfinished:
            write_model(unfinished, state, {"step": str(step)}, configuration_files)
            write_whole(unfinished / KEPT_METRICS, dumps(metrics, indent=2) + "\n")
            remove_files(folder, KEPT_FILES)  # of an earlier attempt
        return folder

    def kept_models(self) -> list[tuple[int, Path]]:
        """Return the steps and folders of what the run has kept, torn ones too; other names are ignored."""
        if self.checkpoints.is_symlink():
            return []
        found = [(KEPT_MODEL.fullmatch(path.name), path) for path in sorted(self.checkpoints.glob("step_*"))]
        return [(int(match[1]), path) for match, path in found if match and path.is_dir() and not path.is_symlink()]

    def put_aside_kept_models(self) -> Path | None:
        """Give the models of an earlier attempt another place; return it, ``None`` where there are no such models."""
        return move_aside(self.checkpoints)

    def publish(self) -> str:
        """Copy a finished run to its remote storage path, and return its location there.

        Raises:
            OSError: it cannot be written; the files are where they were.

        """
        location = self.mirror()
        if self._temporary is not None:
            self._temporary.remove()
        return location

    def mirror(self) -> str:
        """Copy the files so far to the remote storage path, and return their location there.

        Raises:
            OSError: it cannot be written.

        """
        assert self.remote is not None
        # Whoever sees a result finds the rest there.
        self.remote.mirror(self.path, self._name, (STATES, CHECKPOINTS), KEPT_FILES, last=RESULT)
        return self.location

    def discard(self) -> None:
        """Take the folder back, of a run that could not be started."""
        self.close()
        remove_files(self.path, (CONFIG, EVENTS))
        if self.remote is not None:
            with contextlib.suppress(OSError):
                self.remote.withdraw(self._name, (CONFIG,))
        if self._temporary is not None:
            self._temporary.remove()

    def close(self) -> None:
        """Let another driver have the folder."""
        self._driven.close()
        if self._lock is not None:
            self._lock.release()
            self._lock = None


def _named(path: Path) -> Path:
    """Return a path whose last part is the run's name."""
    return path if path.name not in ("", "..") else path.resolve()
