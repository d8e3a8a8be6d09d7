"""The runs of the study: laws of compute times, methods, step sizes and seeds, for the same virtual seconds."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from experiments.studies import ensure_run
from ray_pcasgd.config import Config
from ray_pcasgd.rules.delay_threshold import Rennala, Ringmaster
from ray_pcasgd.rules.gathering import ASGD, AdaSync, Gathering, KAsync, KBatchAsync, KSync, Sync
from ray_pcasgd.runs.settings.loading import load_config
from ray_pcasgd.schedule.laws import Exponential, Law, Pareto
from ray_pcasgd.schedule.runtime_theory import plan_updates

HERE = Path(__file__).parent
NUM_WORKERS = 8
LAWS: dict[str, Law] = {"exponential, mean 1 s": Exponential(mean=1), "Pareto(2), mean 1 s": Pareto(shape=2, scale=0.5)}
PEERS = "PC-ASGD"
GATHERINGS: dict[str, Gathering] = {
    "sync": Sync(),
    "K-sync, K = 4": KSync(k=4),
    "K-batch-async, K = 4": KBatchAsync(k=4),
    "K-async, K = 4": KAsync(k=4),
    "ASGD": ASGD(),
    "Ringmaster, R = 8": Ringmaster(delay_threshold=8),
    "Rennala, K = 8": Rennala(k=8),
    "AdaSync from K = 2": AdaSync(base="k-async", initial_k=2, every_seconds=25),
}
METHODS = (*GATHERINGS, PEERS)
TUNING_SEED = 0
VALIDATION_SHARE = 0.1
EVALUATIONS = 16


class Case(NamedTuple):
    """One run."""

    law: str
    method: str
    step_size: float
    seed: int
    validates: bool

    @property
    def name(self) -> str:
        """The run folder's name."""
        parts = ["tuning" if self.validates else "final", self.law.split("(")[0].split(",")[0], self.method]
        words = " ".join(parts).replace(",", "").replace("=", "").split()
        return "-".join([*words, f"{self.step_size:g}", str(self.seed)])

    def settings(self, seconds: float, storage: Path) -> dict[str, Any]:
        """Return what the case changes of the configuration."""
        num_steps = mini_batches(self.method, LAWS[self.law], seconds)
        algorithm: dict[str, Any] = {"name": "pc-asgd", "theta": 0.3}
        if self.method in GATHERINGS:
            algorithm = {"name": "server", "gathering": GATHERINGS[self.method].model_dump()}
        return {
            "algorithm": algorithm,
            "compute": {"law": LAWS[self.law].model_dump()},
            "num_steps": num_steps,
            "evaluate_every": num_steps if self.validates else max(1, num_steps // EVALUATIONS),
            "step_size": self.step_size,
            "seed": self.seed,
            "task": {"validation_share": VALIDATION_SHARE if self.validates else 0.0},
            "storage_path": str(storage),
            "name": self.name,
        }


@cache  # step sizes and seeds change nothing in it
def mini_batches(method: str, law: Law, seconds: float) -> int:
    """Return how many mini-batches of each worker are taken in so many seconds, by the planner.

    Peers wait for nobody. AdaSync is planned as if K stayed: as K rises workers wait longer, and it lasts longer.
    """
    gathering = GATHERINGS.get(method, ASGD())
    if isinstance(gathering, AdaSync):
        gathering = KAsync(k=gathering.initial_k)
    planned = plan_updates(gathering, law, NUM_WORKERS, 2000)
    return round(seconds / planned.seconds * gathering.num_gradients(NUM_WORKERS) / NUM_WORKERS)


def measure(case: Case, settings: Mapping[str, Any], storage: Path) -> pd.DataFrame:
    """Return the averaged model's (or the server's) tests of a case by virtual second; none where it diverged."""
    seconds = settings["seconds"]
    config: Config = load_config(settings["config"], changes=case.settings(seconds, storage))
    finished = ensure_run(config)
    metrics = pd.read_parquet(storage / case.name / "metrics.parquet")
    if not finished or metrics.empty:
        metrics = pd.DataFrame({"agent": [pd.NA], "seconds": [seconds], "test_loss": [float("inf")]})
    rows = metrics[metrics["agent"].isna()]
    columns = {name: rows[name].to_numpy() for name in ("seconds", "test_loss", "test_accuracy") if name in rows}
    return pd.DataFrame({**case._asdict(), **columns, "staleness": finished.get("staleness_mean", float("nan"))})
