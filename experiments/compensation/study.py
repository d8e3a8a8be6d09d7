"""The runs of the study: cells, step sizes, ways to correct."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from experiments.gpt.text import files
from experiments.running import Job, measured
from ray_pcasgd.runs.settings.loading import load_config

HERE = Path(__file__).parent
WAYS: dict[str, Any] = {"lambda 0.04": 0.04, "lambda 0": 0.0, "`relative`, 0.2": "relative"}
"""The compensation, as the page has it, and as settings do."""
_BYTES = 150_000
"""Of the language model's text."""


def measure(settings: Mapping[str, Any], storage: Path, output: Path, processes: int) -> None:
    """Run what is missing, and write what it came to."""
    path = write_text(storage)
    measured(jobs_of(settings, path), storage, processes).to_parquet(output / "results.parquet", index=False)


def write_text(folder: Path) -> Path:
    """Write the language model's text, which no commit changes: sources of Python's own packages."""
    path = folder / "text.txt"
    content = b"".join(file.read_bytes() for file in files())[:_BYTES]
    path.write_text(content.decode("ascii", errors="ignore"), encoding="utf-8")
    return path


def jobs_of(settings: Mapping[str, Any], text: Path) -> Iterator[Job]:
    """Yield every way's run in every cell, with every step size and seed, tested at the end alone."""
    for cell, config in settings["cells"].items():
        for step_size in settings["step_sizes"]:
            for way, compensation in WAYS.items():
                for seed in range(settings["seeds"]):
                    changes: dict[str, Any] = {
                        "step_size": step_size,
                        "seed": seed,
                        "algorithm": {"compensation": compensation},
                        "evaluate_every": config["num_steps"],
                    }
                    if "task" in config:
                        changes["task"] = {"data": {"name": "text", "path": str(text), "context": 32}}
                    labels = {"cell": cell, "step_size": step_size, "way": way, "seed": seed}
                    yield Job(labels, load_config(config, changes=changes))
