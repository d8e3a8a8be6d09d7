"""Writes a run's last files, each by itself: one that cannot be written does not keep others from being written."""

from collections.abc import Callable

from ray_pcasgd.engines.base import RunError
from ray_pcasgd.engines.failures import described
from ray_pcasgd.records import Event
from ray_pcasgd.runs.storage.folder import RunFolder


class Ending:
    """Writes a run's last files; where its folder does not take one, all of them go to a folder that does."""

    def __init__(self, folder: RunFolder, say: Callable[[Event], None]) -> None:
        self._folder = folder
        self._say = say
        self._files: dict[str, Callable[[], None]] = {}
        self.error: RunError | None = None
        """The errors that kept files from being written where they should be."""

    def write(self, name: str, write: Callable[[], None]) -> None:
        """Write one file; what kept it from being written is in ``error``."""
        self._files[name] = write
        problem = self._attempt(name)
        if problem is not None and self.move_out(problem):
            for other in self._files:
                if (problem := self._attempt(other)) is not None:
                    self._fail(other, problem)
        elif problem is not None:
            self._fail(name, problem)

    def move_out(self, problem: OSError) -> bool:
        """Go on in another folder, since the run's own cannot be written; return whether there is one."""
        if self._folder.rescued_from is not None:
            return False
        wanted = self._folder.path
        try:
            kept = self._folder.rescue()
        except OSError as error:
            self.error = RunError(f"{wanted} could not be written ({problem}), nor another folder ({error})")
            self._say(Event("storage_failed", -1, -1, str(self.error)))
            return False
        self.error = RunError(f"{wanted} could not be written ({problem}); the run's files are in {kept}")
        self._say(Event("storage_failed", -1, -1, str(self.error)))
        return True

    def _attempt(self, name: str) -> OSError | None:
        """Write a file, and return what its storage has to say against it."""
        try:
            self._files[name]()
        except OSError as error:
            return error
        except Exception as error:
            self._fail(name, error)
        return None

    def _fail(self, name: str, error: Exception) -> None:
        failed = RunError(f"{name} could not be written: {described(error)}")
        self.error = self.error or failed
        self._say(Event("file_not_written", -1, -1, str(failed)))
