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
"""Images: enough for the steps, and an evaluation at the end that takes no time."""


def benchmark(repeats: int) -> Iterator[Figure]:
    """Yield the figures of ResNet-18 and a GPT on 2 agents, in float32."""
    for scale, batch, steps in (("cpu", 16, 12), ("paper", 128, 9)):
        changes = _settings(resnet18.HERE, scale, FEW, num_steps=steps, batch_size=batch)
        yield case(f"ResNet-18, 11.2 million parameters, batch {batch}, 2 agents, planned", changes, "planned", repeats)
    for scale, size, batch, steps in (("cpu", "0.37", 8, 60), ("paper", "10.7", 64, 9)):
        data = {"test": f"{__name__}:few_windows"}
        changes = _settings(gpt.HERE, scale, data, num_steps=steps, batch_size=batch)
        yield case(f"GPT, {size} million parameters, batch {batch}, 2 agents, planned", changes, "planned", repeats)


def few_windows() -> list[dict[str, Tensor]]:
    """Return so few samples of text that an evaluation takes no time."""
    return text.test()[:10]


def _settings(folder: Path, scale: str, data: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Return a study's settings for two agents, with less data; without its engine and precision, which are a GPU's."""
    found: dict[str, Any] = settings_of(folder, scale)["config"]
    task = found["task"] | {"data": found["task"]["data"] | data}
    kept = {name: value for name, value in found.items() if name not in ("engine", "precision")}
    return kept | {"num_agents": 2, "task": task} | changes
