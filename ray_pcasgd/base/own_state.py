"""What this package remembers for its user, outside of all run folders: where runs are running, and what it wrote."""

import os
import re
import stat
from pathlib import Path

from platformdirs import user_state_path

_PRIVATE = 0o700
_DIGEST = re.compile("[0-9a-f]{32}|[0-9a-f]{64}")


def own_folder(name: str) -> Path:
    """Return a folder for what is remembered, which no other user can read or write; it is made if it is not there.

    Raises:
        OSError: it cannot be made, or it is another user's.

    """
    root = user_state_path("ray-pcasgd")
    root.mkdir(mode=_PRIVATE, parents=True, exist_ok=True)
    folder = root / name
    folder.mkdir(mode=_PRIVATE, exist_ok=True)
    for path in (root, folder):
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            raise OSError(f"{path} is no folder of this user")
        if stat.S_IMODE(found.st_mode) & 0o077:
            path.chmod(_PRIVATE)
    return folder


def digests_in(folder: Path) -> list[Path]:
    """Return the files of a folder that this package has named, by a digest in hexadecimal digits; no others."""
    return [path for path in folder.iterdir() if _DIGEST.fullmatch(path.name)]


def keep_newest(folder: Path, number: int) -> None:
    """Remove a folder's own files except the newest ``number``."""
    files = [(path.stat().st_mtime_ns, path) for path in digests_in(folder)]
    for _, path in sorted(files)[: max(0, len(files) - number)]:
        path.unlink(missing_ok=True)
