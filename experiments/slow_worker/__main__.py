"""One worker that is really slow: ``python -m experiments.slow_worker [--scale smoke|cpu|paper]`` from the root.

The steps of all workers are timed first; then one of them sleeps three times as long at each of its steps. Every method
trains the same model from the same weights for the same seconds on this machine, live, and what it had at each moment
is tested afterwards. ``--search`` looks for each method's step size instead, on validation samples.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import ray
import torch

from experiments.running import SCALES, settings_of
from experiments.slow_worker.live import calibrated
from experiments.slow_worker.page import page, picture
from experiments.slow_worker.study import (
    EQUAL,
    HERE,
    METHODS,
    OTHERS,
    SLOWDOWN,
    SLOWED,
    STEP_SIZES,
    SYNC,
    VALIDATION_SHARE,
    chosen_step_sizes,
    measure,
)
from ray_pcasgd.agents.learner import NonFiniteLossError
from ray_pcasgd.config import Config
from ray_pcasgd.runs.settings.loading import load_config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", choices=SCALES, default="cpu", help="smoke: seconds; cpu: 2 cores; paper: GPUs")
    parser.add_argument("--search", action="store_true", help="look for the step sizes on validation samples")
    parser.add_argument("--methods", nargs="+", default=OTHERS, choices=OTHERS, help="whose step sizes are looked for")
    parser.add_argument("--output", type=Path, help="folder for what is measured")
    parser.add_argument("--page", action="store_true", help="only write the page anew, from what was measured")
    parser.add_argument("assignments", nargs="*", metavar="KEY=VALUE", help="settings, as with --set")
    arguments = parser.parse_args()
    scale = settings_of(HERE, arguments.scale)
    output = arguments.output or (HERE if arguments.scale == "cpu" else Path("runs") / f"slow_worker-{arguments.scale}")
    output.mkdir(parents=True, exist_ok=True)
    if arguments.page:
        runs, found = (pd.read_parquet(output / f"{name}.parquet") for name in ("results", "search"))
        write(runs, found, load_config(scale["config"], arguments.assignments), output)
        return
    torch.set_num_threads(1)
    # Workers sleep, so more of them than cores may be placed here.
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    config = load_config(scale["config"], arguments.assignments)
    ray.init(
        address="local",
        num_cpus=2 * config.num_agents,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=2 * 10**9,
    )
    sync = load_config(config, changes={"algorithm": METHODS[SYNC]})
    undisturbed = calibrated(sync, scale["calibration"])
    print(f"a step takes {undisturbed:.4f} s, with all workers training", file=sys.stderr, flush=True)
    extra = (SLOWDOWN - 1) * undisturbed
    if arguments.search:
        search(config, extra, scale, arguments.methods, output)
    else:
        compare(config, extra, scale, output)
    ray.shutdown()


def search(config: Config, extra: float, scale: Mapping[str, Any], methods: Sequence[str], output: Path) -> None:
    """Try every step size with every method and a slow worker, and write after each run what its validation gave."""
    file = output / "search.parquet"
    known = pd.read_parquet(file) if file.exists() else pd.DataFrame({"method": []})
    frames = [known[~known["method"].isin(methods)]]
    for method in methods:
        seconds = scale["search_seconds"].get(method, scale["search_seconds"]["others"])
        for step_size in STEP_SIZES:
            changes = {"step_size": step_size, "task": {"validation_share": VALIDATION_SHARE}, "seed": 1000}
            settings = load_config(config, changes=changes)
            try:
                rows = measure(settings, method, SLOWED, extra, seconds, seconds)
                accuracy = float(rows["accuracy"].iloc[-1])
            except NonFiniteLossError as error:
                print(f"{method}, eta {step_size:g}: {error}", file=sys.stderr, flush=True)
                accuracy = float("-inf")
            found = {"method": method, "step_size": step_size, "seconds": float(seconds), "error": 1 - accuracy}
            frames.append(pd.DataFrame([found]))
            pd.concat(frames, ignore_index=True).to_parquet(file, index=False)


def compare(config: Config, extra: float, scale: Mapping[str, Any], output: Path) -> None:
    """Run every method in both cases, and write what came of it after each run."""
    found = pd.read_parquet(HERE / "search.parquet")
    step_sizes = chosen_step_sizes(found)
    frames = []
    for seed in range(scale["seeds"]):
        for case in (SLOWED, EQUAL):
            for method in METHODS:
                changes = {"step_size": step_sizes[method], "seed": seed}
                settings = load_config(config, changes=changes)
                frames.append(measure(settings, method, case, extra, scale["seconds"], scale["interval"]))
                runs = pd.concat(frames, ignore_index=True)
                runs.to_parquet(output / "results.parquet", index=False)
    write(runs, found, config, output)


def write(runs: pd.DataFrame, found: pd.DataFrame, config: Config, output: Path) -> None:
    """Write the page and its picture."""
    (output / "RESULTS.md").write_text(page(runs, found, config), encoding="utf-8")
    (output / "accuracy.svg").write_bytes(picture(runs))


if __name__ == "__main__":
    main()
