"""The runs of the study: methods, cases, step sizes, and what is measured of each run."""

import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.slow_worker.ddp import run_ddp
from experiments.slow_worker.live import run_live
from experiments.slow_worker.track import Track, measured_at
from ray_pcasgd.config import Config
from ray_pcasgd.runs.settings.loading import load_config

HERE = Path(__file__).parent
SYNC, DDP = "sync SGD", "DDP (Ray Train)"
METHODS: dict[str, dict[str, Any]] = {
    DDP: {"name": "server", "gathering": "sync"},
    SYNC: {"name": "server", "gathering": "sync"},
    "3-async": {"name": "server", "gathering": {"name": "k-async", "k": 3}},
    "2-async": {"name": "server", "gathering": {"name": "k-async", "k": 2}},
    "ASGD": {"name": "server", "gathering": "asgd"},
    "K-sync, K = 3": {"name": "server", "gathering": {"name": "k-sync", "k": 3}},
    "Ringmaster, R = 8": {"name": "server", "gathering": {"name": "ringmaster", "delay_threshold": 8}},
    "Rennala, K = 4": {"name": "server", "gathering": {"name": "rennala", "k": 4}},
    "PC-ASGD": {"name": "pc-asgd", "theta": 0.3, "bounded": False},
}
"""The algorithm of each; DDP is what Ray Train and PyTorch make of it, the others are this package's."""
OTHERS = [method for method in METHODS if method != DDP]
SLOW, SLOWDOWN = 3, 4
SLOWED, EQUAL = "worker 3 slowed", "no worker slowed"
STEP_SIZES = (0.025, 0.05, 0.1, 0.2, 0.4)
VALIDATION_SHARE = 0.1
TEST_IMAGES = 4000
TARGETS = (0.35, 0.4, 0.45, 0.5, 0.55)


def measure(config: Config, method: str, case: str, extra: float, seconds: float, interval: float) -> pd.DataFrame:
    """Run one method once; return a row for each time at which its model was tested."""
    stragglers = {SLOW: extra} if case == SLOWED else {}
    config = load_config(config, changes={"algorithm": METHODS[method], "compute": {"stragglers": stragglers}})
    load = os.getloadavg()[0]
    track = (run_ddp if method == DDP else run_live)(config, seconds)
    data = config.task.load()
    data = data._replace(test=data.test.subset(range(min(TEST_IMAGES, len(data.test)))))
    times = [interval * number for number in range(int(seconds / interval) + 1)]
    began = time.perf_counter()
    rows = pd.DataFrame(measured_at(track, config, data, times))
    test_seconds = (time.perf_counter() - began) / len(times)
    last = rows.iloc[-1]
    message = f"{method}, {case}, eta {config.step_size.at(0):g}, seed {config.seed}: {last['accuracy']:.1%}"
    print(f"{message}, {last['updates'] / seconds:.1f} updates/s", file=sys.stderr, flush=True)
    return rows.assign(
        method=method,
        case=case,
        seed=config.seed,
        step_size=config.step_size.at(0),
        extra_seconds=stragglers.get(SLOW, 0.0),
        startup_seconds=track.startup_seconds,
        fast_step=_duration(track, range(SLOW)),
        slow_step=_duration(track, (SLOW,)),
        driver_share=track.driver_share,
        test_seconds=test_seconds,
        load_before=load,
        first_losses=[[loss for _, loss in track.updates[:100]]] * len(rows),
    )


def _duration(track: Track, agents: Any) -> float:
    """Return the median seconds of the agents' steps; nan where all of their work was given up."""
    durations = [step.duration for step in track.steps if step.agent in agents]
    return statistics.median(durations) if durations else float("nan")


def best_of(search: pd.DataFrame) -> pd.DataFrame:
    """Return each method's row with the lowest validation error; of equal ones that of the smaller step size."""
    return search.loc[search.groupby("method")["error"].idxmin()]


def chosen_step_sizes(search: pd.DataFrame) -> dict[str, float]:
    """Return the step size of each method: that of the lowest validation error at the search's end."""
    best = best_of(search)
    chosen = dict(zip(best["method"], best["step_size"], strict=True))
    # The same mathematics, so the same step size: DDP is not searched for.
    return {**chosen, DDP: chosen[SYNC]}
