"""Live runs with a server: whose work is cancelled, and who may die."""

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from experiments.faults.injecting import Fault, Several, has_kept, kill
from ray_pcasgd.engines.base import RunError
from ray_pcasgd.records import StepReport
from ray_pcasgd.runs.callbacks import Callback
from ray_pcasgd.runs.result import Result
from ray_pcasgd.runs.trainer import Trainer, resume
from ray_pcasgd.schedule.parquet import read_rows
from tests.ray.crawling import Release
from tests.ray.leaving import ENDLESS
from tests.unit.server_planning import check_rows

pytestmark = pytest.mark.usefixtures("ray_cluster")
SMALL: dict[str, Any] = {
    "num_agents": 3,
    "num_steps": 20,
    "evaluate_every": 20,
    "links": [],
    "task": {"model": {"hidden": [12]}},
    "engine": {"name": "ray", "mode": "live", "message_seconds": 30},
}


def fit(folder: Path, gathering: Any, *callbacks: Callback, **settings: Any) -> Result:
    changes = {"storage_path": str(folder), "algorithm": {"name": "server", "gathering": gathering}} | settings
    return Trainer(SMALL, callbacks=callbacks, **changes).fit()


@pytest.mark.slow
def test_k_sync_cancels_a_slow_worker_and_never_waits_for_it(tmp_path: Path) -> None:
    # It would need a day for a step: did anybody wait for it, the run would not end.
    result = fit(tmp_path, {"name": "k-sync", "k": 2}, compute={"stragglers": {0: 86400.0}})
    assert result.error is None
    rows, _ = read_rows(Path(result.path) / "schedule.parquet")
    check_rows(rows, num_workers=3)
    slow = [row for row in rows if row.agent == 0]
    assert len(slow) > 1
    assert {row.kind for row in slow} == {"cancelled"}
    updates = [row for row in rows if row.agent == 3]
    assert all({read.neighbor for read in row.reads} == {1, 2} for row in updates)
    assert {read.staleness for row in updates for read in row.reads} == {0}
    frame = result.metrics_dataframe
    assert frame[frame["agent"] == 0]["cancelled_steps"].iloc[-1] > 0
    # Cancelled once for each version that it has begun at, and never twice at the same one.
    begun = [row.reads[0].version + row.reads[0].staleness for row in slow]
    assert begun == sorted(set(begun))


@pytest.mark.slow
def test_no_gradient_that_was_cancelled_is_ever_taken(tmp_path: Path) -> None:
    """Workers of many speeds under K-batch-sync: whatever is taken was begun at the server's present version."""
    compute = {"stragglers": {1: 0.004, 2: {"name": "uniform", "low": 0, "high": 0.02}}}
    result = fit(tmp_path, {"name": "k-batch-sync", "k": 2}, compute=compute, num_steps=40)
    assert result.error is None
    rows, _ = read_rows(Path(result.path) / "schedule.parquet")
    check_rows(rows, num_workers=3)
    assert any(row.kind == "cancelled" for row in rows)
    assert {read.staleness for row in rows if row.agent == 3 for read in row.reads} == {0}


ELASTIC = {"name": "elastic-averaging"}
DELAYED = {"name": "diloco", "gathering": "asgd", "outer": "delayed-nesterov"}
STREAMING = {"name": "diloco", "gathering": "asgd", "alpha": 0.3}
"""Sent in parts."""


@pytest.mark.parametrize(
    "algorithm",
    [
        {"gathering": "asgd"},
        pytest.param({"gathering": {"name": "k-async", "k": 2}}, marks=pytest.mark.slow),
        pytest.param({"gathering": "sync"}, marks=pytest.mark.slow),
        pytest.param({"gathering": {"name": "k-batch-sync", "k": 2}, "shards": 2}, marks=pytest.mark.slow),
        pytest.param(ELASTIC, marks=pytest.mark.slow),
        pytest.param(DELAYED, marks=pytest.mark.slow),
        pytest.param(STREAMING, marks=pytest.mark.slow),
    ],
)
def test_a_worker_that_was_killed_comes_back(algorithm: dict[str, Any], tmp_path: Path) -> None:
    servers = range(3, 3 + algorithm.get("shards", 1))
    taken: dict[int, int] = {}
    """By server the newest of worker 1's versions that it has taken."""
    came_back: list[int] = []

    def works_again(report: StepReport) -> bool:
        """Return whether what the worker has done since it came back was taken."""
        row = report.row
        if row.kind == "rejoined":
            came_back.append(row.step)
        if row.agent in servers:
            taken.update((row.agent, read.version) for read in row.reads if read.neighbor == 1)
        return bool(came_back) and all(taken[server] > came_back[0] + 1 for server in servers)

    killer = Fault(5, kill(1), lambda _: taken.keys() == set(servers))
    release = Release(tmp_path / "gate", works_again)
    settings: dict[str, Any] = {"algorithm": {"name": "server"} | algorithm, "num_steps": 200, "task": release.task}
    settings |= {"wire": {"weights": "bf16", "fragments": 3}} if algorithm is STREAMING else {}
    result = fit(tmp_path, None, killer, release, **settings)
    assert result.error is None
    found = {(event.kind, event.agent) for event in killer.events}
    assert found >= {("agent_lost", 1), ("neighbor_lost", 3), ("agent_returned", 1)}
    assert result.metrics["step"] == 200
    rows, _ = read_rows(Path(result.path) / "schedule.parquet")
    (back,) = (row for row in rows if row.kind == "rejoined")
    assert back.agent == 1
    assert [read.neighbor for read in back.reads] == [*servers]
    for server in servers:
        read = {read.version for row in rows if row.agent == server for read in row.reads if read.neighbor == 1}
        assert min(read) < back.step
        assert max(read) > back.step + 1
    # Elastic averaging's workers have weights of their own, which they lose.
    for engine in ("local", *([{"name": "ray", "mode": "planned"}] if algorithm is ELASTIC else [])):
        replay(result, tmp_path / "replay", engine=engine, **settings)


def replay(result: Result, folder: Path, **settings: Any) -> None:
    """Replay a run with one server, or several, and compare the weights that come of it."""
    replayed = fit(folder, None, **settings, schedule=str(Path(result.path) / "schedule.parquet"))
    assert replayed.error is None
    assert replayed.metrics["step"] == result.metrics["step"]
    if settings["algorithm"].get("shards", 1) == 1:
        one, other = (load_file(Path(run.path) / "model.safetensors") for run in (result, replayed))
        assert all(one[name].equal(other[name]) for name in one)


@pytest.mark.parametrize(
    "algorithm",
    [
        {"gathering": "asgd", "correction": "dc-asgd-a"},
        pytest.param({"gathering": {"name": "k-batch-sync", "k": 2}}, marks=pytest.mark.slow),
        pytest.param({"gathering": {"name": "adasync", "every_seconds": 0.3}}, marks=pytest.mark.slow),
        pytest.param(ELASTIC, marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_a_run_goes_on_from_its_server_s_state(algorithm: dict[str, Any], tmp_path: Path) -> None:
    """The server is killed; the run goes on by itself, is killed so again beyond what is allowed, and is resumed."""
    settings: dict[str, Any] = {"algorithm": {"name": "server"} | algorithm, "num_steps": 200}
    settings["compute"] = {"stragglers": {0: 0.03, 1: 0.03, 2: 0.03}}
    once_more = Fault(60, kill(3), lambda fault: "run_restarted" in fault.kinds())
    killers = Several(Fault(30, kill(3), has_kept(10)), once_more)
    result = fit(tmp_path, None, killers, **settings, max_failures=1, checkpoint={"state_seconds": 0})
    assert isinstance(result.error, RunError)
    assert "agent 3 was lost" in str(result.error)
    (restarted,) = (event for event in killers.events if event.kind == "run_restarted")
    assert restarted.step >= 10
    assert "agent_returned" in killers.kinds()
    resumed = resume(result.path)
    assert resumed.error is None
    assert resumed.metrics["step"] == 200
    rows, _ = read_rows(Path(result.path) / "schedule.parquet")
    assert {row.agent for row in rows if row.kind == "rejoined"} == {0, 1, 2}
    replay(resumed, tmp_path / "replay", engine="local", **settings)


@pytest.mark.slow
def test_a_lost_worker_fails_a_run_that_allows_none_and_keeps_its_files(tmp_path: Path) -> None:
    compute = {"stragglers": {0: 0.01, 1: 0.01, 2: 0.01}}
    settings: dict[str, Any] = {"compute": compute, "num_steps": 40, "max_failures": 0}
    result = fit(tmp_path, {"name": "k-async", "k": 2}, Fault(5, kill(1)), **settings)
    assert isinstance(result.error, RunError)
    assert "agent 1 lost" in str(result.error)
    assert (Path(result.path) / "model.safetensors").exists()
    assert result.metrics["step"] == 40
    updates = [row for row in read_rows(Path(result.path) / "schedule.parquet")[0] if row.agent == 3]
    assert {read.neighbor for row in updates[-10:] for read in row.reads} == {0, 2}


@pytest.mark.slow
def test_a_run_whose_workers_are_all_lost_for_good_says_so(tmp_path: Path) -> None:
    killers = Several(*(Fault(5, kill(worker)) for worker in range(3)))
    compute = {"stragglers": {0: 0.01, 1: 0.01, 2: 0.01}}
    result = fit(tmp_path, "asgd", killers, compute=compute, max_failures=0, **ENDLESS)
    assert isinstance(result.error, RunError)
    assert "every worker was lost" in str(result.error)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["live", "planned"])
def test_a_lost_server_ends_a_run_with_its_name(mode: str, tmp_path: Path) -> None:
    engine = {"name": "ray", "mode": mode}
    compute = {"stragglers": {0: 0.01, 1: 0.01, 2: 0.01}} if mode == "live" else {}
    killer = Fault(5, kill(3))
    result = fit(tmp_path, "asgd", killer, engine=engine, compute=compute, max_failures=0, **ENDLESS)
    assert isinstance(result.error, RunError)
    assert "agent 3 was lost" in str(result.error)
    assert read_rows(Path(result.path) / "schedule.parquet")[0]
