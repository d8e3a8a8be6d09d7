"""One fault of one live run: how the run ended, and whether its record replays."""

import os
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from experiments.faults.injecting import Fault
from experiments.live_faults.injecting import (
    MARKS,
    AgainAndAgain,
    AtStart,
    AtStepOf,
    Nothing,
    busy,
    kill,
    kill_in_evaluation,
    stop,
)
from experiments.live_faults.truth import staleness_of
from ray_pcasgd.base.randomness import generator
from ray_pcasgd.runs.result import Result
from ray_pcasgd.runs.settings.loading import read_yaml
from ray_pcasgd.runs.trainer import Trainer
from ray_pcasgd.schedule.parquet import read_rows

AGENTS = 4
STEP_SECONDS = 0.02
"""About the step of a small network on a GPU; there are fewer cores here than agents."""

ALGORITHMS: dict[str, Any] = {
    "pc-asgd": {"name": "pc-asgd", "theta": 0.3},
    "p-asgd": "p-asgd",
    "d-asgd": "d-asgd",
    "ad-psgd": "ad-psgd",
    "ad-psgd with A2CiD2": {"name": "ad-psgd", "acceleration": "acid"},
    "sgp": "sgp",
    "sgp-overlap": "sgp-overlap",
    "k-async": {"name": "server", "gathering": {"name": "k-async", "k": 2}},
    "elastic-averaging": "elastic-averaging",
}
FAULTS = (
    "none",
    "busy machine",
    "killed",
    "killed at start",
    "killed at its last step",
    "killed in an evaluation",
    "stopped 10 s",
    "stopped 20 s",
    "stopped 60 s",
    "stopped and killed",
    "two at once",
    "the same one five times",
)
BUSY_LOOPS = 8


def settings_of(algorithm: str, seed: int, num_steps: int, folder: Path) -> dict[str, Any]:
    """Return a run's settings: digits on four agents, nothing injected but the length of a step."""
    return {
        "seed": seed,
        "num_agents": AGENTS,
        "num_steps": num_steps,
        "evaluate_every": num_steps // 2,
        "algorithm": ALGORITHMS[algorithm],
        "links": [],
        "step_size": 0.1,
        "compute": {"stragglers": dict.fromkeys(range(AGENTS), STEP_SECONDS)},
        "task": {"metrics": [{"name": "custom", "function": "experiments.live_faults.injecting:accuracy"}]},
        "checkpoint": {"state_seconds": 5},
        "storage_path": str(folder),
        "engine": {"name": "ray", "mode": "live", "cpus_per_agent": 0.5},
    }


def fault_of(name: str, agent: int, at_step: int, num_steps: int, marks: Path) -> Fault:
    """Return what is done to a run."""
    other = (agent + 1) % AGENTS
    faults: dict[str, Fault] = {
        "none": Nothing(),
        "busy machine": Nothing(),
        "killed": Fault(at_step, kill(agent)),
        "killed at start": AtStart(agent),
        "killed at its last step": AtStepOf(agent, num_steps - 2, kill(agent)),
        "killed in an evaluation": AtStepOf(agent, num_steps // 2 - 10, kill_in_evaluation(agent, marks)),
        "stopped 10 s": Fault(at_step, stop(agent, 10)),
        "stopped 20 s": Fault(at_step, stop(agent, 20)),
        "stopped 60 s": Fault(at_step, stop(agent, 60)),
        "stopped and killed": Fault(at_step, stop(agent, 5, signal.SIGKILL)),
        "two at once": Fault(at_step, kill(agent, other)),
        "the same one five times": AgainAndAgain(agent, at_step // 4, 5, max(1, num_steps // 40)),
    }
    return faults[name]


def measure(algorithm: str, fault: str, seed: int, num_steps: int, folder: Path) -> dict[str, Any]:
    """Return what came of one fault in one run."""
    random = generator(seed, f"live fault {fault}")
    at_step = int(random.integers(num_steps // 5, 4 * num_steps // 5))
    agent = int(random.integers(AGENTS))
    tree = settings_of(algorithm, seed, num_steps, folder)
    if fault == "the same one five times":
        tree["max_failures"] = -1
    callback = fault_of(fault, agent, at_step, num_steps, Path(os.environ[MARKS]))
    began = time.monotonic()
    with busy(BUSY_LOOPS if fault == "busy machine" else 0):
        result = Trainer(tree, callbacks=[callback]).fit()
    seconds = time.monotonic() - began
    kinds = Counter(callback.kinds())
    rows, _ = read_rows(Path(result.path) / "schedule.parquet")
    row: dict[str, Any] = {
        "algorithm": algorithm,
        "fault": fault,
        "seed": seed,
        "at_step": at_step,
        "agent": agent,
        "seconds": seconds,
        "error": str(result.error or ""),
        "accuracy": float(result.metrics.get("test_accuracy", float("nan"))),
        "lost": kinds["agent_lost"],
        "returned": kinds["agent_returned"],
        "unrecorded": kinds["reads_unrecorded"] + kinds["message_lost"],
        "mass_low": kinds["mass_low"],
    }
    if algorithm not in ("ad-psgd", "ad-psgd with A2CiD2", "k-async", "elastic-averaging"):
        row |= {f"staleness_{name}": value for name, value in staleness_of(rows)._asdict().items()}
    return row | replayed(result)


def replayed(result: Result) -> dict[str, Any]:
    """Return whether a run's record replays on the local engine, and to the same bits."""
    local = {"engine": {"name": "local", "batched": "never"}, "checkpoint": {"state_seconds": None}}
    path = Path(result.path)
    # As the run has written them: what was left to it is filled in as it is in live runs.
    tree = read_yaml(path / "config.yaml") | {"name": None, "schedule": str(path / "schedule.parquet")}
    try:
        again = Trainer({**tree, **local}).fit()
    except ValueError as error:
        return {"replays": False, "same_bits": False, "replay_error": str(error)}
    problem = str(again.error or "")
    return {"replays": not problem, "same_bits": have_same_weights(result, again), "replay_error": problem}


def have_same_weights(one: Result, other: Result) -> bool:
    """Return whether two runs ended with the same weights, to the bit."""
    if one.checkpoint is None or other.checkpoint is None:
        return False
    weights = other.checkpoint.state_dict()
    return all(torch.equal(value, weights[name]) for name, value in one.checkpoint.state_dict().items())
