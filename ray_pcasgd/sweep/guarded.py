"""Storage on which Ray Tune reads no pickle but those that this user's sweep has written.

What Tune keeps of a sweep, it reads with pickle, also from within JSON: whoever writes there could run code in its
driver. So Tune gets this file system in place of the storage's own.
"""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow as pa
from pyarrow import fs

from ray_pcasgd.sweep.folder import PACKS_FILE, RUNS_FOLDER
from ray_pcasgd.sweep.written import Written

_PICKLED = re.compile(rf"(?!{re.escape(PACKS_FILE)}$)[^/]+\.(pkl|json)|(?!{RUNS_FOLDER}/).+\.pkl")
"""Files that Tune may read with pickle, by their paths in the sweep's folder."""
_OF_A_TRIAL = "error.pkl"
"""What Tune reads of a trial's files."""


class UnknownFileError(OSError):
    """A file that this user's sweep has not written, in a place where Tune would run what it says."""


class TunesStorage(NamedTuple):
    """A folder in which Tune keeps what it knows of a sweep, on a file system."""

    files: fs.FileSystem
    path: str
    """The folder of the sweep's folder."""


class GuardedFiles(fs.FileSystemHandler):  # type: ignore[misc]
    """A file system whose pickles below ``folder`` are noted as they are written, and checked as they are read.

    Copies in other processes, those of trials, neither note nor check: they read no pickles.
    """

    def __init__(self, files: fs.FileSystem, folder: str, written: Written | None) -> None:
        self._files = files
        self._folder = f"{folder.rstrip('/')}/"
        self._written = written

    def __reduce__(self) -> Any:
        return GuardedFiles, (self._files, self._folder, None)

    def __deepcopy__(self, memo: Any) -> "GuardedFiles":
        return self  # Tune copies its settings in this very process

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GuardedFiles) and (self._files, self._folder) == (other._files, other._folder)

    __hash__ = None  # type: ignore[assignment]

    def _guarded(self, path: str) -> str | None:
        """Return a file's path in the folder, where it is to be noted and checked."""
        inside = path.removeprefix(self._folder)
        return inside if self._written is not None and _PICKLED.fullmatch(inside) else None

    def _checked(self, path: str, file: str) -> Any:
        assert self._written is not None
        with self._files.open_input_stream(path, compression=None) as stream:
            content: bytes = stream.read()
        if not self._written.knows(file, content):
            raise UnknownFileError(f"{file} is not as this user's sweep has left it, and may run code")
        return pa.BufferReader(content)

    def open_input_stream(self, path: str) -> Any:
        """Open a file for reading from its beginning."""
        file = self._guarded(path)
        return self._files.open_input_stream(path, compression=None) if file is None else self._checked(path, file)

    def open_input_file(self, path: str) -> Any:
        """Open a file for reading at any place."""
        file = self._guarded(path)
        return self._files.open_input_file(path) if file is None else self._checked(path, file)

    def open_output_stream(self, path: str, metadata: Any) -> Any:
        """Open a file for writing."""
        stream = self._files.open_output_stream(path, compression=None, metadata=metadata or None)
        file = self._guarded(path)
        return stream if file is None else pa.PythonFile(_Noting(stream, file, self._written), mode="w")

    def open_append_stream(self, path: str, metadata: Any) -> Any:
        """Open a file for writing at its end."""
        if self._guarded(path) is not None:
            raise OSError(f"{path}: nothing is appended to pickles")
        return self._files.open_append_stream(path, compression=None, metadata=metadata or None)

    def get_type_name(self) -> str:
        """Return the name of the kind of file system."""
        return f"guarded+{self._files.type_name}"

    def normalize_path(self, path: str) -> str:
        """Return the usual form of a path."""
        return str(self._files.normalize_path(path))

    def get_file_info(self, paths: list[str]) -> Any:
        """Return what there is at some paths."""
        return self._files.get_file_info(paths)

    def get_file_info_selector(self, selector: fs.FileSelector) -> Any:
        """Return what there is in a folder."""
        return self._files.get_file_info(selector)

    def create_dir(self, path: str, recursive: bool) -> None:
        """Make a folder."""
        self._files.create_dir(path, recursive=recursive)

    def delete_dir(self, path: str) -> None:
        """Remove a folder with all that is in it."""
        self._files.delete_dir(path)

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        """Remove all that is in a folder."""
        self._files.delete_dir_contents(path, missing_dir_ok=missing_dir_ok)

    def delete_root_dir_contents(self) -> None:
        """Refuse to remove everything."""
        raise OSError("a sweep removes nothing but its own")

    def delete_file(self, path: str) -> None:
        """Remove a file."""
        self._files.delete_file(path)

    def move(self, src: str, dest: str) -> None:
        """Give a file or folder another name."""
        self._files.move(src, dest)

    def copy_file(self, src: str, dest: str) -> None:
        """Copy a file."""
        self._files.copy_file(src, dest)


class _Noting:
    """A stream whose content is noted before it is there."""

    def __init__(self, stream: Any, file: str, written: Written | None) -> None:
        assert written is not None
        self._stream, self._file, self._written = stream, file, written
        self._content = bytearray()
        self.closed = False

    def write(self, data: Any) -> int:
        self._content += data
        return len(data)

    def flush(self) -> None:
        """Wait for the whole: what is torn is of no use."""

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._written.note(self._file, bytes(self._content))
            with self._stream as stream:
                stream.write(bytes(self._content))


def guarded(storage: TunesStorage, name: str, written: Written) -> TunesStorage:
    """Return storage with the pickles of the sweep ``name`` guarded."""
    handler = GuardedFiles(_writing_in_turn(storage.files), f"{storage.path.rstrip('/')}/{name}", written)
    return TunesStorage(fs.PyFileSystem(handler), storage.path)


def pickles_in(storage: TunesStorage, name: str) -> Iterator[tuple[str, bytes]]:
    """Yield the files of a sweep's folder that Tune may read with pickle, and their contents.

    Raises:
        OSError: the storage cannot be read.

    """
    folder = f"{storage.path.rstrip('/')}/{name}"
    found = storage.files.get_file_info(fs.FileSelector(folder))
    trials = [f"{one.path}/{_OF_A_TRIAL}" for one in found if one.type == fs.FileType.Directory]
    errors = [one for one in storage.files.get_file_info(trials) if one.type == fs.FileType.File] if trials else []
    for one in (*found, *errors):
        file = one.path.removeprefix(f"{folder}/")
        if one.type == fs.FileType.File and _PICKLED.fullmatch(file):
            with storage.files.open_input_stream(one.path, compression=None) as stream:
                yield file, stream.read()


def _writing_in_turn(files: fs.FileSystem) -> fs.FileSystem:
    """Return a file system that writes in the thread that calls it.

    pyarrow copies folders with as many threads as it has: of S3 each would wait for one more, and Ray keeps that from
    happening for S3's own file system alone.
    """
    if files.type_name != "s3":
        return files
    make, (settings,) = files.__reduce__()
    return make({**settings, "background_writes": False})
