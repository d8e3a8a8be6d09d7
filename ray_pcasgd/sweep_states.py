"""Trials that can be left and taken up: their reports to Tune, with a run's state where one is due."""

import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, chdir, nullcontext
from pathlib import Path
from typing import Any

from ray import tune

from ray_pcasgd.engines.base import Pause
from ray_pcasgd.run_state import State, load_state, save_state

_STATE_FILE = "state.pt"


def working_in(directory: str) -> AbstractContextManager[None]:
    """Look paths up from a directory, as the sweep's command does; Tune has gone to a folder of the trial's.

    Where another machine has no such directory, only whole paths are found.
    """
    return chdir(directory) if Path(directory).is_dir() else nullcontext()


class StateKeeper:
    """Reports to Tune what a trial came to, and from time to time the state from which it goes on."""

    def __init__(self, every_seconds: float, every_steps: int | None) -> None:
        self._every_seconds = every_seconds
        self._every_steps = every_steps
        self._last = time.monotonic()

    def report(self, metrics: Mapping[str, Any], pause: Pause, state: Callable[[], State]) -> None:
        """Report metrics, at a pause."""
        if not self._is_due(pause.step):
            tune.report(dict(metrics))
            return
        with tempfile.TemporaryDirectory() as folder:
            save_state(Path(folder) / _STATE_FILE, {**state(), "next_step": pause.next_step})
            tune.report(dict(metrics), checkpoint=tune.Checkpoint.from_directory(folder))
        self._last = time.monotonic()

    def _is_due(self, step: int) -> bool:
        if self._every_steps is not None:
            return step % self._every_steps == 0
        return time.monotonic() - self._last >= self._every_seconds


def last_state() -> State | None:
    """Return the state from which the trial that runs here goes on; nothing where it starts.

    Tune notes a state before it drops the one before; a sweep that is killed between the two, or within a copy, leaves
    a note of what is not there. Then the newest state beside it that is whole is gone on from.
    """
    checkpoint = tune.get_checkpoint()
    if checkpoint is None:
        return None
    noted = Path(checkpoint.path)
    for folder in [noted, *sorted(noted.parent.glob("checkpoint_*"), reverse=True)]:
        try:
            return load_state(folder / _STATE_FILE)
        except (OSError, RuntimeError, EOFError) as error:
            print(f"{folder / _STATE_FILE}: not gone on from ({type(error).__name__})", flush=True)
    return None
