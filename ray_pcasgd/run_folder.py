"""The files of one run."""

import contextlib
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors.torch import save
from torch import Tensor

from ray_pcasgd.config import Config
from ray_pcasgd.explanation import one_line
from ray_pcasgd.loading import SettingsError
from ray_pcasgd.records import Row
from ray_pcasgd.schedule.trace import write_rows
from ray_pcasgd.tasks.imports import import_path
from ray_pcasgd.trust import note_settings
from ray_pcasgd.yaml_text import write_yaml


class RunFolder:
    """One run's folder, written as the run goes, so that a run that fails leaves what it had."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._unwritten = ""
        """Events that could not be written yet."""

    @classmethod
    def create(cls, config: Config) -> "RunFolder":
        """Make a new folder for the run, and write its settings there.

        A remote ``storage_path`` is written to a temporary folder, from where ``publish`` copies it.

        Raises:
            SettingsError: the folder exists, or cannot be made.

        """
        name = new_name(config)
        storage = Path(config.storage_path).expanduser()
        if is_remote(config.storage_path):
            storage = Path(tempfile.mkdtemp(prefix="ray_pcasgd_"))
        folder = cls(storage / name)
        try:
            folder.path.mkdir(parents=True)
        except OSError as error:
            raise SettingsError(f"storage_path = {config.storage_path!r}: cannot be written ({error})") from None
        written = config.model_dump(mode="json", fallback=import_path)
        text = write_yaml(written)
        (folder.path / "config.yaml").write_text(text, encoding="utf-8")
        note_settings(text)
        return folder

    @classmethod
    def reopen(cls, location: str) -> "RunFolder":
        """Return the folder of a run that was interrupted; a remote one is copied to this machine.

        Raises:
            SettingsError: there is no such run, or it is complete.

        """
        path = Path(location)
        if is_remote(location):
            path = _fetched(location)
        if not (path / "config.yaml").is_file():
            raise SettingsError(f"{location}: is no run folder; allowed are folders with a config.yaml")
        folder = cls(path)
        if folder.is_complete:
            raise SettingsError(f"{location}: the run is complete; allowed is one that was interrupted")
        return folder

    @property
    def is_complete(self) -> bool:
        """Whether the run has come to its end."""
        try:
            result = json.loads((self.path / "result.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return isinstance(result, dict) and result.get("error") is None

    @property
    def states(self) -> Path:
        """The folder of the run's states."""
        return self.path / "states"

    @property
    def schedule(self) -> Path:
        """The schedule's file."""
        return self.path / "schedule.parquet"

    @property
    def model(self) -> Path:
        """The consensus model's file."""
        return self.path / "model.safetensors"

    def add_event(self, event: Mapping[str, Any]) -> OSError | None:
        """Append one event; return what kept it from being written, in which case the next call tries again."""
        self._unwritten += json.dumps(event) + "\n"
        try:
            with (self.path / "events.jsonl").open("a", encoding="utf-8") as file:
                file.write(self._unwritten)
        except OSError as error:
            return error
        self._unwritten = ""
        return None

    def rescue(self) -> Path:
        """Go on in a temporary folder of this machine, since the run's own cannot be written."""
        unwritable, self.path = self.path, Path(tempfile.mkdtemp(prefix="ray_pcasgd_")) / self.path.name
        self.path.mkdir()
        for name in ("config.yaml", "events.jsonl"):
            with contextlib.suppress(OSError):
                shutil.copy(unwritable / name, self.path / name)
        with (self.path / "events.jsonl").open("a", encoding="utf-8") as file:
            file.write(self._unwritten)
        return self.path

    def write_metrics(self, frame: pd.DataFrame) -> None:
        """Write the metrics rows so far."""
        frame.to_parquet(self.path / "metrics.parquet", index=False)

    def write_schedule(self, rows: Sequence[Row], metadata: Mapping[str, str]) -> None:
        """Write the rows that were executed."""
        write_rows(self.schedule, rows, dict(metadata))

    def write_model(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], path: Path | None = None) -> None:
        """Write a state dict as a safetensors file."""
        (path or self.model).write_bytes(save(dict(tensors), metadata=dict(metadata)))

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write the run's summary."""
        (self.path / "result.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")

    def keep_checkpoint(self, step: int, tensors: Mapping[str, Tensor], metrics: Mapping[str, float]) -> Path:
        """Write a checkpoint folder of the consensus model at ``step``."""
        folder = self.path / "checkpoints" / f"step_{step:08d}"
        folder.mkdir(parents=True)
        self.write_model(tensors, {"step": str(step)}, folder / "model.safetensors")
        (folder / "metrics.json").write_text(json.dumps(dict(metrics), indent=2) + "\n", encoding="utf-8")
        return folder

    def publish(self, storage_path: str) -> str:
        """Copy a finished run to a remote storage path, and return its location there."""
        location = self.mirror(storage_path)
        shutil.rmtree(self.path.parent)
        return location

    def mirror(self, storage_path: str) -> str:
        """Copy what there is so far to a remote storage path, and return its location there.

        States that are there from before go once the newer ones have come.

        Raises:
            OSError: it cannot be written.

        """
        from pyarrow import fs

        target, root = fs.FileSystem.from_uri(storage_path)
        location = f"{root}/{self.path.name}"
        fs.copy_files(str(self.path), location, source_filesystem=fs.LocalFileSystem(), destination_filesystem=target)
        there = target.get_file_info(fs.FileSelector(f"{location}/{self.states.name}", allow_not_found=True))
        for state in there:
            if not (self.states / state.base_name).exists():
                target.delete_dir(state.path)
        return f"{storage_path.rstrip('/')}/{self.path.name}"


def new_name(config: Config) -> str:
    """Return the name of a new run's folder.

    Raises:
        SettingsError: the folder exists, or its place cannot be reached.

    """
    is_taken = _taken_names(config.storage_path)
    name = config.name or free_name(config.algorithm.name, is_taken)
    if is_taken(name):
        raise SettingsError(
            f"name = {name!r}: the run folder {config.storage_path}/{name} exists; allowed is a name that is not in use"
        )
    return name


def is_remote(storage_path: str) -> bool:
    """Return whether a storage path is a location other than a folder of this machine."""
    return "://" in storage_path


def _fetched(location: str) -> Path:
    """Return a copy of a remote run folder on this machine."""
    from pyarrow import ArrowException, fs

    path = Path(tempfile.mkdtemp(prefix="ray_pcasgd_")) / location.rstrip("/").rsplit("/", 1)[-1]
    try:
        source, root = fs.FileSystem.from_uri(location)
        fs.copy_files(root, str(path), source_filesystem=source, destination_filesystem=fs.LocalFileSystem())
    except (ArrowException, OSError) as error:
        raise SettingsError(f"{location}: cannot be read ({one_line(error)})") from None
    return path


def free_name(kind: str, is_taken: Callable[[str], bool]) -> str:
    """Return a name that is not in use: the kind of thing, and the first number that is free."""
    return next(name for number in count(1) if not is_taken(name := f"{kind}-{number}"))


def _taken_names(storage_path: str) -> Callable[[str], bool]:
    """Return what says whether a storage path holds a name."""
    if not is_remote(storage_path):
        return lambda name: (Path(storage_path).expanduser() / name).exists()
    from pyarrow import ArrowException, fs

    try:
        target, root = fs.FileSystem.from_uri(storage_path)
        target.get_file_info(root)
    except (ArrowException, OSError) as error:
        reason = one_line(error)
        raise SettingsError(f"storage_path = {storage_path!r}: cannot be reached ({reason})") from None
    return lambda name: target.get_file_info(f"{root}/{name}").type != fs.FileType.NotFound
