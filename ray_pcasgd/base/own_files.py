"""Files and folders of the package's own: nothing else is ever written over, followed or removed.

What this package writes, it writes aside and renames, so that a file is whole or not there. What it removes are files
of known names and temporary folders that carry its mark. A symbolic link is never followed for writing: the person
from whom a folder comes may have put it there.
"""

import errno
import itertools
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_MARK = ".made-by-ray_pcasgd"
UNFINISHED = ".unfinished"
"""The end of the name of what is being written."""
_UNFINISHED_FILE = re.compile(rf"\.(.+)\.[0-9a-f]{{8}}{re.escape(UNFINISHED)}")


class TemporaryFolder:
    """A folder of this machine that the package made for itself, and that alone it removes."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="ray_pcasgd_"))
        self._mark = secrets.token_hex(16)
        (self.path / _MARK).write_text(self._mark, encoding="ascii")
        self._identity = identity_of(self.path)

    def remove(self) -> bool:
        """Remove the folder, and return whether that was done: it is left where it is not the one that was made."""
        if self.path.is_symlink() or identity_of(self.path) != self._identity or not self._is_marked():
            return False
        shutil.rmtree(self.path, ignore_errors=True)
        return True

    def _is_marked(self) -> bool:
        try:
            return (self.path / _MARK).read_text(encoding="ascii") == self._mark
        except (OSError, ValueError):
            return False


def identity_of(path: Path) -> tuple[int, int] | None:
    """Return what tells a file or folder from any other that has its name later; ``None`` where it does not exist."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def names_of(kind: str) -> Iterator[str]:
    """Yield names for things without a given name: their kind and a number, from 1 on."""
    return (f"{kind}-{number}" for number in itertools.count(1))


def claim_folder(storage: Path, name: str | None, kind: str) -> Path:
    """Make and return a new folder: the named one, or the first free one of its kind, which no other process gets.

    Raises:
        FileExistsError: the named one exists.
        OSError: it cannot be made.

    """
    try:
        storage.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(storage)) from error
    for own in names_of(kind) if name is None else (name,):
        try:
            (storage / own).mkdir()
        except FileExistsError:
            if name is not None:
                raise
        else:
            return storage / own
    raise AssertionError("unreachable")


def write_whole(path: Path, write: Callable[[Path], None] | bytes | str) -> None:
    """Write a file, or let ``write`` do it to the path that it is given; it has its name only once it is on the disk.

    Raises:
        OSError: it cannot be written, or its name is that of a symbolic link, a device, or anything else but a file.

    """
    refuse_link(path)
    if path.exists() and not is_file(path):
        raise OSError(errno.EINVAL, "is no file", str(path))
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}{UNFINISHED}")
    os.close(os.open(unfinished, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        if isinstance(write, bytes | str):
            unfinished.write_bytes(write.encode() if isinstance(write, str) else write)
        else:
            write(unfinished)
        reach_disk(unfinished)
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


@contextmanager
def whole_folder(path: Path, files: Collection[str]) -> Iterator[Path]:
    """Yield a folder in which files of such names are to be written; it gets its name once they are on the disk.

    Raises:
        OSError: it cannot be written.

    """
    unfinished = path.with_name(path.name + UNFINISHED)
    remove_files(unfinished, files)  # of a process that was killed
    unfinished.mkdir()
    try:
        yield unfinished
        for written in (*unfinished.iterdir(), unfinished):
            reach_disk(written)
        unfinished.rename(path)
    except BaseException:
        remove_files(unfinished, files)
        raise


def append(path: Path, text: str) -> None:
    """Append lines to a file; one that was cut short there before ends first.

    Raises:
        OSError: it cannot be written, or it is no file but a symbolic link, a pipe or a device.

    """
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        refuse_link(path)
        raise error
    with open(descriptor, "r+b", buffering=0) as file:  # noqa: PTH123 - it is open already
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "is no file", str(path))
        is_torn = found.st_size > 0 and os.pread(descriptor, 1, found.st_size - 1) != b"\n"
        added = ("\n" if is_torn else "").encode() + text.encode()
        if found.st_nlink > 1:
            # The same file has another name elsewhere, under which nothing is to change.
            write_whole(path, file.read() + added)
        elif file.write(added) != len(added):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def refuse_link(path: Path) -> None:
    """Raise ``OSError`` where a path is a symbolic link."""
    if path.is_symlink():
        raise OSError(errno.ELOOP, "is a symbolic link, which is not followed for writing", str(path))


def make_folder(path: Path) -> None:
    """Make a folder within an own one, if it is not there.

    Raises:
        OSError: it cannot be made, or it is no folder but a symbolic link or a file.

    """
    refuse_link(path)
    path.mkdir(exist_ok=True)


def remove_files(folder: Path, names: Collection[str]) -> bool:
    """Remove files of an own folder, and the folder itself unless it holds anything else; return whether it is gone.

    What was left of such files while they were being written goes, too. A symbolic link is left, whether it stands for
    the folder or for a file.
    """
    if folder.is_symlink():
        return False
    for path in folder.glob("*"):
        if path.name in names:
            _remove_file(path)
    remove_unfinished(folder, names)
    try:
        folder.rmdir()
    except OSError:
        return not folder.exists()
    return True


def remove_unfinished(folder: Path, names: Collection[str]) -> None:
    """Remove what was left of own files while they were being written, by a process that was killed."""
    for path in folder.glob(f".*{UNFINISHED}"):
        unfinished = _UNFINISHED_FILE.fullmatch(path.name)
        if unfinished and unfinished[1] in names:
            _remove_file(path)


def _remove_file(path: Path) -> None:
    if path.is_file() and not path.is_symlink():
        with suppress(OSError):
            path.unlink()


def remove_whole(folder: Path, names: Collection[str]) -> None:
    """Remove an own folder as ``remove_files`` does, without its name: so a part of it is never taken for it."""
    if folder.is_symlink() or not folder.is_dir():
        return
    nameless = folder.with_name(folder.name + UNFINISHED)
    remove_files(nameless, names)
    foreign = [path for path in folder.iterdir() if path.name not in names]
    with suppress(OSError):
        folder = folder if foreign else folder.rename(nameless)
    remove_files(folder, names)


def move_aside(path: Path) -> Path | None:
    """Give a folder another name, the first that is free; return it, or ``None`` where there was no folder."""
    if path.is_symlink() or not path.is_dir():
        return None
    for name in names_of(f"{path.name}-before"):
        if not os.path.lexists(path.with_name(name)):
            return path.rename(path.with_name(name))
    raise AssertionError("unreachable")


def is_file(path: Path) -> bool:
    """Return whether a path leads to a file, which can be read without waiting for a writer."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (OSError, ValueError):
        return False


def reach_disk(path: Path) -> None:
    """Wait until a file or folder is on the disk, as far as its storage knows of such a thing."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
