"""A network whose agents, each in a process of its own, all begin before any goes on."""

import os
import time
from pathlib import Path
from typing import Any

from torch import Tensor

from .restless import Restless, restless


class Meeting(Restless):
    """Waits at its first batch until as many actors have come to theirs as there are agents."""

    def __init__(self, folder: str, number: int, changes_weights: bool) -> None:
        super().__init__(changes_weights)
        self.folder, self.number = Path(folder), number
        self.has_met = "RAY_WORKER_MODE" not in os.environ and "RAY_RAYLET_PID" not in os.environ
        """Whether there is nobody to wait for any more; the driver, and who replays the run, meet nobody."""

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training and not self.has_met:
            (self.folder / str(os.getpid())).touch()
            while len(list(self.folder.iterdir())) < self.number:
                time.sleep(0.01)
            self.has_met = True
        return super().forward(inputs)


def meeting(folder: Path, number: int, changes_weights: bool) -> dict[str, Any]:
    """Return settings of it."""
    folder.mkdir()
    arguments = {"folder": str(folder), "number": number, "changes_weights": changes_weights}
    model = {"name": "custom", "factory": "tests.engines.meeting:Meeting", "arguments": arguments}
    return {"task": restless()["task"] | {"model": model}}
