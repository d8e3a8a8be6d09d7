"""A run folder has one driver at a time: a lock on its settings' file, which ends with the process that holds it."""

import os
import weakref
from pathlib import Path
from typing import Any

fcntl: Any
try:
    import fcntl
except ImportError:  # a system without such locks
    fcntl = None


class LockedError(Exception):
    """Another driver has the folder."""


class FolderLock:
    """Holds a run folder, from its making until ``release``, or until the process ends, whatever ends it."""

    def __init__(self, file: Path) -> None:
        self.problem: str | None = "this system has no file locks" if fcntl is None else None
        """Why the folder is not locked, where its storage knows no locks."""
        self._descriptor: int | None = None
        if fcntl is None:
            return
        descriptor = None
        try:
            descriptor = _opened(file)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            # Some storage says that access is denied where another one holds the lock.
            if descriptor is not None and isinstance(error, BlockingIOError | PermissionError):
                os.close(descriptor)
                raise LockedError(str(file)) from None
            self.problem = f"its storage has no file locks ({error.strerror})"
        if descriptor is None:
            return
        self._descriptor = descriptor
        self._close = weakref.finalize(self, os.close, descriptor)
        _HELD.add(self)

    def has_lost_its_file(self) -> bool:
        """Return whether the file was removed, or another one put in its place."""
        return self._descriptor is not None and os.fstat(self._descriptor).st_nlink == 0

    def release(self) -> None:
        """Let another driver have the folder."""
        if self._descriptor is not None:
            self._descriptor = None
            self._close()


_HELD: "weakref.WeakSet[FolderLock]" = weakref.WeakSet()


def _let_go_in_child() -> None:
    # A process that this one forks would hold the lock, too, and longer than this one lives.
    for lock in list(_HELD):
        lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_in_child)


def _opened(file: Path) -> int:
    # Some network storage grants exclusive locks to those alone who may write; nothing is written.
    flags = os.O_NONBLOCK | os.O_CLOEXEC
    try:
        return os.open(file, os.O_RDWR | flags)
    except OSError:
        return os.open(file, os.O_RDONLY | flags)
