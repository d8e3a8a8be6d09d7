"""An operator watches a live run and changes it on its way; strangers' messages are never applied."""

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray._private.state import jobs as jobs_of_cluster

from experiments.faults.injecting import Fault, Several, kill
from ray_pcasgd.agents.mailbox import Header
from ray_pcasgd.engines.base import RunError
from ray_pcasgd.engines.live.commands import Heal, Isolate, Join, Leave, SetDelay
from ray_pcasgd.engines.messages import Contents
from ray_pcasgd.engines.ray.control import send_command, status_of
from ray_pcasgd.records import Event, Row, StepReport
from ray_pcasgd.runs.callbacks import Callback
from ray_pcasgd.runs.plan.plan import Plan
from ray_pcasgd.runs.result import Result
from ray_pcasgd.runs.trainer import Trainer
from ray_pcasgd.schedule.delays import LinkDelay
from ray_pcasgd.schedule.laws import ConstantLaw
from ray_pcasgd.schedule.parquet import read_rows
from tests.ray.leaving import ENDLESS
from tests.ray.scraping import assert_shown, scraped, shows_all

pytestmark = pytest.mark.usefixtures("ray_cluster")
LIVE: dict[str, Any] = {
    "engine": {"name": "ray", "mode": "live"},
    "num_agents": 3,
    "num_steps": 600,
    "evaluate_every": 300,
    "links": [],
    "algorithm": "d-asgd",
    "step_size": 0.02,
    "compute": {"stragglers": dict.fromkeys(range(3), 0.02)},
}


class Operator:
    """Acts from a thread of its own, as another process would."""

    def __init__(self) -> None:
        self.said: list[Any] = []
        self.errors: list[BaseException] = []
        self.threads: list[threading.Thread] = []

    def at(self, step: int, act: Callable[[Path], Any]) -> Fault:
        def start(fault: Fault) -> None:
            thread = threading.Thread(target=self.do, args=(act, fault.folder))
            self.threads.append(thread)
            thread.start()

        return Deed(step, start, self.errors)

    def do(self, act: Callable[[Path], Any], folder: Path) -> None:
        try:
            self.said.append(act(folder))
        except BaseException as error:
            self.errors.append(error)
            raise

    def answers(self) -> list[Any]:
        for thread in self.threads:
            thread.join()
        return self.said


class Deed(Fault):
    """What an operator does; where that fails, the run fails, which may not come to an end without it."""

    def __init__(self, step: int, act: Callable[[Fault], None], errors: list[BaseException]) -> None:
        super().__init__(step, act)
        self.errors = errors

    def on_step(self, report: StepReport) -> None:
        super().on_step(report)
        for error in self.errors:
            raise error


class Script(Callback):
    """Acts one after another, each from a thread, once agent 0 has gone on for some steps since the act before it.

    Steps are counted from when the former act was answered, and ``until`` has happened if it is given: so what an act
    does has that many steps to show, however fast the machine is.
    """

    def __init__(self, *acts: tuple[int, Callable[[Path], Any]], until: dict[int, Callable[[Event], bool]]) -> None:
        self.acts = acts
        self.until = until
        self.steps = 0
        self.folder = Path()
        self.done: list[threading.Thread] = []
        self.answers: list[Any] = []
        self.events: list[Event] = []
        self.answered_at: list[int] = []
        """Agent 0's rows by when each act was answered."""
        self.counted = 0

    def on_start(self, plan: Plan, path: Path) -> None:
        self.folder = path

    def on_event(self, event: Event) -> None:
        self.events.append(event)
        awaited = self.until.get(len(self.done))
        if awaited is not None and awaited(event):
            del self.until[len(self.done)]

    def on_step(self, report: StepReport) -> None:
        if report.row.agent != 0:
            return
        self.steps += 1
        place = len(self.done)
        if len(self.answers) < place or place == len(self.acts) or place in self.until:
            return
        if len(self.answered_at) < place:
            self.answered_at.append(self.steps)
        self.counted += 1
        needed, act = self.acts[place]
        if self.counted > needed:
            self.counted = 0
            self.done.append(threading.Thread(target=lambda: self.answers.append(act(self.folder))))
            self.done[-1].start()


def fit(folder: Path, callback: Callback | None = None, **settings: Any) -> Result:
    return Trainer(LIVE | settings, callbacks=[callback or Callback()], storage_path=str(folder)).fit()


def rows_of(result: Result) -> list[Row]:
    return read_rows(Path(result.path) / "schedule.parquet")[0]


def all_leave(folder: Path) -> None:
    """Let the agents leave, which ends the run."""
    for agent in range(3):
        send_command(str(folder), Leave(agent=agent))


@pytest.mark.slow
def test_an_operator_changes_links_and_the_record_shows_it(tmp_path: Path) -> None:
    late = SetDelay(entry=LinkDelay(delay=ConstantLaw(value=20), links=((0, 1),)))
    script = Script(
        (50, lambda folder: status_of(str(folder))),
        (50, lambda folder: send_command(str(folder), late)),
        (150, lambda folder: send_command(str(folder), Isolate(agents=(2,)))),
        (60, lambda folder: send_command(str(folder), Heal())),
        (100, lambda folder: send_command(str(folder), Isolate(agents=(7,)))),
        until={3: lambda event: (event.kind, event.agent) == ("neighbor_silent", 0)},
    )
    # Three times the steps that the script asks for: what it waits for takes some, too.
    long = {"num_steps": 1500, "evaluate_every": 1500}
    result = fit(tmp_path, script, engine=LIVE["engine"] | {"max_lag": None}, **long)
    assert result.error is None
    status, *answers = script.answers
    assert (status["algorithm"], status["mode"], len(status["agents"])) == ("d-asgd", "live", 3)
    assert {one["health"] for one in status["agents"]} == {"training"}
    assert all(one["step"] > 0 for one in status["agents"])
    assert answers == [
        "links [[0, 1]]: constant(20) steps",
        "agents [2] are isolated",
        "all links are as the settings have them",
        "refused: agent 7; allowed are 0 to 2",
    ]
    assert {"command_delay", "command_isolate", "command_heal"} <= {event.kind for event in script.events}
    own = [row for row in rows_of(result) if row.agent == 0]
    _, delayed, isolated, healed, *_ = script.answered_at

    def staleness(neighbor: int, first: int, last: int) -> list[int]:
        """Return how stale agent 0's reads were."""
        return [read.staleness for row in own[first:last] for read in row.reads if read.neighbor == neighbor]

    # How stale a free link's news is depends on the machine; that some of it is fresher than a late link's does not.
    assert min(staleness(1, 30, 100)) < 5  # at the very start everything is fresh
    assert max(staleness(1, delayed + 100, delayed + 150)) >= 19
    assert min(staleness(2, delayed, delayed + 150)) < 5
    # Nothing comes of an isolated agent, so it is soon read no more: not even D-ASGD is pulled back by it for long.
    assert staleness(2, healed - 50, healed - 5) == []
    assert isolated < healed
    assert min(staleness(1, healed + 30, len(own))) < 5
    assert min(staleness(2, healed + 30, len(own))) < 5
    schedule = str(Path(result.path) / "schedule.parquet")
    replayed = fit(tmp_path / "replay", engine="local", schedule=schedule, **long)
    assert replayed.schedule_hash == result.schedule_hash


@pytest.mark.slow
def test_agents_leave_and_come_in_on_purpose(tmp_path: Path) -> None:
    script = Script(
        (20, lambda folder: send_command(str(folder), Join(agent=2))),
        (10, lambda folder: send_command(str(folder), Join(agent=1))),
        (100, lambda folder: send_command(str(folder), Leave(agent=1))),
        (100, all_leave),
        until={
            2: lambda event: (event.kind, event.agent) == ("agent_returned", 2),
            3: lambda event: (event.kind, event.agent) == ("agent_left", 1),
        },
    )
    result = fit(tmp_path, script, engine={"name": "ray", "mode": "live", "join_later": [2]}, **ENDLESS)
    assert str(result.error).startswith("every agent ")
    assert script.answers[:3] == [
        "agent 2 is asked to come in",
        "refused: agent 1 takes part already, or is coming back",
        "agent 1 is asked to leave",
    ]
    rows = rows_of(result)
    steps = {agent: [row.step for row in rows if row.agent == agent] for agent in range(3)}
    assert min(steps[2]) > 0  # it came in at the others' step
    assert max(steps[1]) < max(steps[0])
    later = [row for row in rows if row.agent == 0 and row.step > max(steps[0]) - 50]
    assert {read.neighbor for row in later for read in row.reads} == {2}


@pytest.mark.slow
def test_agents_leave_and_come_in_as_settings_say(tmp_path: Path) -> None:
    """Steps take 20 ms at least, so that nobody ends before they are to leave; changes that are late come in turn."""
    membership = [{"agent": 1, "leaves": "1.5s", "returns": 3}, {"agent": 2, "returns": 2}]
    settings: dict[str, Any] = {"num_steps": 150, "evaluate_every": 150}
    result = fit(tmp_path, membership=membership, **settings)
    assert result.error is None
    events = [json.loads(line) for line in (Path(result.path) / "events.jsonl").read_text().splitlines()]
    changes = [(event["kind"], event["agent"]) for event in events if event["kind"] in ("agent_left", "agent_returned")]
    assert sorted(changes) == [(kind, agent) for kind in ("agent_left", "agent_returned") for agent in (1, 2)]
    assert changes[0] == ("agent_left", 2)  # it was not there
    assert {event["detail"] for event in events if event["kind"].startswith("command_")} == {
        "agent 1 is asked to leave at second 1.5, as membership says",
        "agent 2 is asked to come in at second 2, as membership says",
        "agent 1 is asked to come in at second 3, as membership says",
    }
    rows = rows_of(result)
    back = {agent: [row for row in rows if row.agent == agent and row.kind == "rejoined"] for agent in range(3)}
    assert [len(own) for own in back.values()] == [0, 1, 1]
    assert back[1][0].end >= 3
    assert back[2][0].end >= 2
    assert min(row.step for row in rows if row.agent == 2) == back[2][0].step
    schedule = str(Path(result.path) / "schedule.parquet")
    replayed = fit(tmp_path / "replay", engine="local", schedule=schedule, **settings)
    assert replayed.schedule_hash == result.schedule_hash
    assert replayed.metrics["test_loss"] == result.metrics["test_loss"]


@pytest.mark.slow
def test_workers_leave_and_come_in_as_settings_say(tmp_path: Path) -> None:
    """The server needs 10 seconds at least: those who return at 3 have time to be built."""
    membership = [{"agent": 1, "leaves": "1.5s", "returns": 3}, {"agent": 2, "returns": 2}]
    settings: dict[str, Any] = {"algorithm": {"name": "server", "gathering": "sync"}, "num_steps": 500}
    result = fit(tmp_path, membership=membership, **settings)
    assert result.error is None
    rows = rows_of(result)
    taken = [[read.neighbor for read in row.reads] for row in rows if row.agent == 3]
    assert 2 not in taken[0]  # it was not there
    assert taken[-1] == [0, 1, 2]
    back = [row.agent for row in rows if row.kind == "rejoined"]
    assert sorted(back) == [1, 2]
    schedule = str(Path(result.path) / "schedule.parquet")
    replayed = fit(tmp_path / "replay", engine="local", schedule=schedule, **settings)
    assert replayed.schedule_hash == result.schedule_hash
    assert replayed.metrics["test_loss"] == result.metrics["test_loss"]


def command(name: str, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    code = "from ray_pcasgd.cli import main; main()"
    arguments = [sys.executable, "-c", code, name, str(folder), *options]
    return subprocess.run(arguments, capture_output=True, text=True, check=False)


def test_another_process_and_prometheus_find_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    seen: dict[str, str] = {}

    def commands(folder: Path) -> list[subprocess.CompletedProcess[str]]:
        jobs = len(jobs_of_cluster())
        copy = shutil.copytree(folder, tmp_path / "copy")
        done = [
            command("status", folder, "--json"),
            command("leave", folder, "--agent", "7"),
            command("status", copy),
        ]
        assert len(jobs_of_cluster()) == jobs
        while not shows_all(seen, folder.name):
            threading.Event().wait(0.1)  # the run needs the cores more
            seen.update(scraped())
        for agent in range(2):  # which ends the run
            send_command(str(folder), Leave(agent=agent))
        return done

    operator = Operator()
    settings = ENDLESS | {"num_agents": 2, "algorithm": "pc-asgd", "links": [{"delay": 3}], "evaluate_every": 50}
    settings["compute"] = {"stragglers": dict.fromkeys(range(2), 0.02)}
    settings["engine"] = LIVE["engine"] | {"max_lag": None}  # agents that start late are read all the same
    result = fit(tmp_path, operator.at(20, commands), name="watched", **settings)
    ((status, refused, copied),) = operator.answers()
    assert str(result.error).startswith("every agent ")
    assert status.returncode == 0, status.stderr
    view = json.loads(status.stdout)
    assert (view["algorithm"], view["num_steps"], len(view["agents"])) == ("pc-asgd", 10**6, 2)
    assert (refused.returncode, refused.stderr) == (1, "error: refused: agent 7; allowed are 0 to 1\n")
    assert copied.returncode == 2
    assert "this user has no run here that is running; its events.jsonl names the cluster " in copied.stderr
    assert command("status", Path(result.path)).returncode == 2
    assert_shown(seen, "watched", rows_of(result))


def test_a_planned_run_refuses_commands_and_ends_with_a_lost_agent_s_name_and_its_files(tmp_path: Path) -> None:
    operator = Operator()
    callback = Several(
        operator.at(3, lambda folder: send_command(str(folder), Heal())),
        Fault(3, kill(1), lambda _: bool(operator.said)),
    )
    planned = {"engine": {"name": "ray"}, "num_agents": 2, "compute": {}, "max_failures": 0}
    result = fit(tmp_path, callback, **planned, **ENDLESS)
    assert operator.answers() == ["refused: heal: a planned run follows its schedule; allowed are live runs"]
    assert isinstance(result.error, RunError)
    assert "agent 1 was lost" in str(result.error)
    assert rows_of(result)


@pytest.mark.slow
def test_a_stranger_s_messages_are_counted_and_never_applied(tmp_path: Path) -> None:
    def send(folder: Path) -> None:
        namespace = f"ray_pcasgd {folder}"
        agent = ray.get_actor(f"{folder.name} agent 0", namespace=namespace)
        good = Contents(np.zeros(3, np.float32), np.zeros(0, np.float32), None)
        header = Header(1, 300, 0.0, 0.0)
        calls = [
            agent.receive.remote("header", None),
            agent.receive.remote(header._replace(sender=5), good),
            agent.receive.remote(header._replace(version=10**6), good),
            agent.receive.remote(header, good),
            agent.receive.remote(header, Contents([ray.put(np.full(4810, np.nan))], good.buffers, None)),
            agent.receive.remote(header, "contents"),
        ]
        ray.get(calls)

    operator = Operator()
    callback = operator.at(100, send)
    result = fit(tmp_path, callback, num_steps=400, evaluate_every=400)
    operator.answers()
    assert result.error is None
    rejected = [event.detail for event in callback.events if event.kind == "message_rejected"]
    assert rejected
    assert any("its header is of type str" in detail for detail in rejected)
    assert any("version 300 of agent 1" in detail for detail in rejected)
    assert result.metrics["test_accuracy"] > 0.5


@pytest.mark.slow
def test_agents_that_average_in_pairs_leave_and_come_in_on_purpose(tmp_path: Path) -> None:
    operator = Operator()
    late = SetDelay(entry=LinkDelay(delay=ConstantLaw(value=20), links=((0, 1),)))
    callback = Several(
        operator.at(50, lambda folder: send_command(str(folder), Join(agent=2))),
        operator.at(60, lambda folder: send_command(str(folder), late)),
        operator.at(400, lambda folder: send_command(str(folder), Leave(agent=0))),
    )
    settings: dict[str, Any] = {
        "algorithm": "ad-psgd",
        "num_agents": 4,
        "num_steps": 500,
        "evaluate_every": 250,
        "compute": {"stragglers": dict.fromkeys(range(4), 0.02)},
    }
    result = fit(tmp_path, callback, engine={"name": "ray", "mode": "live", "join_later": [2]}, **settings)
    assert result.error is None
    answers = operator.answers()
    assert answers[0] == "agent 2 is asked to come in"
    assert answers[1].startswith("refused: delay in steps: allowed with ad-psgd is seconds")
    assert answers[2] == "agent 0 is asked to leave"
    rows = rows_of(result)
    first = next(row for row in rows if row.agent == 2)
    assert first.kind == "rejoined"
    assert {read.neighbor for read in first.reads} == {1, 3}
    own = [sum(row.agent == agent and row.kind == "step" for row in rows) for agent in range(4)]
    assert 0 < own[0] < 500
    assert own[1:] == [500] * 3
    schedule = str(Path(result.path) / "schedule.parquet")
    replayed = fit(tmp_path / "replay", engine={"name": "local", "batched": "never"}, schedule=schedule, **settings)
    assert replayed.error is None
    assert replayed.schedule_hash == result.schedule_hash


@pytest.mark.slow
def test_workers_leave_and_come_in_on_purpose(tmp_path: Path) -> None:
    operator = Operator()
    callback = Several(
        operator.at(20, lambda folder: send_command(str(folder), Join(agent=2))),
        operator.at(30, lambda folder: send_command(str(folder), Leave(agent=3))),
        operator.at(120, lambda folder: send_command(str(folder), Isolate(agents=(1,)))),
        operator.at(900, lambda folder: send_command(str(folder), Leave(agent=0))),
    )
    settings: dict[str, Any] = {"algorithm": {"name": "server", "gathering": "sync"}, "num_steps": 900}
    result = fit(tmp_path, callback, engine={"name": "ray", "mode": "live", "join_later": [2]}, **settings)
    assert result.error is None
    assert operator.answers() == [
        "agent 2 is asked to come in",
        "refused: leave: allowed are workers; agent 3 is a server",
        "refused: isolate: allowed are runs between peers",
        "agent 0 is asked to leave",
    ]
    updates = [row for row in rows_of(result) if row.agent == 3]
    taken = [[read.neighbor for read in row.reads] for row in updates]
    assert taken[0] == [0, 1]
    assert [0, 1, 2] in taken
    assert taken[-1] == [1, 2]
    schedule = str(Path(result.path) / "schedule.parquet")
    replayed = fit(tmp_path / "replay", engine="local", schedule=schedule, **settings)
    assert replayed.schedule_hash == result.schedule_hash


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        ({"name": "ray", "mode": "planned", "join_later": [1]}, "allowed in live runs alone"),
        ({"name": "ray", "mode": "live", "join_later": [0, 1, 2]}, "allowed are some of the agents 0 to 2, not all"),
        ({"name": "ray", "mode": "live", "join_later": [9]}, "allowed are some of the agents 0 to 2"),
    ],
)
def test_wrong_settings_of_who_joins_later_are_refused(engine: dict[str, Any], said: str, tmp_path: Path) -> None:
    from ray_pcasgd.runs.settings.loading import SettingsError

    with pytest.raises(SettingsError, match=said):
        fit(tmp_path, engine=engine)
