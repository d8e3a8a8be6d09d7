"""What this user's sweeps have written, known by digests on this machine, however many others may write there."""

import hashlib
import json
import threading
from contextlib import suppress

from ray_pcasgd.base.own_files import write_whole
from ray_pcasgd.base.own_state import keep_newest, own_folder

_VERSIONS = 4
"""Of a file that are known: the newest may not have arrived yet when its writer is killed."""
_MOST_SWEEPS = 500


class Written:
    """Digests of the files that a sweep has written, by its location.

    Where they cannot be kept, as in a home that cannot be written to, the sweep goes on, and none of its files is known
    later.
    """

    def __init__(self, location: str) -> None:
        self._name = hashlib.blake2b(location.encode(errors="surrogateescape"), digest_size=16).hexdigest()
        self._lock = threading.Lock()
        self._digests: dict[str, list[str]] = {}
        with suppress(OSError, ValueError):
            self._digests = json.loads((own_folder("swept") / self._name).read_bytes())

    def note(self, file: str, content: bytes) -> None:
        """Note that the sweep writes a file with such content."""
        digest = _digest(content)
        with self._lock:
            known = self._digests.get(file, [])
            if known[-1:] == [digest]:
                return
            self._digests[file] = [*(one for one in known if one != digest), digest][-_VERSIONS:]
            with suppress(OSError):
                path = own_folder("swept") / self._name
                is_new = not path.exists()
                write_whole(path, json.dumps(self._digests))
                if is_new:
                    keep_newest(path.parent, _MOST_SWEEPS)

    def knows(self, file: str, content: bytes) -> bool:
        """Return whether the sweep has written a file with such content."""
        return _digest(content) in self._digests.get(file, [])


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=32).hexdigest()
