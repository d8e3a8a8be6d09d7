"""What the page about one run shows: of a run that is over its files, of one that is running its status."""

import json
from io import StringIO
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from ray_pcasgd import Trainer
from ray_pcasgd.base import foreign_files
from ray_pcasgd.cli.control import print_status
from ray_pcasgd.engines.ray.status import RunStatus, viewed
from ray_pcasgd.records import Event, Read, Row, StepReport
from ray_pcasgd.report import reading
from ray_pcasgd.report.data import load_run
from ray_pcasgd.report.groups import Group
from ray_pcasgd.report.page import page as page_of
from ray_pcasgd.report.watched import MOST_AGENTS, MOST_LINKS, NEWEST, Events, events_in, of_files, of_running
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


def status_of(about: dict[str, object]) -> dict[str, object]:
    settled = {"run": "r", "algorithm": "d-asgd", "mode": "live", "num_steps": 5, "num_servers": 0, "clusters": [0]}
    status = RunStatus(settled | about, 1)
    status.take(StepReport(Row(0, 0, 0.0, 1.0, 1.0, ()), 2, 0.5, {}, 0, 1.0))
    return viewed(status.view())


@pytest.mark.parametrize(
    ("local_steps", "has_rounds"), [(None, False), (1, False), ([1, 3, 1], True), ({"name": "equal-time"}, True)]
)
def test_the_page_knows_whether_staleness_counts_rounds(peers: Path, local_steps: object, has_rounds: bool) -> None:
    settings = yaml.safe_load((peers / "config.yaml").read_text()) | {"local_steps": local_steps}
    if local_steps is None:  # as runs of before have it
        del settings["local_steps"]
    (peers / "config.yaml").write_text(yaml.safe_dump(settings))
    assert of_files(load_run(peers), "")["has_rounds"] is has_rounds
    (peers / "result.json").unlink()
    assert of_files(load_run(peers), "", "running")["has_rounds"] is has_rounds
    status = status_of({} if local_steps is None else {"has_rounds": has_rounds})
    assert of_running(status, Events([], 0), None, 0.0)["has_rounds"] is has_rounds
    console = Console(file=StringIO(), width=200)
    print_status(status, console)
    assert isinstance(console.file, StringIO)
    assert ("staleness of each neighbor in rounds" in console.file.getvalue()) is has_rounds


@pytest.mark.usefixtures("without_pictures")
def test_the_report_says_that_staleness_counts_rounds(peers: Path) -> None:
    said = "With local steps, staleness counts rounds."
    assert said not in page_of([Group("watched", (load_run(peers),))], "steps", None)
    settings = yaml.safe_load((peers / "config.yaml").read_text()) | {"local_steps": 2}
    (peers / "config.yaml").write_text(yaml.safe_dump(settings))
    assert said in page_of([Group("watched", (load_run(peers),))], "rounds", None)


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


def claimed(run: Path, num_agents: int) -> Path:
    settings = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(settings | {"num_agents": num_agents}))
    return run


def test_of_many_agents_the_first_are_listed_and_all_that_are_not_there(peers: Path) -> None:
    lost = [{"kind": "agent_lost", "agent": agent, "step": 7} for agent in (90_000, 70_000)]
    with (peers / "events.jsonl").open("a") as file:
        file.writelines(json.dumps(event) + "\n" for event in lost)
    page = of_files(load_run(claimed(peers, 100_000)), "")
    assert page["num_agents"] == 100_000
    assert [one["agent"] for one in page["agents"]] == [*range(MOST_AGENTS - 2), 70_000, 90_000]
    assert page["progress"] == [0, pytest.approx(3 * 12 / 100_000), 12]
    assert page["num_linked"] == 3
    assert len(json.dumps(page)) < 100_000


def test_of_many_links_those_of_the_first_agents_are_shown() -> None:
    about = {"run": "r", "algorithm": "d-psgd", "mode": "live", "num_steps": 5, "num_servers": 0, "clusters": []}
    status = RunStatus(about, 200)
    for agent in range(200):
        reads = tuple(Read(neighbor, 0, 3, 1) for neighbor in range(200) if neighbor != agent)
        status.take(StepReport(Row(agent, 0, 0.0, 0.0, 1.0, reads), 1, 0.5, {}, 0, 1.0))
    page = of_running(viewed(status.view()), Events([], 0), None, 0.0)
    assert (len(page["agents"]), page["num_linked"], page["progress"]) == (200, 200, [1, 1.0, 1])
    shown = {one["agent"]: one["staleness"] for one in page["agents"] if one["staleness"]}
    assert list(shown) == list(range(MOST_LINKS))
    assert all(list(links) == [k for k in range(MOST_LINKS) if k != agent] for agent, links in shown.items())


@pytest.mark.usefixtures("without_pictures")
def test_of_many_events_the_newest_are_kept_and_all_are_counted(peers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    number = reading._MOST_EVENTS + 50
    lines = [json.dumps({"kind": "noticed", "agent": -1, "step": step}) + "\n" for step in range(number)]
    (peers / "events.jsonl").write_text("".join(lines))
    run = load_run(peers)
    assert (run.num_events, len(run.events), run.events[-1]["step"]) == (number, reading._MOST_EVENTS, number - 1)
    assert of_files(run, "")["num_events"] == number
    text = page_of([Group("watched", (run,))], "many", None)
    assert f"<td>{number - 1}</td>" in text
    assert f"The newest ones; {number - 30} more are in events.jsonl." in text
    monkeypatch.setattr(foreign_files, "_MOST_EVENT_BYTES", 10 * len(lines[-1]) + 5)
    assert [event["step"] for event in load_run(peers).events] == list(range(number - 10, number))
