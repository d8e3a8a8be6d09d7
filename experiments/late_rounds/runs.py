"""The live runs, one after another, on the cluster that this process joins: every method with every seed."""

from pathlib import Path
from typing import Any

from torch import Tensor

from experiments.gpt import text
from experiments.late_network.runs import run_all

ROUND = 20
PC_ASGD: dict[str, Any] = {"algorithm": "pc-asgd", "overlap": False}
METHODS: dict[str, dict[str, Any]] = {
    "D-PSGD, H = 1, float32": {"algorithm": "d-psgd"},
    "PC-ASGD, H = 1, float32": PC_ASGD,
    f"PC-ASGD, H = {ROUND}, bf16": {**PC_ASGD, "local_steps": ROUND, "wire": "bf16"},
    f"PC-ASGD, H = {ROUND}, int8": {**PC_ASGD, "local_steps": ROUND, "wire": {"weights": "int8", "directions": "int8"}},
    f"DiLoCo, H = {ROUND}, float32": {"algorithm": "diloco", "local_steps": ROUND},
}
AGENTS = 4
TESTED = 8
"""One of so many windows of the test files is evaluated on, lest evaluations take more time than steps."""


def test() -> list[dict[str, Tensor]]:
    """Return the windows that are evaluated on."""
    return text.test()[::TESTED]


def settings_of(chosen: dict[str, Any], method: str, seed: int, data: Path, storage: Path) -> dict[str, Any]:
    """Return a run's settings: a small GPT, whose text needs no ``data``, on four agents, two on each host."""
    steps = chosen["num_steps"]
    name = "".join(letter if letter.isalnum() else "-" for letter in method)
    return {
        "name": f"{name}-seed{seed}",
        "storage_path": str(storage),
        "seed": seed,
        "num_agents": AGENTS,
        "num_steps": steps,
        "evaluate_every": chosen["evaluate_every"],
        "batch_size": 8,
        "optimizer": {"name": "adamw", "weight_decay": 0.1, "decay": "matrices"},
        "gradient_clipping": {"norm": 1.0},
        "step_size": {"name": "cosine", "start": 0.003, "end": 0.0003, "steps": steps},
        "warmup_steps": steps // 10,
        "links": [],  # the network's own delays, none injected
        "task": {
            "data": {
                "name": "custom",
                "train": "experiments.gpt.text:train",
                "test": "experiments.late_rounds.runs:test",
            },
            "test_batch_size": 512,
            "metrics": [],
            "model": {"name": "custom", "factory": "experiments.gpt.text:gpt", "arguments": chosen["model"]},
        },
        "checkpoint": {"state_seconds": None},
        "engine": {"name": "ray", "mode": "live", "cpus_per_agent": 0.4, "placement_strategy": "SPREAD"},
        **METHODS[method],
    }


if __name__ == "__main__":
    run_all(METHODS, settings_of)
