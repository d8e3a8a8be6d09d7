"""Whatever is lost on the way, planned runs end in the same bits, and live ones go on."""

from pathlib import Path
from typing import Any

import pytest
import torch

from ray_pcasgd.result import Result
from ray_pcasgd.run import Watcher
from ray_pcasgd.schedule.trace import read_rows
from ray_pcasgd.trainer import Trainer
from tests.ray.faults import Killer

pytestmark = pytest.mark.usefixtures("ray_cluster")
SMALL: dict[str, Any] = {
    "num_agents": 3,
    "num_steps": 400,
    "evaluate_every": 200,
    "links": [{"between": "clusters", "delay": 4}],
    "compute": {"law": {"name": "exponential", "mean": 1.0}},
    "optimizer": {"momentum": 0.9},
    "step_size": 0.02,
    "checkpoint": {"state_seconds": 0},
}
LIVE = {"name": "ray", "mode": "live"}


def fit(folder: Path, watcher: Watcher | None = None, **settings: Any) -> Result:
    changes = {"engine": {"name": "ray"}, "storage_path": str(folder)} | settings
    return Trainer(SMALL, watcher=watcher, **changes).fit()


def assert_same_run(result: Result, undisturbed: Result) -> None:
    assert result.error is None
    assert undisturbed.error is None
    assert result.schedule_hash == undisturbed.schedule_hash
    assert result.checkpoint
    assert undisturbed.checkpoint
    weights = undisturbed.checkpoint.state_dict()
    for name, value in result.checkpoint.state_dict().items():
        assert torch.equal(value, weights[name]), name
    mine, theirs = (
        one.metrics_dataframe.drop(columns="wall_seconds").sort_values(["step", "agent"]).reset_index(drop=True)
        for one in (result, undisturbed)
    )
    assert mine.equals(theirs)


@pytest.mark.parametrize("algorithm", ["pc-asgd", "sgp-overlap"])
def test_a_planned_run_outlives_agents_to_the_bit(algorithm: str, tmp_path: Path) -> None:
    killer = Killer((150, 1), (320, 2))
    disturbed = fit(tmp_path, killer, algorithm=algorithm)
    assert killer.kinds().count("run_restarted") == 2
    undisturbed = fit(tmp_path, algorithm=algorithm, engine={"name": "local", "batched": "never"})
    assert_same_run(disturbed, undisturbed)
    assert any("on from step 0" not in event.detail for event in killer.events if event.kind == "run_restarted")


def test_a_live_agent_that_was_killed_comes_back(tmp_path: Path) -> None:
    slow = dict.fromkeys(range(3), 0.02)
    killer = Killer((40, 1))
    result = fit(tmp_path, killer, engine=LIVE, compute={"stragglers": slow}, num_steps=600, evaluate_every=300)
    assert result.error is None
    assert "agent_returned" in killer.kinds()
    rows, _ = read_rows(Path(result.path) / "schedule.parquet")
    (back,) = (row for row in rows if row.kind == "rejoined")
    assert back.agent == 1
    assert {read.neighbor for read in back.reads} == {0, 2}
    assert {max(row.step for row in rows if row.agent == agent) for agent in range(3)} == {599}
    schedule = str(Path(result.path) / "schedule.parquet")
    replayed = fit(
        tmp_path / "replay",
        engine={"name": "local", "batched": "never"},
        num_steps=600,
        evaluate_every=300,
        schedule=schedule,
        reliability={"name": "measured", "staleness": 1},
    )
    assert replayed.error is None
