"""Runs whose batches are made in the background come to the same bits as without, whatever happens to their agents."""

import os
import select
from pathlib import Path
from typing import Any

import pytest

from experiments.faults.injecting import Fault, kill
from ray_pcasgd.runs.callbacks import Callback
from ray_pcasgd.runs.result import Result
from ray_pcasgd.runs.settings.loading import read_yaml
from ray_pcasgd.runs.trainer import Trainer
from ray_pcasgd.schedule.parquet import read_rows
from tests.comparing import assert_same_to_the_bit
from tests.engines.images import DRAWN

pytestmark = pytest.mark.usefixtures("ray_cluster")
SMALL: dict[str, Any] = {
    "num_agents": 3,
    "num_steps": 120,
    "evaluate_every": 60,
    "batch_size": 8,
    "algorithm": {"name": "pc-asgd-pv", "probe_every": 3},
    "links": [{"between": "clusters", "delay": 4}],
    "checkpoint": {"state_seconds": 0},
}


def fit(folder: Path, workers: int, engine: Any, callback: Callback | None = None, **more: Any) -> Result:
    task = {"data": DRAWN, "model": {"hidden": [8]}, "loading": {"workers": workers}}
    changes = {"task": task, "engine": engine, "storage_path": str(folder)} | more
    return Trainer(SMALL, callbacks=[callback or Callback()], **changes).fit()


class Losing(Fault):
    """Kills an agent, and notes which processes worked for it."""

    def __init__(self, at_step: int, agent: int) -> None:
        super().__init__(at_step, kill(agent), lambda fault: self.note(fault.processes[agent]))
        self.ends: list[int] = []

    def note(self, process: int) -> bool:
        threads = Path(f"/proc/{process}/task").iterdir()
        found = [int(child) for thread in threads for child in (thread / "children").read_text().split()]
        self.ends = [os.pidfd_open(child) for child in found]
        return True

    def assert_they_ended(self) -> None:
        assert len(self.ends) == 2, "one of the training batches, one of the probes"
        for end in self.ends:
            assert select.select([end], [], [], 60)[0]
            os.close(end)


@pytest.mark.slow
def test_a_planned_run_goes_on_from_a_lost_agent_to_the_bits_of_one_without_workers(tmp_path: Path) -> None:
    losing = Losing(60, 1)
    disturbed = fit(tmp_path / "ray", 1, "ray", losing)
    assert "run_restarted" in losing.kinds()
    losing.assert_they_ended()
    assert_same_to_the_bit(disturbed, fit(tmp_path / "local", 0, {"name": "local", "batched": "never"}))


@pytest.mark.slow
def test_a_live_run_takes_a_lost_agent_in_again_and_replays_without_workers(tmp_path: Path) -> None:
    losing = Losing(30, 1)
    slow = {"compute": {"stragglers": dict.fromkeys(range(3), 0.03)}}
    live = fit(tmp_path / "live", 1, {"name": "ray", "mode": "live"}, losing, **slow)
    assert live.error is None
    assert "agent_returned" in losing.kinds()
    losing.assert_they_ended()
    schedule = Path(live.path) / "schedule.parquet"
    assert any(row.kind == "rejoined" for row in read_rows(schedule)[0])
    written = read_yaml(Path(live.path) / "config.yaml")
    same = {name: written[name] for name in ("algorithm", "reliability")} | slow
    local = {"name": "local", "batched": "never"}
    assert_same_to_the_bit(live, fit(tmp_path / "local", 0, local, schedule=str(schedule), **same))
