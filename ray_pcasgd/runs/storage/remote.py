"""Run folders on storage that pyarrow knows: writing, fetching and removing."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ray_pcasgd.base.locations import refuse_key
from ray_pcasgd.base.own_files import TemporaryFolder, claim_folder, names_of
from ray_pcasgd.base.text import one_line

_LONGEST = 300
"""Characters of a reason that are shown."""


def is_remote(storage_path: str) -> bool:
    """Return whether a storage path is a location other than a folder of this machine."""
    return "://" in storage_path


def location_in(storage_path: str, name: str) -> str:
    """Return the location of a name in a remote storage path.

    >>> location_in("s3://bucket/runs/", "first"), location_in("s3://bucket?region=eu-west-1", "first")
    ('s3://bucket/runs/first', 's3://bucket/first?region=eu-west-1')
    """
    path, question, options = storage_path.partition("?")
    return f"{path.rstrip('/')}/{name}{question}{options}"


def within_a_minute(location: str) -> str:
    """Return a location of Google's storage with a limit on retries: without one, pyarrow tries for 15 minutes.

    >>> within_a_minute("gs://bucket/runs"), within_a_minute("gs://bucket?retry_limit_seconds=5")
    ('gs://bucket/runs?retry_limit_seconds=60', 'gs://bucket?retry_limit_seconds=5')
    >>> within_a_minute("s3://bucket/runs")
    's3://bucket/runs'
    """
    if not location.startswith(("gs://", "gcs://")) or "retry_limit_seconds=" in location:
        return location
    return f"{location}{'&' if '?' in location else '?'}retry_limit_seconds=60"


def parent_of(location: str) -> tuple[str, str]:
    """Return the storage path and the name of a remote location.

    >>> parent_of("s3://bucket/runs/first/"), parent_of("s3://bucket/first?region=eu-west-1")
    (('s3://bucket/runs', 'first'), ('s3://bucket?region=eu-west-1', 'first'))
    """
    path, question, options = location.partition("?")
    parent, _, name = path.rstrip("/").rpartition("/")
    if parent.endswith(":/"):
        parent += "/"  # file:///first
    return parent + question + options, name


def reason_of(error: Exception) -> str:
    """Return what storage says of an error, in one line."""
    return one_line(error)[:_LONGEST]


@contextmanager
def as_os_error() -> Iterator[None]:
    """Raise ``OSError`` for whatever pyarrow and the libraries behind it raise about storage, and for what they lack.

    A location may be some other library's (fsspec's, Hugging Face's), whose errors are of classes of its own.
    """
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(reason_of(error)) from error


def content_of(location: str, file: str) -> bytes | None:
    """Return the content of a file in a folder, on this machine or elsewhere; ``None`` where there is none.

    Raises:
        OSError: it cannot be read.

    """
    if not is_remote(location):
        path = Path(location) / file
        return path.read_bytes() if path.is_file() else None
    storage, name = parent_of(location)
    return RemoteStorage(storage).read(name, file)


@contextmanager
def at_hand(location: str, added: str) -> Iterator[Path]:
    """Yield a run's folder on this machine, a copy where it is elsewhere; a file that is added goes back there.

    Raises:
        OSError: it cannot be read, or the file cannot be written there.

    """
    if not is_remote(location):
        yield Path(location)
        return
    storage, name = parent_of(location)
    remote, temporary = RemoteStorage(storage), TemporaryFolder()
    try:
        remote.fetch(name, temporary.path / name, ())
        yield temporary.path / name
        file = temporary.path / name / added
        if file.is_file():
            remote.put(name, added, file.read_bytes())
    finally:
        temporary.remove()


def put(location: str, content: bytes) -> None:
    """Write a file at a remote location.

    Raises:
        OSError: it cannot be written.

    """
    storage, name = parent_of(location)
    RemoteStorage(storage).put("", name, content)


class _Stamp(NamedTuple):
    """Identifies a file's content: whatever replaces the file or appends to it changes one of these."""

    inode: int
    size: int
    modified: int


class RemoteStorage:
    """A folder of run folders, at a location that pyarrow knows.

    Raises:
        OSError: it cannot be reached.
        SettingsError: it holds a key.

    """

    def __init__(self, storage_path: str) -> None:
        from pyarrow import fs

        refuse_key(storage_path)
        self.storage_path = storage_path
        with as_os_error():
            self._files, root = fs.FileSystem.from_uri(within_a_minute(storage_path))
            self._is_local = isinstance(self._files, fs.LocalFileSystem)
            if not root and not self._is_local:
                raise OSError("it names no bucket")
            self._files.get_file_info(root)
        self._root = root.rstrip("/")
        self._seen: set[str] = set()
        """The files in the groups' folders that have been on this machine."""
        self._sent: dict[str, _Stamp] = {}
        """The files that are here as they are on this machine, by what tells whether one was written since."""

    @property
    def place(self) -> tuple[Any, str]:
        """Pyarrow's file system, and the folder's path there."""
        return self._files, self._root

    def claim(self, name: str | None, kind: str, file: str, content: bytes) -> str:
        """Make a new folder with one file, and return its name: the given one, or the first free one of its kind.

        So what cannot be written there is known before anything runs. Where several ask at once, each gets a folder of
        its own on a file system; elsewhere two may take one name in the same moment.

        Raises:
            FileExistsError: the named one exists.
            OSError: it cannot be written.

        """
        with as_os_error():
            if self._is_local:
                name = claim_folder(Path(self._root or "/"), name, kind).name
            else:
                name = self._free_name(name, kind)
                self._files.create_dir(self._at(name), recursive=True)
            self._write(f"{self._at(name)}/{file}", content)
        return name

    def holds(self, name: str) -> bool:
        """Return whether there is something of that name.

        Raises:
            OSError: it cannot be reached.

        """
        from pyarrow import fs

        with as_os_error():
            return bool(self._files.get_file_info(self._at(name)).type != fs.FileType.NotFound)

    def local_path(self, name: str) -> Path | None:
        """Return where a folder lies on this machine, if it does."""
        return Path(self._at(name)) if self._is_local else None

    def fetch(self, name: str, path: Path, groups: Collection[str]) -> None:
        """Copy a folder to this machine, with the folders of its groups.

        Raises:
            OSError: it cannot be read.

        """
        from pyarrow import fs

        with as_os_error():
            local = fs.LocalFileSystem()
            path.mkdir(parents=True, exist_ok=True)
            fs.copy_files(self._at(name), str(path), source_filesystem=self._files, destination_filesystem=local)
        self._seen = _inside_groups(path, groups)
        self._sent = _stamps(path)

    def put(self, name: str, file: str, content: bytes) -> None:
        """Write a file into a folder.

        Raises:
            OSError: it cannot be written.

        """
        with as_os_error():
            self._write(f"{self._at(name)}/{file}", content)

    def mirror(
        self, path: Path, name: str, groups: Collection[str], files: Collection[str], last: str | None = None
    ) -> None:
        """Copy what was written in a folder of this machine since the last time here; the file ``last`` after others.

        Files of such names that were in the groups' folders, and that this machine has dropped since, are removed
        here, too; files that came from elsewhere are not.

        Raises:
            OSError: it cannot be written.

        """
        from pyarrow import fs

        with as_os_error():
            local = fs.LocalFileSystem()
            stamps, here = _stamps(path), _inside_groups(path, groups)
            for file, stamp in sorted(stamps.items(), key=lambda item: item[0] == last):
                if self._sent.get(file) == stamp:
                    continue
                to = f"{self._at(name)}/{file}"
                self._files.create_dir(to.rpartition("/")[0], recursive=True)
                fs.copy_files(str(path / file), to, source_filesystem=local, destination_filesystem=self._files)
                self._sent[file] = stamp
            for folder in sorted({dropped.rpartition("/")[0] for dropped in self._seen - here}):
                gone = {one.rpartition("/")[2] for one in self._seen - here if one.rpartition("/")[0] == folder}
                self._drop(f"{self._at(name)}/{folder}", gone & set(files))
        self._seen, self._sent = here, {file: self._sent[file] for file in stamps}

    def withdraw(self, name: str, files: Collection[str]) -> None:
        """Remove files of a folder, and the folder if that leaves it empty.

        Raises:
            OSError: they cannot be removed.

        """
        with as_os_error():
            self._drop(self._at(name), files)

    def read(self, name: str, file: str) -> bytes | None:
        """Return a file's content, ``None`` where there is no such file.

        Raises:
            OSError: it cannot be read.

        """
        from pyarrow import fs

        with as_os_error():
            if self._files.get_file_info(f"{self._at(name)}/{file}").type != fs.FileType.File:
                return None
            with self._files.open_input_file(f"{self._at(name)}/{file}") as stream:
                return bytes(stream.read())

    def names_in(self, folder: str) -> list[str]:
        """Return the names of what is in a folder, which may not exist.

        Raises:
            OSError: it cannot be read.

        """
        with as_os_error():
            return sorted(one.base_name for one in self._inside(self._at(folder)))

    def holds_folders(self, folder: str) -> bool:
        """Return whether there are folders with something in them in a folder, which may not exist.

        Raises:
            OSError: it cannot be read.

        """
        from pyarrow import fs

        with as_os_error():
            inside = self._inside(self._at(folder))
            return any(one.type == fs.FileType.Directory and self._inside(one.path) for one in inside)

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}".rstrip("/")

    def _free_name(self, name: str | None, kind: str) -> str:
        if name is None:
            return next(own for own in names_of(kind) if not self.holds(own))
        if self.holds(name):
            raise FileExistsError(name)
        return name

    def _write(self, file: str, content: bytes) -> None:
        with self._files.open_output_stream(file) as stream:
            stream.write(content)

    def _drop(self, folder: str, files: Collection[str]) -> None:
        from pyarrow import fs

        for one in self._inside(folder):
            if one.type == fs.FileType.File and one.base_name in files:
                self._files.delete_file(one.path)
        if not self._inside(folder) and self._files.get_file_info(folder).type == fs.FileType.Directory:
            self._files.delete_dir(folder)

    def _inside(self, folder: str) -> list[Any]:
        from pyarrow import fs

        return list(self._files.get_file_info(fs.FileSelector(folder, allow_not_found=True)))


def _stamps(path: Path) -> dict[str, _Stamp]:
    """Return all files of a folder, by their paths in it."""
    found = ((one, one.stat()) for one in sorted(path.rglob("*")) if one.is_file())
    return {
        one.relative_to(path).as_posix(): _Stamp(stat.st_ino, stat.st_size, stat.st_mtime_ns) for one, stat in found
    }


def _inside_groups(path: Path, groups: Collection[str]) -> set[str]:
    found = (one for group in groups for one in (path / group).glob("*/*") if one.is_file())
    return {one.relative_to(path).as_posix() for one in found}
