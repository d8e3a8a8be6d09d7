"""The runs of the study: methods, workers, step sizes and seeds."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from experiments.studies import ensure_run
from ray_pcasgd.runs.settings.loading import load_config

HERE = Path(__file__).parent
METHODS: dict[str, dict[str, Any]] = {
    "sequential SGD": {"gathering": "sync"},
    "sync SGD": {"gathering": "sync"},
    "ASGD": {"gathering": "asgd"},
    "staleness-aware": {"gathering": "asgd", "correction": "staleness-aware"},
    "DC-ASGD-c": {"gathering": "asgd", "correction": "dc-asgd-c"},
    "DC-ASGD-a": {"gathering": "asgd", "correction": "dc-asgd-a"},
    "K-sync, K = 3": {"gathering": {"name": "k-sync", "k": 3}},
    "Ringmaster, R = 4": {"gathering": {"name": "ringmaster", "delay_threshold": 4}},
    "Rennala, K = 4": {"gathering": {"name": "rennala", "k": 4}},
}
TUNING_SEED = 0
VALIDATION_SHARE = 0.1
PAPER = {
    4: {"sequential SGD": 8.65, "sync SGD": 9.17, "ASGD": 9.27, "DC-ASGD-c": 8.67, "DC-ASGD-a": 8.19},
    8: {"sequential SGD": 8.65, "sync SGD": 10.10, "ASGD": 10.26, "DC-ASGD-c": 9.27, "DC-ASGD-a": 8.57},
}
"""Test error in percent of ResNet-20 on CIFAR-10 after 160 epochs (Zheng et al. 2017, table 1)."""


class Case(NamedTuple):
    """One run."""

    method: str
    workers: int
    step_size: float
    seed: int
    validates: bool

    @property
    def name(self) -> str:
        """The run folder's name."""
        kind = "tuning" if self.validates else "final"
        method = "-".join(self.method.replace(",", "").replace("=", "").split())
        return f"{kind}-{method}-{self.workers}-{self.step_size:g}-{self.seed}"

    def changes(self, settings: Mapping[str, Any], storage: Path) -> dict[str, Any]:
        """Return what the case changes of the configuration."""
        workers = 1 if self.method == "sequential SGD" else self.workers
        samples = int(settings["samples"] * (1 - VALIDATION_SHARE * self.validates))
        steps_per_epoch = samples / (settings["config"]["batch_size"] * workers)
        num_steps = max(1, round(settings["epochs"] * steps_per_epoch))
        cuts = [round(epoch * steps_per_epoch) for epoch in settings.get("cut_at_epochs", ())]
        return {
            "algorithm": {"name": "server", **METHODS[self.method]},
            "num_agents": workers,
            "clusters": 1,
            "num_steps": num_steps,
            "evaluate_every": num_steps,
            "step_size": {"name": "multi-step", "start": self.step_size, "at_steps": cuts} if cuts else self.step_size,
            "seed": self.seed,
            "task": {"validation_share": VALIDATION_SHARE if self.validates else 0.0},
            "storage_path": str(storage),
            "name": self.name,
        }


def measure(case: Case, settings: Mapping[str, Any], storage: Path) -> dict[str, Any]:
    """Return what a case reached; a diverged run has an infinite loss and the error of guessing."""
    config = load_config(settings["config"], changes=case.changes(settings, storage))
    metrics = ensure_run(config)
    return {
        **case._asdict(),
        "error": 100 * (1 - metrics.get("test_accuracy", 0.1)),
        "loss": metrics.get("test_loss", float("inf")),
        "staleness": metrics.get("staleness_mean", float("nan")),
        "diverged": "test_loss" not in metrics,
    }
