"""Every kind of fault, done to a planned and to a live run at a random step, on a cluster of three nodes."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import yaml

from experiments.faults.injecting import SCHEDULER, Fault, kill, silence, take_states_away
from experiments.faults.nodes import lose_node
from ray_pcasgd.base.randomness import generator
from ray_pcasgd.runs.result import Result
from ray_pcasgd.runs.trainer import Trainer, resume

FAULTS = {
    "pc-asgd": (
        "none",
        "agent killed",
        "node lost",
        "scheduler killed",
        "driver killed",
        "agent silent",
        "states unwritable",
    ),
    "2-async": ("none", "agent killed", "server killed"),
}
"""What is done to runs of an algorithm."""
AGENTS = 4
_LOCAL = {"engine": {"name": "local", "batched": "never"}, "checkpoint": {"state_seconds": None}}

MESSAGE_SECONDS = 5.0
"""After which an agent that hangs is taken for silent."""

_DRIVER = """
import sys
from experiments.faults.injecting import Fault, kill_driver
from ray_pcasgd.runs.trainer import Trainer
Trainer(sys.argv[1], callbacks=[Fault(int(sys.argv[2]), kill_driver)]).fit()
"""


def settings_of(algorithm: str, mode: str, seed: int, num_steps: int, folder: Path) -> dict[str, Any]:
    """Return a run's settings: handwritten digits on four agents, in two clusters with late links or with a server."""
    engine = {"name": "ray", "mode": mode, "cpus_per_agent": 1, "message_seconds": MESSAGE_SECONDS}
    tree: dict[str, Any] = {
        "seed": seed,
        "num_agents": AGENTS,
        "num_steps": num_steps,
        "evaluate_every": num_steps // 2,
        "algorithm": {"name": "pc-asgd", "theta": 0.3},
        "step_size": 0.1,
        "links": [{"between": "clusters", "delay": 5}],
        "compute": {"law": {"name": "exponential", "mean": 1.0}},
        "checkpoint": {"state_seconds": 0 if mode == "planned" else 1},
        "storage_path": str(folder),
        "engine": engine,
    }
    if mode == "live":
        # So long a step is that of a small network on a GPU; and there are fewer cores here than agents.
        tree["compute"] = {"stragglers": dict.fromkeys(range(AGENTS), 0.02)}
    if algorithm == "2-async":
        tree |= {"algorithm": {"name": "server", "gathering": {"name": "k-async", "k": 2}}, "links": []}
        engine["cpus_per_agent"] = 0.6  # the server is one more
    return tree


class Scenarios:
    """Runs faults, one after another, on one cluster."""

    def __init__(self, cluster: Any, nodes: list[Any], folder: Path) -> None:
        self.cluster = cluster
        self.nodes = nodes
        self.folder = folder
        self.undisturbed: dict[tuple[str, int], Result] = {}
        """On the local engine, by algorithm and seed."""

    def measure(self, algorithm: str, fault: str, mode: str, seed: int, num_steps: int) -> dict[str, Any]:
        """Return what came of one fault in one run."""
        random = generator(seed, f"fault {fault} {mode}")
        at_step = int(random.integers(num_steps // 5, 4 * num_steps // 5))
        agent = int(random.integers(AGENTS))
        tree = settings_of(algorithm, mode, seed, num_steps, self.folder)
        began = time.monotonic()
        result, kinds = self.run(fault, tree, at_step, agent)
        row: dict[str, Any] = {
            "algorithm": algorithm,
            "fault": fault,
            "mode": mode,
            "seed": seed,
            "at_step": at_step,
            "agent": agent,
            "seconds": time.monotonic() - began,
            "error": str(result.error or ""),
            "accuracy": float(result.metrics.get("test_accuracy", float("nan"))),
            "restarts": kinds.count("run_restarted") or kinds.count("run_resumed"),
            "returned": kinds.count("agent_returned"),
        }
        if mode == "planned":
            whole = self.run_undisturbed(algorithm, tree)
            row["same_bits"] = result.schedule_hash == whole.schedule_hash and have_same_weights(result, whole)
        elif algorithm == "2-async":
            # Between peers, what a dead agent had not reported is left out of the record.
            schedule = str(Path(result.path) / "schedule.parquet")
            replayed = Trainer({**tree, **_LOCAL, "schedule": schedule}).fit()
            row["same_bits"] = have_same_weights(result, replayed)
        return row

    def run(self, fault: str, tree: dict[str, Any], at_step: int, agent: int) -> tuple[Result, list[str]]:
        """Run settings and do the fault to them; return the result and the kinds of the run's events."""
        if fault == "driver killed":
            return self.run_twice(tree, at_step)
        acts = {
            "none": lambda fault: None,
            "agent killed": kill(agent),
            "server killed": kill(AGENTS),
            "node lost": lose_node(self.cluster, self.nodes),
            "scheduler killed": kill(SCHEDULER),
            "agent silent": silence(agent),
            "states unwritable": take_states_away,
        }
        callback = Fault(at_step, acts[fault])
        result = Trainer(tree, callbacks=[callback]).fit()
        return result, callback.kinds()

    def run_twice(self, tree: dict[str, Any], at_step: int) -> tuple[Result, list[str]]:
        """Run settings in a process that is killed at a step, and go on here."""
        name = f"driver-{time.time_ns()}"
        settings = self.folder / f"{name}.yaml"
        settings.parent.mkdir(parents=True, exist_ok=True)
        settings.write_text(yaml.safe_dump({**tree, "name": name}), encoding="utf-8")
        command = [sys.executable, "-c", _DRIVER, str(settings), str(at_step)]
        environment = os.environ | {"RAY_ADDRESS": self.cluster.address}
        killed = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if killed.returncode != -9:
            raise RuntimeError(f"the driver ended by itself: {killed.stderr[-2000:]}")
        callback = Fault(10**9, lambda fault: None)
        return resume(self.folder / name, [callback]), callback.kinds()

    def run_undisturbed(self, algorithm: str, tree: dict[str, Any]) -> Result:
        """Return the run of the same settings on the local engine, to which nothing happens."""
        key = (algorithm, tree["seed"])
        if key not in self.undisturbed:
            self.undisturbed[key] = Trainer({**tree, **_LOCAL}).fit()
        return self.undisturbed[key]


def have_same_weights(one: Result, other: Result) -> bool:
    """Return whether two runs ended with the same weights, to the bit."""
    if one.checkpoint is None or other.checkpoint is None:
        return False
    weights = other.checkpoint.state_dict()
    return all(torch.equal(value, weights[name]) for name, value in one.checkpoint.state_dict().items())
