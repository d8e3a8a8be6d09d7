"""Whatever is lost on the way, planned runs end in the same bits, and live ones go on."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from experiments.faults.injecting import SCHEDULER, Fault, Several, kill, silence, take_states_away
from ray_pcasgd.records import Row
from ray_pcasgd.result import Result
from ray_pcasgd.schedule.trace import read_rows
from ray_pcasgd.trainer import Trainer, resume
from ray_pcasgd.watching import Watcher

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


def assert_same_weights(result: Result, undisturbed: Result) -> None:
    assert result.error is None
    assert undisturbed.error is None
    assert result.schedule_hash == undisturbed.schedule_hash
    assert result.checkpoint
    assert undisturbed.checkpoint
    weights = undisturbed.checkpoint.state_dict()
    for name, value in result.checkpoint.state_dict().items():
        assert torch.equal(value, weights[name]), name


def assert_same_run(result: Result, undisturbed: Result) -> None:
    assert_same_weights(result, undisturbed)
    mine, theirs = (
        one.metrics_dataframe.drop(columns="wall_seconds").sort_values(["step", "agent"]).reset_index(drop=True)
        for one in (result, undisturbed)
    )
    assert mine.equals(theirs)


def rows_of(result: Result) -> list[Row]:
    return read_rows(Path(result.path) / "schedule.parquet")[0]


def fit_local(folder: Path, **settings: Any) -> Result:
    return fit(folder, **{"engine": {"name": "local", "batched": "never"}} | settings)


@pytest.mark.parametrize("algorithm", ["pc-asgd", "sgp-overlap"])
def test_a_planned_run_outlives_agents_to_the_bit(algorithm: str, tmp_path: Path) -> None:
    faults = Several(Fault(150, kill(1)), Fault(320, kill(2)))
    disturbed = fit(tmp_path, faults, algorithm=algorithm)
    assert faults.kinds().count("run_restarted") == 2
    assert any("on from step 0" not in event.detail for event in faults.events if event.kind == "run_restarted")
    assert_same_run(disturbed, fit_local(tmp_path, algorithm=algorithm))


def test_a_planned_run_outlives_its_scheduler_to_the_bit(tmp_path: Path) -> None:
    fault = Fault(200, kill(SCHEDULER))
    disturbed = fit(tmp_path, fault)
    assert "run_restarted" in fault.kinds()
    assert_same_run(disturbed, fit_local(tmp_path))


@pytest.mark.parametrize(
    "algorithm", ["ad-psgd", {"name": "server", "gathering": {"name": "k-async", "k": 2}}], ids=str
)
def test_a_planned_run_without_states_begins_anew_to_the_bit(algorithm: Any, tmp_path: Path) -> None:
    settings = {"algorithm": algorithm, "links": [], "num_steps": 60}
    fault = Fault(30, kill(1))
    disturbed = fit(tmp_path, fault, **settings)
    assert "run_restarted" in fault.kinds()
    # How much of its workers' tallies a server's evaluation finds depends on whose reports come first.
    assert_same_weights(disturbed, fit_local(tmp_path, **settings))


def test_a_planned_run_outlives_a_silent_agent_to_the_bit(tmp_path: Path) -> None:
    engine = {"name": "ray", "message_seconds": 2}
    fault = Fault(150, silence(1))
    disturbed = fit(tmp_path, fault, engine=engine)
    assert "run_restarted" in fault.kinds()
    assert_same_run(disturbed, fit_local(tmp_path))


def test_a_planned_run_whose_states_cannot_be_written_goes_on_and_says_so(tmp_path: Path) -> None:
    fault = Fault(100, take_states_away)
    disturbed = fit(tmp_path, fault)
    assert "state_not_kept" in fault.kinds()
    assert_same_run(disturbed, fit_local(tmp_path))


DRIVER = """
import sys
from experiments.faults.injecting import Fault, kill_driver
from ray_pcasgd.trainer import Trainer, resume
Trainer(sys.argv[1], watcher=Fault(int(sys.argv[2]), kill_driver)).fit()
"""


def run_and_kill_driver(folder: Path, at_step: int, **settings: Any) -> Path:
    """Return the folder of a run whose driver was killed at a step."""
    import ray

    address = ray.get_runtime_context().gcs_address
    tree = yaml.safe_dump(SMALL | {"engine": {"name": "ray"}, "storage_path": str(folder), "name": "run"} | settings)
    (folder / "settings.yaml").write_text(tree)
    command = [sys.executable, "-c", DRIVER, str(folder / "settings.yaml"), str(at_step)]
    process = subprocess.run(command, env=os.environ | {"RAY_ADDRESS": address}, capture_output=True, text=True)
    assert process.returncode == -9, process.stderr
    return folder / "run"


def test_a_planned_run_whose_driver_was_killed_is_resumed_to_the_bit(tmp_path: Path) -> None:
    run = run_and_kill_driver(tmp_path, 250)
    resumed = resume(run)
    assert_same_run(resumed, fit_local(tmp_path))
    (event,) = (json.loads(line) for line in (run / "events.jsonl").read_text().splitlines() if "run_resumed" in line)
    assert event["step"] > 0


SLOW = {"compute": {"stragglers": dict.fromkeys(range(3), 0.02)}, "num_steps": 600, "evaluate_every": 200}


def assert_replays(live: Result, **settings: Any) -> None:
    schedule = str(Path(live.path) / "schedule.parquet")
    reliability = {"name": "measured", "staleness": 1}
    replayed = fit_local(Path(live.path).parent / "replay", schedule=schedule, reliability=reliability, **settings)
    assert replayed.error is None
    assert replayed.schedule_hash == live.schedule_hash


def test_a_live_agent_that_was_killed_comes_back(tmp_path: Path) -> None:
    fault = Fault(40, kill(1))
    result = fit(tmp_path, fault, engine=LIVE, **SLOW)
    assert result.error is None
    assert "agent_returned" in fault.kinds()
    rows = rows_of(result)
    (back,) = (row for row in rows if row.kind == "rejoined")
    assert back.agent == 1
    assert {read.neighbor for read in back.reads} == {0, 2}
    assert {max(row.step for row in rows if row.agent == agent) for agent in range(3)} == {599}
    gaps = [row for row in rows if row.agent != 1 and row.end > back.end and 1 not in {r.neighbor for r in row.reads}]
    assert len(gaps) < 50  # it is read again once it is back
    assert_replays(result, **SLOW)


def test_a_live_run_goes_on_without_its_scheduler_and_loses_no_report(tmp_path: Path) -> None:
    fault = Fault(100, kill(SCHEDULER))
    result = fit(tmp_path, fault, engine=LIVE, **SLOW)
    assert result.error is None
    assert "scheduler_lost" in fault.kinds()
    rows = rows_of(result)
    assert sorted(row[:2] for row in rows) == [(agent, step) for agent in range(3) for step in range(600)]
    assert_replays(result, **SLOW)


def test_live_agents_go_on_without_a_silent_one_and_take_it_in_again(tmp_path: Path) -> None:
    engine = LIVE | {"message_seconds": 1}

    def halt(fault: Fault) -> None:
        silence(1)(fault)

    def wake(fault: Fault) -> None:
        os.kill(fault.processes[1], signal.SIGCONT)

    faults = Several(Fault(100, halt), Fault(300, wake))
    result = fit(tmp_path, faults, engine=engine, algorithm="d-psgd", **SLOW)
    assert result.error is None
    assert "neighbor_silent" in faults.kinds()
    rows = rows_of(result)
    assert {max(row.step for row in rows if row.agent == agent) for agent in range(3)} == {599}
    later = [row for row in rows if row.agent == 0 and row.step > 500]
    assert any(read.neighbor == 1 for row in later for read in row.reads)


def test_a_live_run_whose_driver_was_killed_is_resumed(tmp_path: Path) -> None:
    run = run_and_kill_driver(tmp_path, 250, engine=LIVE, **SLOW)
    resumed = resume(run)
    assert resumed.error is None
    rows = rows_of(resumed)
    back = [row for row in rows if row.kind == "rejoined"]
    assert sorted(row.agent for row in back) == [0, 1, 2]
    assert all(row.step > 50 and not row.reads for row in back)
    assert sorted(row[:2] for row in rows) == [(agent, step) for agent in range(3) for step in range(600)]
    assert_replays(resumed, **SLOW)
