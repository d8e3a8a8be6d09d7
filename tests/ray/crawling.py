"""Runs that come to their end only once a test has seen what it waits for, however fast or busy the machine is."""

import time
from collections.abc import Callable
from pathlib import Path

from torch import Tensor, nn

from ray_pcasgd.records import StepReport
from ray_pcasgd.runs.callbacks import Callback

SLICES = 100


class Crawling(nn.Module):
    """Takes a second for each forward pass in training mode, but for the first ones, until a file is there.

    It does not stand still, since an agent reports its steps while it takes others.
    """

    def __init__(self, file: str, free: int = 40) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 10)
        self.file = Path(file)
        self.free = free

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.free -= 1
            for _ in range(SLICES if self.free < 0 else 0):
                if self.file.exists():
                    break
                time.sleep(1 / SLICES)
        outputs: Tensor = self.linear(inputs)
        return outputs


class Release(Callback):
    """Lets agents whose model crawls take their steps as fast as they can once a condition is true."""

    def __init__(self, file: Path, when: Callable[[StepReport], bool]) -> None:
        self.file = file
        self.when = when
        self.task = {"model": {"name": "custom", "factory": Crawling, "arguments": {"file": str(file)}}}

    def on_step(self, report: StepReport) -> None:
        if not self.file.exists() and self.when(report):
            self.file.touch()
