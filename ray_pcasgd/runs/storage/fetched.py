"""Files of runs as files of this machine, wherever the runs are."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from ray_pcasgd.base.errors import SettingsError
from ray_pcasgd.base.locations import refuse_key
from ray_pcasgd.base.own_files import TemporaryFolder, is_file
from ray_pcasgd.runs.storage.names import CONFIG
from ray_pcasgd.runs.storage.remote import RemoteStorage, is_remote, parent_of, reason_of


@contextmanager
def fetched_run(location: str, files: Collection[str]) -> Iterator[Path]:
    """Yield a run's folder, or a copy of its settings and some other ``files`` of it where it is not on this machine.

    The copy is named as the run, and is removed afterwards; what the run does not have is not there.

    Raises:
        SettingsError: there is no such run, or it cannot be read.

    """
    refuse_key(location)
    if not is_remote(location):
        folder = Path(location)
        if not is_file(folder / CONFIG):
            raise SettingsError(f"{location}: is no run folder; allowed are folders with a {CONFIG}")
        yield folder
        return
    temporary = TemporaryFolder()
    try:
        yield _copied(location, files, temporary.path)
    finally:
        temporary.remove()


def _copied(location: str, files: Collection[str], place: Path) -> Path:
    try:
        storage, name = parent_of(location)
        remote, folder = RemoteStorage(storage), place / name
        folder.mkdir()
        for file in dict.fromkeys((CONFIG, *files)):
            content = remote.read(name, file)
            if content is not None:
                (folder / file).write_bytes(content)
            elif file == CONFIG:
                raise SettingsError(f"{location}: is no run folder; allowed are folders with a {CONFIG}")
    except OSError as error:
        raise SettingsError(f"{location}: cannot be read ({reason_of(error)})") from None
    return folder


@contextmanager
def local_file(location: str) -> Iterator[Path]:
    """Yield a file, or a copy of it where it is not on this machine; one that does not exist is not there.

    Raises:
        OSError: it cannot be read.
        SettingsError: its location holds a key.

    """
    refuse_key(location)
    if not is_remote(location):
        yield Path(location)
        return
    temporary = TemporaryFolder()
    try:
        storage, name = parent_of(location)
        path = temporary.path / name
        content = RemoteStorage(storage).read("", name)
        if content is not None:
            path.write_bytes(content)
        yield path
    finally:
        temporary.remove()
