"""Follows one run for its page: its status while it is running, and its folder's files when it is not."""

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ray_pcasgd.base.errors import SettingsError
from ray_pcasgd.engines.ray import discovery

if TYPE_CHECKING:
    from ray_pcasgd.engines.live.commands import Command
    from ray_pcasgd.engines.ray.control import Connection

Read = TypeVar("Read")
POLL_SECONDS = 1.0
_RATE_SECONDS = 10.0
"""Over how long the rate is measured."""
_MOST_UNANSWERED = 3
"""Questions in a row that a cluster may leave unanswered: it may be busy, or its head may be starting again."""
_SHARE = 0.05
"""Of the time that is spent at most on reading files anew."""
_FILES = ("config.yaml", "events.jsonl", "result.json", "metrics.parquet", "schedule.parquet")


class Watcher:
    """Asks for a run's status again and again, in a thread of its own; the page's server takes the newest.

    Args:
        run: the run's folder, or its remote location.
        address: of its cluster, if its user has named one.

    Raises:
        SettingsError: it is not running, and its folder is not there.

    """

    def __init__(self, run: str, address: str | None) -> None:
        self._run = run
        self._address = address
        self._location = discovery.location_of(run)
        self._folder = Path(self._location)
        self._copies = ExitStack()
        """What ends the copy of a folder on remote storage."""
        self._next_copy = 0.0
        self._ended = threading.Event()
        self._connection: Connection | None = None
        self._samples: deque[tuple[float, int]] = deque()
        self._seen: tuple[Any, ...] = ()
        """The files of the folder as they were when they were read."""
        self._read: Any = None
        self._next_read = 0.0
        self.page: dict[str, Any] = {"state": "connecting", "said": ""}
        """What is shown now; it is replaced, never changed."""
        self._refusal = "the run is not running"
        """Why no command is taken, as long as there is no connection."""
        unreached = self._unreached()
        self.why = "" if unreached is None else str(unreached)
        """Why the run could not be watched at the start; empty where it could."""
        if unreached is not None:
            self._copy()
            if not (self._folder / "config.yaml").is_file():
                raise SettingsError(self.why)
            self._show_files(unreached)
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def start(self) -> None:
        """Begin to follow the run."""
        self._thread.start()

    def close(self) -> None:
        """End following the run."""
        self._ended.set()
        self._thread.join(timeout=POLL_SECONDS)
        self._copies.close()

    def send(self, command: "Command") -> str:
        """Send a command to the run; return its answer, or why there is none."""
        connection = self._connection
        if connection is None:
            return f"refused: {self._refusal}"
        try:
            return connection.send(command)
        except Exception as error:  # the thread that follows the run finds out what is wrong with it
            return f"refused: the run cannot be reached ({type(error).__name__})"

    def _unreached(self) -> discovery.NotRunningError | None:
        try:
            discovery.address_of(self._run, self._address)
        except discovery.NotRunningError as error:
            return error
        return None

    def _follow(self) -> None:
        while not self._ended.is_set():
            if (unreached := self._unreached()) is not None:  # before Ray is imported, which takes long
                self._show_files(unreached)
            else:
                self._follow_connected()
            self._ended.wait(POLL_SECONDS)

    def _follow_connected(self) -> None:
        from ray_pcasgd.engines.ray.control import connection_to

        try:
            at = discovery.address_of(self._run, self._address)
            with connection_to(self._run, at) as connection:
                self._samples.clear()
                self._copies.close()
                self._folder = Path(self._location)
                while not self._ended.is_set():
                    self._show_status(self._answered(connection))
                    self._connection = connection
                    self._ended.wait(POLL_SECONDS)
        except discovery.NotRunningError as error:
            self._show_files(error)
        finally:
            self._connection = None

    def _answered(self, connection: "Connection") -> dict[str, Any]:
        """Return the run's status, of which one question or another may stay without an answer.

        Raises:
            NotRunningError: the run is not running.
            NoAnswerError: its cluster has not answered for too long.

        """
        for unanswered in range(1, _MOST_UNANSWERED + 1):
            try:
                return connection.status()
            except discovery.NoAnswerError as error:
                if unanswered == _MOST_UNANSWERED or self._ended.is_set():
                    raise
                self.page = {**self.page, "said": f"no answer, asking again: {error}"}
            self._ended.wait(POLL_SECONDS)
        raise AssertionError("unreachable")

    def _show_status(self, status: dict[str, Any]) -> None:
        from ray_pcasgd.report import watched

        now = time.monotonic()
        if status:
            self._samples.append((now, status["steps_taken"]))
            while now - self._samples[0][0] > _RATE_SECONDS:
                self._samples.popleft()
        events = self._reading("events", lambda: watched.events_in(self._folder))
        self.page = watched.of_running(status, events, watched.rate_of(self._samples), time.time())

    def _show_files(self, unreached: discovery.NotRunningError) -> None:
        from ray_pcasgd.report.data import load_run
        from ray_pcasgd.report.watched import of_files

        why, state = str(unreached), "not running"
        if isinstance(unreached, discovery.NoClusterError):
            state, self._refusal = "running", "the run has no agents on a cluster, which commands are for"
        elif isinstance(unreached, discovery.NoAnswerError):
            state, self._refusal = "no answer", "the run's cluster does not answer"
        else:
            self._refusal = "the run is not running"
        try:
            self._copy()
        except SettingsError as error:
            why = f"{why}; {error}"

        def read() -> dict[str, Any]:
            try:
                return of_files(load_run(self._folder), why, state)
            except ValueError as error:
                return {"state": state, "said": f"{why}; {error}", "events": [], "num_events": 0}

        self.page = self._reading(why, read)

    def _copy(self) -> None:
        """Have the files of a run on remote storage here, anew until it has its result, which its driver sends last.

        Raises:
            SettingsError: it is not there, or cannot be read.

        """
        began = time.monotonic()
        if "://" not in self._location or (self._folder / "result.json").is_file() or began < self._next_copy:
            return
        from ray_pcasgd.runs.storage.fetched import fetched_run
        from ray_pcasgd.runs.storage.names import PAGE_FILES

        self._copies.close()
        try:
            self._folder = self._copies.enter_context(fetched_run(self._location, PAGE_FILES))
        finally:
            self._next_copy = time.monotonic() + (time.monotonic() - began) / _SHARE

    def _reading(self, what: str, read: Callable[[], Read]) -> Read:
        """Return what ``read`` has made of the folder's files, anew where they have changed and it is time."""
        seen = (what, *(_mark(self._folder / name) for name in _FILES))
        began = time.monotonic()
        if seen != self._seen and (began >= self._next_read or seen[:1] != self._seen[:1]):
            self._read, self._seen = read(), seen
            self._next_read = time.monotonic() + (time.monotonic() - began) / _SHARE
        found: Read = self._read
        return found


def _mark(path: Path) -> tuple[int, int] | None:
    """Return what changes when a file does."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size
