"""The runs of a study of late weights on one model: each method, with every seed, tested at the end alone."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.running import Job, measured
from ray_pcasgd.runs.settings.loading import load_config

METHODS: dict[str, dict[str, Any]] = {
    "D-PSGD without delays": {"algorithm": "d-psgd", "links": []},
    "PC-ASGD, the default": {"algorithm": "pc-asgd"},
    "C-ASGD (clips)": {"algorithm": "c-asgd"},
    "D-ASGD": {"algorithm": "d-asgd"},
}


def jobs_of(settings: Mapping[str, Any]) -> Iterator[Job]:
    """Yield every method's run with every seed."""
    for seed in range(settings["seeds"]):
        for method, changes in METHODS.items():
            config = load_config(settings["config"], changes={**changes, "seed": seed})
            config = load_config(config, changes={"evaluate_every": config.num_steps})
            yield Job({"method": method, "seed": seed}, config)


def measure(settings: Mapping[str, Any], storage: Path, output: Path, processes: int) -> None:
    """Run what is missing, and write what it came to."""
    measured(jobs_of(settings), storage, processes).to_parquet(output / "results.parquet", index=False)


def spread(values: pd.Series) -> str:
    """Return the mean, with the sample deviation where there are several values."""
    return f"{values.mean():.4g}" + (f" ± {values.std():.2g}" if len(values) > 1 else "")
