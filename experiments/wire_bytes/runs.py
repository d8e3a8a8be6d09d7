"""One run on the cluster that this process joins: two agents, one on each host; its bytes as JSON."""

import json
import sys
from typing import Any

from ray_pcasgd.records import StepReport
from ray_pcasgd.runs.callbacks import Callback
from ray_pcasgd.runs.trainer import Trainer


class Counted(Callback):
    """Adds up what the reports say was sent."""

    def __init__(self) -> None:
        self.sent = 0

    def on_step(self, report: StepReport) -> None:
        self.sent += report.bytes_sent


def settings_of(local_steps: int, wire: str, rounds: int, hidden: list[int], storage: str) -> dict[str, Any]:
    """Return a run's settings: planned, so that each version is sent and read, and messages two rounds late."""
    return {
        "storage_path": storage,
        "num_agents": 2,
        "num_steps": rounds * local_steps,
        "evaluate_every": rounds * local_steps,
        "local_steps": local_steps,
        "wire": wire,
        "algorithm": {"name": "pc-asgd", "stability": 1},
        "links": [{"delay": f"{2 * local_steps} steps"}],
        "task": {"model": {"hidden": hidden}},
        "checkpoint": {"state_seconds": None},
        "engine": {"name": "ray", "mode": "planned", "placement_strategy": "SPREAD"},
    }


def main() -> None:
    """Run what the command line says."""
    chosen = json.loads(sys.argv[1])
    counted = Counted()
    result = Trainer(settings_of(**chosen), callbacks=[counted]).fit()
    print(json.dumps({"bytes": counted.sent, "error": str(result.error or "")}))


if __name__ == "__main__":
    main()
