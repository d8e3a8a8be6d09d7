"""One run on the cluster that this process joins: half of the agents on each host; what passes between as JSON."""

import json
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

from ray_pcasgd.records import StepReport
from ray_pcasgd.runs.callbacks import Callback
from ray_pcasgd.runs.trainer import Trainer

_COUNTERS = [Path(f"/sys/class/net/eth0/statistics/{direction}_bytes") for direction in ("rx", "tx")]


class Counted(Callback):
    """Counts what passes this host's interface from one round of all agents to another, and the versions meanwhile."""

    def __init__(self, agents: int, rounds: list[int]) -> None:
        self._taken = Counter(dict.fromkeys(range(agents), 0))
        self._rounds = rounds
        self._marks: list[tuple[int, int]] = []

    def on_step(self, report: StepReport) -> None:
        """Take in a step; note where the counters stand once all agents have come to the next of the rounds."""
        self._taken[report.row.agent] = report.row.step + 1
        done = len(self._marks)
        if done < len(self._rounds) and min(self._taken.values()) >= self._rounds[done]:
            passed = sum(int(path.read_text()) for path in _COUNTERS)
            self._marks.append((passed, self._taken.total()))

    @property
    def found(self) -> dict[str, int]:
        """What was counted."""
        (passed, versions), (passed_then, versions_then) = self._marks
        return {"counted": passed_then - passed, "versions": versions_then - versions}


def settings_of(cell: dict[str, Any], rounds: list[int], storage: str) -> dict[str, Any]:
    """Return a run's settings: all agents read each other, and only weights travel."""
    steps = rounds[1] + 5
    return {
        "storage_path": storage,
        "num_agents": cell["agents"],
        "num_steps": steps,
        "evaluate_every": steps,
        "topology": "complete",
        "links": [],
        "algorithm": "d-psgd" if cell["mode"] == "planned" else "d-asgd",
        "task": {"model": {"hidden": cell["hidden"]}},
        "checkpoint": {"state_seconds": None},
        "engine": {
            "name": "ray",
            "mode": cell["mode"],
            "placement_strategy": "SPREAD",
            "cpus_per_agent": 24 / cell["agents"],
            "inline_bytes": cell["inline_bytes"],
            "preload": "never",
        },
    }


def main() -> None:
    """Run what the command line says."""
    chosen = json.loads(sys.argv[1])
    counted = Counted(chosen["cell"]["agents"], chosen["rounds"])
    result = Trainer(settings_of(chosen["cell"], chosen["rounds"], chosen["storage"]), callbacks=[counted]).fit()
    layers = [64, *chosen["cell"]["hidden"], 10]
    parameters = sum((before + 1) * after for before, after in pairwise(layers))
    found = {} if result.error else {**counted.found, "message_bytes": 4 * parameters}
    print(json.dumps({**found, "error": str(result.error or "")}))


if __name__ == "__main__":
    main()
