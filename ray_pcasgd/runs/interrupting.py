"""Ctrl-C during a run: the first one asks it to end where its state can be kept, a second one ends it at once."""

import shlex
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from ray_pcasgd.runs.result import Result


class RunInterrupted(KeyboardInterrupt):
    """A run was interrupted by Ctrl-C; its files are written."""

    def __init__(self, result: Result, has_state: bool) -> None:
        super().__init__(result, has_state)
        self.result = result
        """The run's result so far."""
        self.has_state = has_state
        """Whether it can go on from a state."""

    def __str__(self) -> str:
        command = f"ray-pcasgd train --resume {shlex.quote(self.result.path)}"
        if self.has_state:
            return f"interrupted; go on with: {command}"
        return f"interrupted; no state was kept, so this begins anew: {command}"


class Interrupts:
    """Handles Ctrl-C in the main thread, unless the program has a handler of its own."""

    def __init__(self, ask: Callable[[], bool]) -> None:
        self._ask = ask
        """Asks the run to end soon, and returns whether it can."""
        self._is_asked = False
        self._has_raised = False
        self._is_held = False

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Handle Ctrl-C within."""
        before = signal.getsignal(signal.SIGINT)
        # Tune leaves a handler of its own when a sweep is done.
        is_default = before is signal.default_int_handler or str(getattr(before, "__module__", "")).startswith("ray.")
        is_ours = threading.current_thread() is threading.main_thread() and is_default
        if is_ours:
            signal.signal(signal.SIGINT, self._came)
        try:
            yield
        finally:
            if is_ours:
                signal.signal(signal.SIGINT, before)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Put off Ctrl-C while files are written."""
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = self._has_raised = False

    def interrupt(self) -> None:
        """Do what Ctrl-C does; called where a ``KeyboardInterrupt`` has come from elsewhere, too."""
        if self._is_held:
            return
        if not self._is_asked and not self._has_raised and self._ask():
            self._is_asked = True
            return
        self._has_raised = True
        raise KeyboardInterrupt

    def _came(self, number: int, frame: FrameType | None) -> Any:
        # Once one has ended the run, further ones may not come in the way of what is written then.
        if not self._has_raised:
            self.interrupt()
