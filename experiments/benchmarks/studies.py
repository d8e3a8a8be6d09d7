"""(g) Steps of the ray engine on the networks of two studies, small and large, against as many bare PyTorch loops."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from experiments.benchmarks.engine import case
from experiments.benchmarks.measuring import Figure
from experiments.gpt import study as gpt
from experiments.gpt import text
from experiments.resnet18 import study as resnet18
from experiments.running import settings_of

FEW = {"limit": 2048, "test_limit": 10}
"""Few images, and an evaluation at the end that takes no time."""

BARE = 16
"""Steps of a bare loop, which are all alike."""

STEPS = {"pc-asgd": (27, 55), "d-asgd": (12, 32)}
"""Steps that are not counted, and steps in all. By the first ones late messages are read, and the memory that they lie
in was used before; prediction has measured its curvature twice, and does so once in the 26 steps that count."""


def benchmark(repeats: int) -> Iterator[Figure]:
    """Yield the figures of ResNet-18 and a GPT on 2 agents, in float32, at usual batch sizes and at small ones."""
    for scale, batch, algorithms in (("paper", 128, STEPS), ("cpu", 16, ("pc-asgd",))):
        settings = _settings(resnet18.HERE, scale, FEW, batch_size=batch)
        for algorithm in algorithms:
            yield _figure(f"ResNet-18, 11.2 million parameters, batch {batch}", algorithm, settings, repeats)
    for scale, size, batch, algorithms in (("paper", "10.7", 64, STEPS), ("cpu", "0.37", 8, ("pc-asgd",))):
        settings = _settings(gpt.HERE, scale, {"test": f"{__name__}:few_windows"}, batch_size=batch)
        for algorithm in algorithms:
            yield _figure(f"GPT, {size} million parameters, batch {batch}", algorithm, settings, repeats)


def _figure(name: str, algorithm: str, settings: dict[str, Any], repeats: int) -> Figure:
    """Return an algorithm's figure; no state of the run is kept, as none is of a bare loop."""
    skipped, steps = STEPS[algorithm]
    changes = settings | {"algorithm": {"name": algorithm}, "num_steps": steps, "checkpoint": {"state_seconds": None}}
    return case(f"{name}, 2 agents, planned", changes, "planned", repeats, skipped, BARE)


def few_windows() -> list[dict[str, Tensor]]:
    """Return so few samples of text that an evaluation takes no time."""
    return text.test()[:10]


def _settings(folder: Path, scale: str, data: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Return a study's settings for two agents, with less data; without its engine and precision, which are a GPU's."""
    found: dict[str, Any] = settings_of(folder, scale)["config"]
    task = found["task"] | {"data": found["task"]["data"] | data}
    kept = {name: value for name, value in found.items() if name not in ("engine", "precision")}
    return kept | {"num_agents": 2, "task": task} | changes
