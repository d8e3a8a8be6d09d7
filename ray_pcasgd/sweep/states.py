"""Trials that can be left and taken up: their reports to Tune, with a run's state where one is due."""

import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, chdir, nullcontext
from pathlib import Path
from typing import Any

from ray import tune

from ray_pcasgd.base.state import State, load_state, save_state
from ray_pcasgd.engines.base import Pause

_STATE_FILE = "state.pt"


def working_in(directory: str) -> AbstractContextManager[None]:
    """Look paths up from a directory, as the sweep's command does; Tune has gone to a folder of the trial's.

    Where another machine has no such directory, only whole paths are found.
    """
    return chdir(directory) if Path(directory).is_dir() else nullcontext()


def with_axis(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return metrics with the run's step under the name that Tune's TensorBoard logger takes for its axis."""
    return {**metrics, "timesteps_total": int(metrics["step"])}


class StateKeeper:
    """Reports to Tune what a trial came to, and from time to time keeps the state from which it goes on.

    A trial's state is kept in a file of its own, which is whole at any time. Only where trials go on from each other's
    states do these go through Tune's checkpoints: a sweep that is killed while Tune drops one could not be resumed.
    """

    def __init__(self, file: Path, every_seconds: float, every_steps: int | None = None) -> None:
        self._file = file
        self._every_seconds = every_seconds
        self._every_steps = every_steps
        self._last = time.monotonic()

    def report(self, metrics: Mapping[str, Any], pause: Pause, state: Callable[[], State]) -> None:
        """Report metrics, at a pause."""
        metrics = with_axis(metrics)
        if self._every_steps is not None and pause.step % self._every_steps == 0:
            with tempfile.TemporaryDirectory() as folder:
                save_state(Path(folder) / _STATE_FILE, {**state(), "next_step": pause.next_step})
                tune.report(dict(metrics), checkpoint=tune.Checkpoint.from_directory(folder))
            return
        tune.report(dict(metrics))
        if self._every_steps is None and time.monotonic() - self._last >= self._every_seconds:
            save_state(self._file, {**state(), "next_step": pause.next_step})
            self._last = time.monotonic()

    def last(self) -> State | None:
        """Return the state from which the trial goes on; ``None`` where it starts."""
        if (checkpoint := tune.get_checkpoint()) is not None:
            with checkpoint.as_directory() as folder:
                return load_state(Path(folder) / _STATE_FILE)
        return load_state(self._file) if self._file.exists() else None

    def forget(self) -> None:
        """Drop what was kept, once the trial is done."""
        self._file.unlink(missing_ok=True)
