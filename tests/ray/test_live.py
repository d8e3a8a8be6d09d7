"""Live runs on real actors: who is slow, who dies, who waits for whom."""

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from experiments.faults.injecting import Fault, kill, silence
from ray_pcasgd.agents.learner import NonFiniteLossError
from ray_pcasgd.engines.base import RunError
from ray_pcasgd.records import Event, StepReport
from ray_pcasgd.runs.callbacks import Callback
from ray_pcasgd.runs.result import Result
from ray_pcasgd.runs.settings.loading import SettingsError, read_yaml
from ray_pcasgd.runs.trainer import Trainer
from ray_pcasgd.schedule.parquet import read_rows
from tests.comparing import assert_same_to_the_bit

pytestmark = pytest.mark.usefixtures("ray_cluster")
LIVE = {"name": "ray", "mode": "live"}
ALL_SLOW = {"stragglers": {0: 0.02, 1: 0.02, 2: 0.02}}
SMALL: dict[str, Any] = {"num_agents": 3, "num_steps": 40, "evaluate_every": 40, "links": []}


def fit(folder: Path, callback: Callback | None = None, **settings: Any) -> Result:
    changes = {"engine": LIVE, "storage_path": str(folder)} | settings
    return Trainer(SMALL, callbacks=[callback or Callback()], **changes).fit()


class HaltsOne(Fault):
    """Halts agent 2's process at a step, and lets it go on once the others have finished."""

    def __init__(self, at_step: int) -> None:
        super().__init__(at_step, silence(2))
        self.unfinished = {0, 1}

    def on_step(self, report: StepReport) -> None:
        super().on_step(report)
        if report.row.step == 39:
            self.unfinished.discard(report.row.agent)
            if not self.unfinished:
                os.kill(self.processes[2], signal.SIGCONT)


class Times(Callback):
    """Compares the times of steps with those since all agents had started, by the same clock."""

    def __init__(self) -> None:
        self.all_started_at = 0.0
        self.num_steps = 0

    def on_event(self, event: Event) -> None:
        if event.kind == "agent_started":
            self.all_started_at = time.time()

    def on_step(self, report: StepReport) -> None:
        self.num_steps += 1
        assert 0 <= report.wall_seconds <= time.time() - self.all_started_at


@pytest.mark.parametrize("mode", ["live", pytest.param("planned", marks=pytest.mark.slow)])
def test_what_it_takes_to_build_actors_is_no_time_of_the_run(tmp_path: Path, mode: str) -> None:
    times = Times()
    assert fit(tmp_path, times, engine=LIVE | {"mode": mode}).error is None
    assert times.num_steps == 120


@pytest.mark.slow
def test_fast_agents_do_not_wait_for_a_slow_one(tmp_path: Path) -> None:
    """Did they wait, the run would never end: the slow one goes on only when they have finished."""
    halted = HaltsOne(5)
    result = fit(tmp_path, halted, compute=ALL_SLOW, engine=LIVE | {"max_lag": None, "silent_steps": None})
    assert result.error is None
    rows, _ = read_rows(Path(result.path) / "schedule.parquet")
    assert [sum(row.agent == agent for row in rows) for agent in range(3)] == [40, 40, 40]
    last = [read for row in rows if row.agent < 2 and row.step == 39 for read in row.reads if read.neighbor == 2]
    assert len(last) == 2
    assert all(read.age - read.staleness > 5 for read in last)


@pytest.mark.slow
def test_a_barrier_keeps_live_agents_in_step(tmp_path: Path) -> None:
    result = fit(tmp_path, algorithm="d-psgd", compute={"stragglers": {2: 0.01}})
    assert result.error is None
    rows, _ = read_rows(Path(result.path) / "schedule.parquet")
    assert {read.version - row.step for row in rows for read in row.reads} == {0}


@pytest.mark.slow
def test_a_lost_agent_fails_a_live_run_that_allows_none_and_keeps_its_files(tmp_path: Path) -> None:
    result = fit(tmp_path, Fault(5, kill(1)), max_failures=0, compute=ALL_SLOW)
    assert isinstance(result.error, RunError)
    assert "agent 1 lost" in str(result.error)
    assert (Path(result.path) / "model.safetensors").exists()


@pytest.mark.parametrize("mode", ["planned", pytest.param("live", marks=pytest.mark.slow)])
def test_a_loss_that_is_not_finite_stops_the_run_and_names_agent_and_step(mode: str, tmp_path: Path) -> None:
    result = fit(tmp_path, engine={"name": "ray", "mode": mode}, step_size=1e20, num_agents=2)
    assert isinstance(result.error, NonFiniteLossError)
    assert re.fullmatch(r"agent \d has loss (nan|inf) at step \d+", str(result.error))


def test_isolating_agents_is_the_same_on_both_engines(tmp_path: Path) -> None:
    settings = {"task": {"loss": {"name": "custom", "function": "tests.ray.losses:nan_for_bright_batches"}}}
    on_ray, local = (
        fit(tmp_path / engine["name"], engine=engine, name="isolating", on_non_finite_loss="isolate", **settings)
        for engine in ({"name": "ray"}, {"name": "local", "batched": "never"})
    )
    assert on_ray.error is None
    assert local.error is None
    assert on_ray.schedule_hash == local.schedule_hash
    rows, _ = read_rows(Path(local.path) / "schedule.parquet")
    assert sum(row.step == 39 for row in rows) < 3
    assert on_ray.checkpoint
    assert local.checkpoint
    weights = local.checkpoint.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in on_ray.checkpoint.state_dict().items())
    own = logs_of("isolating")
    assert own.keys() == {0, 1, 2}
    assert all(f"on cpu, neighbors {', '.join(map(str, {0, 1, 2} - {agent}))}\n" in log for agent, log in own.items())
    isolated = {agent for agent, log in own.items() if f"agent_isolated: agent {agent} has loss nan" in log}
    ended = {agent for agent, log in own.items() if "ends at step" in log}
    assert isolated
    assert ended == {0, 1, 2}


def logs_of(run: str) -> dict[int, str]:
    """Return what the actors of a run's agents have written to the files that Ray keeps of their processes."""
    folder = Path(ray._private.worker._global_node.get_session_dir_path()) / "logs"
    logs = (file.read_text(errors="replace") for file in folder.glob("worker-*.err"))
    found = ((re.search(rf" {re.escape(run)} agent ([0-9]+): process ", log), log) for log in logs)
    return {int(match[1]): log for match, log in found if match}


def test_more_gpus_than_the_cluster_has_is_an_error_after_the_stated_wait(tmp_path: Path) -> None:
    engine = {"name": "ray", "gpus_per_agent": 1, "placement_seconds": 1}
    result = fit(tmp_path, engine=engine)
    assert isinstance(result.error, RunError)
    assert "3 agents ask for" in str(result.error)
    assert "3 GPU" in str(result.error)
    assert "engine.placement_seconds = 1" in str(result.error)


PAIRS: dict[str, Any] = {
    "algorithm": "ad-psgd",
    "num_agents": 4,
    "compute": {"stragglers": dict.fromkeys(range(4), 0.02)},
}


def replay(result: Result, **settings: Any) -> Result:
    """Replay a run on the local engine, and compare the weights."""
    path = Path(result.path)
    local = {"name": "local", "batched": "never"}
    again = fit(path.parent / "replay", engine=local, schedule=str(path / "schedule.parquet"), **settings)
    assert_same_to_the_bit(again, result)
    return again


class KillsWhoIsRead(Fault):
    """Kills an agent, so many times, as soon as another one has reported that it has averaged with it."""

    def __init__(self, agent: int, times: int) -> None:
        super().__init__(0, lambda fault: None)
        self.agent, self.left = agent, times

    def on_step(self, report: StepReport) -> None:
        is_read = report.row.kind != "rejoined" and self.agent in [read.neighbor for read in report.row.reads]
        if is_read and self.left and (process := self.processes.pop(self.agent, None)):
            self.left -= 1
            os.kill(process, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_pairs_with_twins_replay_to_the_bit_whoever_is_killed_in_the_middle_of_exchanges(
    lost: int, tmp_path: Path
) -> None:
    """Agent 0 asks: its partner knows of a step that it has not reported. Agent 1 answers."""
    settings = PAIRS | {"num_steps": 8, "topology": "ring", "max_failures": -1}
    settings |= {"compute": {"stragglers": dict.fromkeys(range(4), 0.5)}}
    killer = KillsWhoIsRead(lost, 2)
    result = fit(tmp_path, killer, **settings | {"algorithm": {"name": "ad-psgd", "acceleration": "acid"}})
    assert result.error is None
    assert killer.kinds().count("agent_returned") == 2
    assert "reads_unrecorded" not in killer.kinds()
    rows, _ = read_rows(Path(result.path) / "schedule.parquet")
    taken = {row[:2] for row in rows if row.kind != "rejoined"}
    halves = {read.neighbor for row in rows if row.kind == "passive" for read in row.reads if read[:2] not in taken}
    assert halves == ({0} if lost == 0 else set())
    replay(result, **settings | {"algorithm": read_yaml(Path(result.path) / "config.yaml")["algorithm"]})


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
@pytest.mark.parametrize("act", [kill, silence])
def test_pairs_go_on_without_an_agent_that_is_gone_or_hangs(
    act: Callable[[int], Any], lost: int, tmp_path: Path
) -> None:
    killer = Fault(12, act(lost))
    settings = PAIRS | {"num_steps": 80, "max_failures": 0}
    result = fit(tmp_path, killer, engine=LIVE | {"message_seconds": 10}, **settings)
    assert isinstance(result.error, RunError)
    assert f"agent {lost} lost" in str(result.error)
    rows, _ = read_rows(Path(result.path) / "schedule.parquet")
    own = [row for row in rows if row.kind == "step"]
    taken = [sum(row.agent == agent for row in own) for agent in range(4)]
    assert [taken[agent] for agent in range(4) if agent != lost] == [80, 80, 80]
    assert taken[lost] < 80
    # Those who ask go on asking those who are left.
    asking = [agent for agent in (0, 2) if agent != lost]
    assert {row.reads[0].neighbor for row in own[-20:] if row.agent in asking} == {1, 3} - {lost}
    replay(result, **settings)
    with pytest.raises(SettingsError, match="allowed is local with a schedule of ad-psgd in which agents were lost"):
        fit(tmp_path, engine={"name": "ray"}, schedule=str(Path(result.path) / "schedule.parquet"), **settings)


@pytest.mark.parametrize("lost", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_an_agent_that_averages_in_pairs_comes_back(lost: int, tmp_path: Path) -> None:
    """Agent 0 asks, and agent 1 is asked."""
    killer = Fault(12, kill(lost))
    settings = PAIRS | {"num_steps": 300}
    result = fit(tmp_path, killer, **settings)
    assert result.error is None
    assert [event.agent for event in killer.events if event.kind == "agent_returned"] == [lost]
    rows, _ = read_rows(Path(result.path) / "schedule.parquet")
    (back,) = (row for row in rows if row.kind == "rejoined")
    assert (back.agent, {read.neighbor for read in back.reads}) == (lost, {1, 3} if lost == 0 else {0, 2})
    own = [row for row in rows if row.kind == "step"]
    assert [sum(row.agent == agent for row in own) for agent in range(4)] == [300] * 4
    later = [row for row in rows if row.agent == lost and row.step > back.step]
    assert any(row.reads for row in later)
    replay(result, **settings)
