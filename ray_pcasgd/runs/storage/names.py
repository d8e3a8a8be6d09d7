"""The names of a run folder's files, and how it is claimed and cleared from outside."""

import os
import re
from pathlib import Path

from ray_pcasgd.base.own_files import UNFINISHED, claim_folder, is_file, move_aside, remove_files
from ray_pcasgd.runs.settings.errors import yaml_value
from ray_pcasgd.runs.settings.loading import SettingsError
from ray_pcasgd.runs.storage.model_file import MODEL_FILES
from ray_pcasgd.runs.storage.pretrained import PRETRAINED_FILES
from ray_pcasgd.runs.storage.remote import RemoteStorage, is_remote, location_in, reason_of

CONFIG, EVENTS, RESULT = "config.yaml", "events.jsonl", "result.json"
METRICS, SCHEDULE, REPORT = "metrics.parquet", "schedule.parquet", "report.html"
SCREENING = "screening.parquet"
STATES, CHECKPOINTS = "states", "checkpoints"
RUN_FILES = (CONFIG, EVENTS, RESULT, METRICS, SCHEDULE, SCREENING, REPORT, *MODEL_FILES, *PRETRAINED_FILES)
"""The names of the files that a run leaves in its folder."""
PAGE_FILES = (CONFIG, EVENTS, RESULT, METRICS, SCHEDULE)
"""Those that a report draws."""
KEPT_METRICS = "metrics.json"
KEPT_FILES = ("state.pt", "checksum", KEPT_METRICS, *MODEL_FILES, *PRETRAINED_FILES)
"""The names of the files in the folders of kept states and models."""
KEPT_MODEL = re.compile(r"step_([0-9]{8,18})")
UNFINISHED_FOLDER = re.compile(rf"(step_)?[0-9]+{re.escape(UNFINISHED)}")


def claimed_folder(storage_path: str, name: str | None, kind: str, spoken: str = "folder") -> Path:
    """Make and return a new folder of this machine, for runs of one kind, that no other process gets.

    Raises:
        SettingsError: the named one exists, or it cannot be made.

    """
    storage = Path(storage_path).expanduser()
    try:
        return claim_folder(storage, name, kind)
    except FileExistsError:
        raise taken(storage_path, name, spoken) from None
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"storage_path = {yaml_value(storage_path)}: cannot be written ({reason_of(error)})"
        ) from None


def require_free(storage_path: str, name: str | None, spoken: str = "folder") -> None:
    """See to it that a new run can have its name: before Ray starts, which takes seconds.

    Raises:
        SettingsError: the folder exists, or its place cannot be reached.

    """
    if is_remote(storage_path):
        storage = reached(storage_path)
        try:
            is_taken = name is not None and storage.holds(name)
        except OSError as error:
            raise unreachable(storage_path, error) from None
    else:
        is_taken = name is not None and os.path.lexists(Path(storage_path).expanduser() / name)
    if is_taken:
        raise taken(storage_path, name, spoken)


def reached(storage_path: str) -> RemoteStorage:
    """Return remote storage.

    Raises:
        SettingsError: it cannot be reached.

    """
    try:
        return RemoteStorage(storage_path)
    except OSError as error:
        raise unreachable(storage_path, error) from None


def unreachable(storage_path: str, error: OSError) -> SettingsError:
    """Return the error of storage that does not answer."""
    return SettingsError(f"storage_path = {yaml_value(storage_path)}: cannot be reached ({reason_of(error)})")


def taken(storage_path: str, name: str | None, spoken: str) -> SettingsError:
    """Return the error of a name that is in use."""
    location = location_in(storage_path, str(name))
    return SettingsError(f"name = {name!r}: the {spoken} {location} exists; allowed is a name that is not in use")


def clear_run(path: Path) -> None:
    """Make room for a run that begins again under its name: its own files go, whatever else is there is put aside.

    Raises:
        ValueError: it is no folder of a run.

    """
    if path.is_symlink() or (path.exists() and not is_file(path / CONFIG)):
        raise ValueError(f"{path}: is no run folder; allowed are folders with a config.yaml")
    for group in (STATES, CHECKPOINTS):
        if not (path / group).is_symlink():
            for one in (path / group).glob("*"):
                remove_files(one, KEPT_FILES)
        remove_files(path / group, ())
    if not remove_files(path, RUN_FILES):
        move_aside(path)


def make_room(storage_path: str, name: str) -> None:
    """Make room for a run that begins again under its name, on this machine as ``clear_run`` does.

    On remote storage nothing can be put aside: what else is there stays, and no run can begin there.

    Raises:
        ValueError: it is no folder of a run, or holds something else on remote storage.
        OSError: the storage cannot be reached.

    """
    if not is_remote(storage_path):
        clear_run(Path(storage_path) / name)
        return
    storage = RemoteStorage(storage_path)
    location = location_in(storage_path, name)
    if not storage.holds(name):
        return
    if storage.read(name, CONFIG) is None:
        raise ValueError(f"{location}: is no run folder; allowed are folders with a config.yaml")
    for group in (STATES, CHECKPOINTS):
        for one in storage.names_in(f"{name}/{group}"):
            storage.withdraw(f"{name}/{group}/{one}", KEPT_FILES)
        storage.withdraw(f"{name}/{group}", ())
    storage.withdraw(name, RUN_FILES)
    if storage.holds(name):
        raise ValueError(f"{location}: holds other files than a run's; allowed is a folder without them")
