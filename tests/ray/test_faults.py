"""Whatever is lost on the way, planned runs end in the same bits, and live ones go on."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from experiments.faults.injecting import SCHEDULER, Fault, Several, has_outlived, kill, silence, take_states_away
from ray_pcasgd.records import Event, Row
from ray_pcasgd.runs.callbacks import Callback
from ray_pcasgd.runs.result import Result
from ray_pcasgd.runs.storage.checkpoints import Checkpoint
from ray_pcasgd.runs.trainer import Trainer, resume
from ray_pcasgd.schedule.parquet import read_rows
from tests.engines.restless import restless
from tests.ray.crawling import Release
from tests.ray.leaving import ENDLESS, Watch, as_far_as, assert_same_as_far_as_it_came, evaluated_after, leave
from tests.ray.losing import Losing
from tests.speed import slow_unless

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


def fit(folder: Path, *callbacks: Callback, **settings: Any) -> Result:
    changes = {"engine": {"name": "ray"}, "storage_path": str(folder)} | settings
    return Trainer(SMALL, callbacks=callbacks, **changes).fit()


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


class TooBusyError(Exception):
    """The machine is so busy that an agent was taken for silent."""


class OneAfterAnother(Several):
    """Faults of a planned run, each of which waits until the run has outlived the one before."""

    def __init__(self, *acts: Callable[[Fault], None]) -> None:
        faults = [Fault(30, acts[0])]
        for act in acts[1:]:
            faults.append(Fault(0, act, has_outlived(faults[-1])))
        super().__init__(*faults)

    def have_seen(self, kind: str) -> bool:
        return kind in self.kinds()

    def on_event(self, event: Event) -> None:
        super().on_event(event)
        if self.kinds().count("run_restarted") > sum(fault.act is None for fault in self.faults):
            raise TooBusyError


def disturbed(folder: Path, **settings: Any) -> tuple[Several, Watch]:
    """Return the faults of a planned run, and its rows; a silent agent is waited for as long as this machine needs."""
    # With fewer seconds, a machine that has other tests to run is too busy each time, and a run for nothing.
    for message_seconds in (10, 30, 100):
        faults = OneAfterAnother(kill(1), kill(SCHEDULER), silence(2), take_states_away)
        # Until every agent was evaluated at a step that none had come to when a state could not be kept.
        watch = Watch(evaluated_after(partial(faults.have_seen, "state_not_kept"), range(3)))
        engine = {"name": "ray", "message_seconds": message_seconds}
        with contextlib.suppress(TooBusyError):
            # However often: more restarts than faults are too many.
            given = settings | {"max_failures": -1, "engine": engine, "storage_path": str(folder)}
            leave(Trainer(given, callbacks=[faults, watch]))
            return faults, watch
    raise AssertionError("no agent answers in time")


@pytest.mark.parametrize("more", [{}, slow_unless(False, restless())], ids=["plain", "own tensors"])
def test_a_planned_run_outlives_agents_its_scheduler_and_its_storage_to_the_bit(
    more: dict[str, Any], tmp_path: Path
) -> None:
    settings = SMALL | ENDLESS | {"evaluate_every": 50} | more
    faults, watch = disturbed(tmp_path, **settings)
    restarts = [event for event in faults.events if event.kind == "run_restarted"]
    assert len(restarts) == 3
    assert all(event.step > 0 for event in restarts[1:])
    whole = Watch(as_far_as(watch))
    local = {"name": "local", "batched": "never"}
    leave(Trainer(settings, engine=local, callbacks=[whole], storage_path=str(tmp_path)))
    assert_same_as_far_as_it_came(watch, whole)


@pytest.mark.slow
def test_a_planned_run_without_states_begins_anew_to_the_bit(tmp_path: Path) -> None:
    algorithm = {"name": "server", "gathering": {"name": "k-async", "k": 2}}
    settings = {"algorithm": algorithm, "links": [], "num_steps": 60}
    fault = Fault(30, kill(1))
    disturbed = fit(tmp_path, fault, **settings)
    assert "run_restarted" in fault.kinds()
    # How much of its workers' tallies a server's evaluation finds depends on whose reports come first.
    assert_same_weights(disturbed, fit_local(tmp_path, **settings))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_planned_run_waits_for_nodes_and_outlives_one_to_the_bit(tmp_path: Path) -> None:
    settings = SMALL | {"num_agents": 4, "storage_path": str(tmp_path), "engine": {"name": "ray", "cpus_per_agent": 1}}
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(settings))
    outcome_path = tmp_path / "outcome.json"
    arguments = [str(tmp_path / "settings.yaml"), "150", str(outcome_path)]
    command = [sys.executable, "-m", "experiments.faults.nodes", *arguments]
    process = subprocess.run(command, capture_output=True, text=True, timeout=550)
    assert process.returncode == 0, process.stderr[-3000:]
    outcome = json.loads(outcome_path.read_text())
    assert outcome["error"] == ""
    # Once for a node that is not there yet, and once for one in place of the lost one: none is spare.
    assert outcome["kinds"].index("waiting_for_resources") < outcome["kinds"].index("cluster_joined")
    assert outcome["kinds"].count("waiting_for_resources") >= 2
    assert "run_restarted" in outcome["kinds"]
    assert all("4 agents ask for 4 CPU in all" in line for line in outcome["waits"])
    assert outcome["schedulers_elsewhere"] == 0
    whole = fit_local(tmp_path, num_agents=4)
    assert whole.checkpoint
    weights = whole.checkpoint.state_dict()
    for name, value in Checkpoint(outcome["path"]).state_dict().items():
        assert torch.equal(value, weights[name]), name


DRIVER = """
import sys
from experiments.faults.injecting import Fault, kill_driver
from ray_pcasgd.runs.trainer import Trainer
from ray_pcasgd.runs.trainer import resume
Trainer(sys.argv[1], callbacks=[Fault(int(sys.argv[2]), kill_driver)]).fit()
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


@pytest.mark.slow
def test_agents_that_send_differences_go_on_from_a_state_to_the_bit(tmp_path: Path) -> None:
    """What was under way at the cut is still a difference, from what its reader had then."""
    settings = {"algorithm": "choco-sgd", "wire": {"name": "top-k", "share": 0.1}, "evaluate_every": 100}
    fault = Fault(150, kill(1))
    disturbed = fit(tmp_path, fault, **settings)
    (restarted,) = (event for event in fault.events if event.kind == "run_restarted")
    assert restarted.step > 0
    assert_same_run(disturbed, fit_local(tmp_path, **settings))


SERVERS: dict[str, Any] = {
    "k-async, dc-asgd-a": {"name": "server", "gathering": {"name": "k-async", "k": 2}, "correction": "dc-asgd-a"},
    "k-batch-sync, two shards": {"name": "server", "gathering": {"name": "k-batch-sync", "k": 2}, "shards": 2},
    "elastic averaging, two shards": {"name": "elastic-averaging", "gathering": "asgd", "shards": 2},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SERVERS)
def test_a_planned_run_with_servers_outlives_them_and_its_workers_to_the_bit(name: str, tmp_path: Path) -> None:
    settings = {"algorithm": SERVERS[name], "optimizer": {}, "num_steps": 300, "evaluate_every": 150}
    settings |= restless(changes_weights="elastic" in name)
    faults = Several(Fault(60, kill(1)), Fault(150, kill(3)))
    disturbed = fit(tmp_path, faults, **settings)
    undisturbed = fit_local(tmp_path, **settings)
    assert_same_weights(disturbed, undisturbed)
    assert disturbed.metrics["test_loss"] == undisturbed.metrics["test_loss"]
    restarted = [event for event in faults.events if event.kind == "run_restarted"]
    assert len(restarted) == 2
    assert restarted[-1].step > 0


@pytest.mark.slow
def test_a_planned_run_whose_driver_was_killed_is_resumed_to_the_bit(tmp_path: Path) -> None:
    run = run_and_kill_driver(tmp_path, 250)
    resumed = resume(run)
    assert_same_run(resumed, fit_local(tmp_path))
    (event,) = (json.loads(line) for line in (run / "events.jsonl").read_text().splitlines() if "run_resumed" in line)
    assert event["step"] > 0


SLOW = {"compute": {"stragglers": dict.fromkeys(range(3), 0.02)}, "num_steps": 400, "evaluate_every": 200}


def assert_replays(live: Result, **settings: Any) -> None:
    schedule = str(Path(live.path) / "schedule.parquet")
    reliability = {"name": "measured", "staleness": 1}
    replayed = fit_local(Path(live.path).parent / "replay", schedule=schedule, reliability=reliability, **settings)
    assert replayed.error is None
    assert replayed.schedule_hash == live.schedule_hash


WIRES: dict[str, Any] = {
    "choco-sgd": {"name": "top-k", "share": 0.1},
    "d-asgd": {"weights": "bf16", "fragments": 3},
}


@pytest.mark.parametrize("algorithm", ["pc-asgd", *(slow_unless(False, name) for name in ("d-psgd", *WIRES))])
def test_a_killed_agent_comes_back_into_a_live_run_which_outlives_its_scheduler_too(
    algorithm: str, tmp_path: Path
) -> None:
    """With a barrier, whose weights come through the object store, too: nobody waits for what never comes."""
    faults = Several(Fault(10, kill(1)), Fault(20, kill(SCHEDULER)))
    outlived = {"agent_lost", "agent_returned", "scheduler_lost"}
    release = Release(tmp_path / "gate", lambda report: outlived <= set(faults.kinds()))
    settings = {"num_steps": 300, "evaluate_every": 150, "task": release.task, "algorithm": algorithm}
    engine = LIVE if algorithm == "pc-asgd" else {**LIVE, "inline_bytes": 0}
    settings |= {"wire": WIRES[algorithm]} if algorithm in WIRES else {}
    result = fit(tmp_path, faults, release, engine=engine, **settings)
    assert result.error is None
    assert outlived <= set(faults.kinds())
    rows = rows_of(result)
    (back,) = (row for row in rows if row.kind == "rejoined")
    assert back.agent == 1
    assert {read.neighbor for read in back.reads} == {0, 2}
    # No report of the others was lost with the scheduler.
    assert {row[:2] for row in rows} >= {(agent, step) for agent in (0, 2) for step in range(300)}
    assert max(row.step for row in rows if row.agent == 1) == 299
    assert_replays(result, **settings)
    if algorithm in WIRES and "reads_unrecorded" not in faults.kinds():
        schedule = str(Path(result.path) / "schedule.parquet")
        assert_same_weights(result, fit_local(tmp_path / "again", schedule=schedule, **settings))
        assert_same_weights(result, fit(tmp_path / "actors", schedule=schedule, **settings))


@pytest.mark.slow
def test_who_has_lost_a_difference_is_sent_a_whole_copy_and_the_record_replays(tmp_path: Path) -> None:
    settings = {
        "algorithm": "choco-sgd",
        "wire": {"name": "top-k", "share": 0.1},
        "task": {"model": {"name": "custom", "factory": Losing}},
        "num_steps": 60,
        "evaluate_every": 60,
        "links": [],
    }
    live = fit(tmp_path, engine=LIVE, **settings)
    rejected = [line for line in (Path(live.path) / "events.jsonl").read_text().splitlines() if "_rejected" in line]
    assert {json.loads(line)["agent"] for line in rejected} == {0}
    read = {one.version for row in rows_of(live) if row.agent == 0 for one in row.reads if one.neighbor == 1}
    # It has read nothing of the sender until the whole copy came, and then all.
    assert 59 in read
    assert len(read) < 60
    replayed = fit_local(tmp_path / "again", schedule=str(Path(live.path) / "schedule.parquet"), **settings)
    assert_same_weights(live, replayed)
    sent, planned = (one.metrics_dataframe.groupby("agent")["bytes_sent"].sum() for one in (live, replayed))
    # A whole copy has 4 bytes for each of 650 numbers, a difference 8 for each of 65; a busy machine may take two.
    more = (sent - planned).tolist()
    assert more[1] > 0
    assert [more[0], more[1] % (4 * 650 - 8 * 65), more[2]] == [0, 0, 0]


@pytest.mark.slow
@pytest.mark.parametrize(("at_step", "seconds"), [(13, 0.06), (24, 0.06), (20, 0.052)])
def test_the_record_of_a_killed_agent_is_whole_where_steps_take_their_time(
    at_step: int, seconds: float, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {
        "compute": {"stragglers": dict.fromkeys(range(3), seconds)},
        "num_steps": 200,
        "reliability": {"name": "measured", "staleness": 2},
        **restless(),
    }
    killer = Fault(at_step, kill(1))
    live = fit(tmp_path, killer, engine=LIVE, **settings)
    assert "agent_returned" in killer.kinds()
    assert "reads_unrecorded" not in (Path(live.path) / "events.jsonl").read_text()
    schedule = str(Path(live.path) / "schedule.parquet")
    assert_same_weights(live, fit_local(tmp_path / "replay", schedule=schedule, **settings))


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["sgp", "sgp-overlap"])
def test_push_sum_outlives_an_agent_and_its_record_replays(algorithm: str, tmp_path: Path) -> None:
    """Shares that were pushed to a dead agent halved the others' masses at each step, and ruined their weights."""
    settings = SLOW | {"num_agents": 4, "algorithm": algorithm, "links": [], "optimizer": {}, "step_size": 0.1}
    settings["compute"] = {"stragglers": dict.fromkeys(range(4), 0.06)}
    killer = Fault(50, kill(1))
    result = fit(tmp_path, killer, engine=LIVE, **settings)
    assert result.error is None
    assert {"agent_lost", "agent_returned"} <= set(killer.kinds())
    assert result.metrics["test_accuracy"] > 0.9
    rows = rows_of(result)
    assert any(row.held == (1,) for row in rows if row.agent != 1)
    replayed = fit_local(tmp_path / "replay", schedule=str(Path(result.path) / "schedule.parquet"), **settings)
    if "reads_unrecorded" not in killer.kinds():
        assert_same_weights(result, replayed)
    assert replayed.error is None


@pytest.mark.slow
def test_an_agent_that_hangs_for_good_is_ended_and_comes_back_into_a_live_run(tmp_path: Path) -> None:
    faults = Fault(100, silence(1))
    result = fit(tmp_path, faults, engine=LIVE | {"message_seconds": 10}, **SLOW)
    assert result.error is None
    assert {"agent_lost", "agent_returned"} <= set(faults.kinds())
    assert max(row.step for row in rows_of(result) if row.agent == 1) == 399
    assert_replays(result, **SLOW)


@pytest.mark.slow
def test_live_agents_go_on_without_a_silent_one_and_take_it_in_again(tmp_path: Path) -> None:
    engine = LIVE | {"message_seconds": 10}

    def halt(fault: Fault) -> None:
        silence(1)(fault)

    def wake(fault: Fault) -> None:
        os.kill(fault.processes[1], signal.SIGCONT)

    faults = Several(Fault(50, halt), Fault(60, wake))
    result = fit(tmp_path, faults, engine=engine, algorithm="d-psgd", **SLOW)
    assert result.error is None
    assert "neighbor_silent" in faults.kinds()
    rows = rows_of(result)
    assert {max(row.step for row in rows if row.agent == agent) for agent in range(3)} == {399}
    later = [row for row in rows if row.agent == 0 and row.step > 350]
    assert any(read.neighbor == 1 for row in later for read in row.reads)


@pytest.mark.slow
def test_a_live_run_whose_driver_was_killed_is_resumed(tmp_path: Path) -> None:
    run = run_and_kill_driver(tmp_path, 150, engine=LIVE, **SLOW)
    resumed = resume(run)
    assert resumed.error is None
    rows = rows_of(resumed)
    back = [row for row in rows if row.kind == "rejoined"]
    assert sorted(row.agent for row in back) == [0, 1, 2]
    assert all(row.step > 50 and not row.reads for row in back)
    assert sorted(row[:2] for row in rows) == [(agent, step) for agent in range(3) for step in range(400)]
    assert_replays(resumed, **SLOW)


@pytest.mark.slow
def test_a_planned_run_whose_agents_leave_and_come_back_outlives_a_lost_one_to_the_bit(tmp_path: Path) -> None:
    membership = [{"agent": 2, "leaves": "30.5s", "returns": "90.5s"}, {"agent": 0, "leaves": "300.5s"}]
    settings = {"membership": membership, "num_agents": 4, "evaluate_every": 50}
    fault = Fault(60, kill(1))
    result = fit(tmp_path, fault, **settings)
    assert "run_restarted" in fault.kinds()
    assert_same_run(result, fit_local(tmp_path, **settings))
    assert [row.agent for row in rows_of(result) if row.kind == "rejoined"] == [2]


@pytest.mark.slow
def test_a_planned_run_whose_workers_leave_and_come_back_outlives_a_lost_one_to_the_bit(tmp_path: Path) -> None:
    settings = {
        "membership": [{"agent": 2, "leaves": "30.5s", "returns": "90.5s"}, {"agent": 0, "leaves": "200.5s"}],
        "algorithm": {"name": "server", "gathering": {"name": "k-async", "k": 2}, "correction": "dc-asgd-a"},
        "evaluate_every": 50,
    }
    fault = Fault(60, kill(1))
    result = fit(tmp_path, fault, **settings)
    assert "run_restarted" in fault.kinds()
    local = fit_local(tmp_path, **settings)
    assert result.schedule_hash == local.schedule_hash
    assert result.metrics["test_loss"] == local.metrics["test_loss"]
    assert [row.agent for row in rows_of(result) if row.kind == "rejoined"] == [2]


@pytest.mark.slow
def test_a_live_run_that_is_resumed_goes_on_without_those_who_are_away_by_its_settings(tmp_path: Path) -> None:
    """Its driver is lost after 3 seconds at least, and its seconds go on from there."""
    membership = [{"agent": 1, "leaves": "0.5s", "returns": "15s"}, {"agent": 2, "leaves": "0.5s"}]
    run = run_and_kill_driver(tmp_path, 150, engine=LIVE, membership=membership, **SLOW)
    resumed = resume(run)
    assert resumed.error is None
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    assert "agent 2 is not there, as membership says" in [event["detail"] for event in events]
    assert "agent 1 is not there before second 15, as membership says" in [event["detail"] for event in events]
    back = [row for row in rows_of(resumed) if row.kind == "rejoined"]
    assert sorted(row.agent for row in back) == [0, 1]
    assert next(row for row in back if row.agent == 1).end >= 15
    assert_replays(resumed, **SLOW)
