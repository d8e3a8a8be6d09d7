"""What the page about one run shows: of a run that is over its files, of one that is running its status."""

import json
from pathlib import Path

import pytest

from ray_pcasgd import Trainer
from ray_pcasgd.engines.ray.status import RunStatus, viewed
from ray_pcasgd.records import Event, Read, Row, StepReport
from ray_pcasgd.report.data import load_run
from ray_pcasgd.report.watched import NEWEST, Events, events_in, of_files, of_running
from ray_pcasgd.schedule.parquet import read_rows
from tests.unit.recorded_runs import once, placed

PEERS = {"num_agents": 3, "num_steps": 12, "evaluate_every": 4, "engine": "local", "links": [{"delay": 2}]}
SERVED = PEERS | {"algorithm": {"name": "server"}, "links": []}


@pytest.fixture
def peers(tmp_path: Path) -> Path:
    recorded, _ = once(lambda storage: Trainer(PEERS, storage_path=str(storage), name="watched").fit(), "watch", PEERS)
    return placed(recorded, tmp_path)


def test_a_run_that_is_over_is_shown_as_it_ended(peers: Path) -> None:
    page = of_files(load_run(peers), "it has ended")
    assert (page["state"], page["said"], page["run"]) == ("finished", "", "watched")
    assert (page["algorithm"], page["num_steps"], page["num_servers"]) == ("pc-asgd", 12, 0)
    rows = read_rows(peers / "schedule.parquet")[0]
    for agent in page["agents"]:
        own = sorted((row for row in rows if row.agent == agent["agent"]), key=lambda row: row.step)
        last = {read.neighbor: read.staleness for row in own for read in row.reads}
        assert agent["staleness"] == last
        assert max(last.values()) > 0
        assert (agent["step"], agent["health"]) == (12, "finished")
        assert agent["loss"] > 0
    final = json.loads((peers / "result.json").read_text())["final"]["averaged"]
    assert [one["step"] for one in page["tested"]] == [4, 8, 12]
    assert page["tested"][-1]["figures"] == final
    assert [step for step, _ in page["losses"]] == [4, 8, 12]
    json.dumps(page, allow_nan=False)


def test_a_run_that_was_killed_says_why_it_is_not_watched_and_who_was_lost(peers: Path) -> None:
    for name in ("result.json", "metrics.parquet", "schedule.parquet"):
        (peers / name).unlink()
    kinds = ["agent_lost", "agent_returned", "agent_lost"]
    events = [{"kind": kind, "agent": agent, "step": 7} for agent, kind in zip((1, 1, 2), kinds, strict=True)]
    (peers / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    page = of_files(load_run(peers), "its driver has ended")
    assert (page["state"], page["said"]) == ("not running", "its driver has ended")
    assert [one["health"] for one in page["agents"]] == ["ended", "ended", "lost"]
    assert (page["losses"], page["tested"], page["num_events"]) == ([], [], 3)


def test_beside_a_server_workers_are_told_apart(tmp_path: Path) -> None:
    result = Trainer(SERVED, storage_path=str(tmp_path), name="served").fit()
    page = of_files(load_run(Path(result.path)), "")
    assert (page["num_servers"], len(page["agents"])) == (1, 4)
    assert page["agents"][3]["staleness"].keys() == {0, 1, 2}
    assert page["agents"][3]["health"] == "finished"


def test_of_many_events_the_newest_are_shown_and_all_are_counted(tmp_path: Path) -> None:
    lines = [json.dumps({"kind": "noticed", "step": number}) + "\n" for number in range(NEWEST + 7)]
    (tmp_path / "events.jsonl").write_text("".join(lines))
    events = events_in(tmp_path)
    assert events.number == NEWEST + 7
    assert [event["step"] for event in events.newest] == list(range(7, NEWEST + 7))
    assert events_in(tmp_path / "none") == Events([], 0)


def test_a_running_run_is_shown_by_its_status() -> None:
    about = {"run": "first", "algorithm": "pc-asgd", "mode": "live", "num_steps": 5, "num_servers": 0}
    status = RunStatus({**about, "clusters": [0, 1]}, 2)
    for step in range(2):
        status.take(StepReport(Row(0, step, 0.0, 1.0, 1.0, (Read(1, 0, step, 1),)), step + 1, 0.5, {}, 0, 1.0))
    status.take(Event("agent_lost", 1, 0, "agent 1 was lost"))
    view = viewed(status.view())
    nowhere, here = Events([], 0), Events([{"kind": "noticed"}], 9)
    now = view["agents"][0]["heard_at"] + 3.0
    page = of_running(view, nowhere, 2.0, now)
    assert (page["state"], page["rate"], page["num_events"]) == ("running", 2.0, 1)
    assert [event["kind"] for event in page["events"]] == ["agent_lost"]
    assert [one["heard_seconds"] for one in page["agents"]] == [pytest.approx(3.0), None]
    assert page["agents"][0]["staleness"] == {1: 1}
    # The folder has also the events that the engine knows nothing of.
    assert of_running(view, here, None, now)["num_events"] == 9
    assert of_running({}, here, None, now)["state"] == "starting"


def test_who_comes_back_makes_the_rate_no_higher() -> None:
    status = RunStatus({"num_steps": 99, "num_servers": 0}, 1)

    def step(progress: int, seconds: float) -> None:
        status.take(StepReport(Row(0, progress - 1, 0.0, 1.0, 1.0, ()), progress, 0.5, {}, 0, seconds))

    step(1, 1.0)
    step(2, 2.0)
    status.take(Event("agent_lost", 0, 2, ""))
    step(50, 40.0)
    step(51, 41.0)
    assert status.steps_taken == 2
    assert status.agents[0].step_seconds == 1.0
