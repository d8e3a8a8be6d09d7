"""What the mean velocity in place of the exact drift costs: ``python -m experiments.benchmarks.drift [--seeds 3]``.

The default method on digits: the averaged model's test loss and accuracy, with either drift on the same schedules,
shards and mini-batches. ``experiments.benchmarks.memory`` puts them on its page.
"""

import argparse
import json
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import torch

from ray_pcasgd import Trainer

RESULTS = Path(__file__).parent / "drift.json"
SHARDS: dict[str, Any] = {"iid": "iid", "two labels": {"name": "by-label", "labels_per_agent": 2}}
DELAYS = (10, 20)
FORMS = ("exact", "velocity")


def result_of(delay: int, shards: str, seed: int, form: str) -> list[float]:
    """Return the averaged model's test loss and accuracy at the end of a run."""
    with tempfile.TemporaryDirectory() as folder:
        result = Trainer(
            algorithm={"name": "pc-asgd", "drift": form},
            links=[{"between": "clusters", "delay": delay}],
            partition=SHARDS[shards],
            seed=seed,
            engine={"name": "local", "batched": "never"},
            storage_path=folder,
        ).fit()
    assert result.error is None, result.error
    return [result.metrics["test_loss"], result.metrics["test_accuracy"]]


def lines(results: dict[str, list[float]]) -> list[str]:
    """Return a table, of the cells that both forms were measured in."""
    found = [
        "| shards | delay | seed | test loss, exact | velocity | accuracy, exact | velocity |",
        "|---|---|---|---|---|---|---|",
    ]
    for shards, delay in product(SHARDS, DELAYS):
        for seed in range(100):
            pair = [results.get(f"{shards}, {delay}, {seed}, {form}") for form in FORMS]
            if all(pair):
                losses, accuracies = zip(*pair, strict=True)
                cells = [*(f"{loss:.4f}" for loss in losses), *(f"{accuracy:.4f}" for accuracy in accuracies)]
                found.append(f"| {shards} | {delay} | {seed} | {' | '.join(cells)} |")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    for seed, delay, shards, form in product(range(arguments.seeds), DELAYS, SHARDS, FORMS):
        name = f"{shards}, {delay}, {seed}, {form}"
        results[name] = results.get(name) or result_of(delay, shards, seed, form)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print("\n".join(lines(results)))


if __name__ == "__main__":
    main()
