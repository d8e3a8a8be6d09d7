"""The page about a run, while it is running on a real cluster and after its end."""

import json
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ray_pcasgd.engines.live.commands import Leave
from ray_pcasgd.engines.ray.control import send_command
from ray_pcasgd.runs.trainer import Trainer
from tests.ray.leaving import ENDLESS
from tests.ray.test_control import LIVE, Operator

pytestmark = pytest.mark.usefixtures("ray_cluster")


class Page:
    """``ray-pcasgd watch`` in a process of its own, asked as a browser asks it."""

    def __init__(self, folder: Path) -> None:
        code = "from ray_pcasgd.cli import main; main()"
        command = [sys.executable, "-c", code, "watch", str(folder), "--control"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        address, _, self.said = self.process.stdout.readline().strip().partition(" ")
        self.address, _, self.token = address.partition("#")

    def asked(self, path: str, body: Any = None) -> Any:
        headers = {"X-Token": self.token, "Origin": self.address.rstrip("/")}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.address}{path}", data, headers)
        with urllib.request.urlopen(request, timeout=100) as answer:
            return json.load(answer)

    def once(self, is_so: Callable[[Any], bool]) -> Any:
        """Return the page's state once it is so."""
        while not is_so(state := self.asked("state")):
            threading.Event().wait(0.1)  # the run's processes need the cores more
        return state

    def command(self, **command: Any) -> str:
        return str(self.asked("command", command)["said"])

    def end(self) -> tuple[int, str]:
        self.process.send_signal(signal.SIGINT)
        _, errors = self.process.communicate(timeout=300)
        return self.process.returncode, errors


def staleness(state: Any, agent: int, neighbor: int) -> int:
    return int(state["agents"][agent]["staleness"][str(neighbor)])


def test_a_page_shows_a_live_run_changes_it_and_shows_how_it_ended(tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    def look(folder: Path) -> None:
        page = Page(folder)
        assert page.said == f"shows {folder}; Ctrl-C ends it"
        seen["running"] = page.once(lambda state: bool(state.get("tested")) and state["rate"] is not None)
        late = {"do": "delay", "links": "0-1", "law": "30"}
        seen["answers"] = [page.command(**late), page.command(do="join", agent=1), page.command(do="heal")]
        page.once(lambda state: any(event["kind"] == "command_heal" for event in state["events"]))
        page.command(**late)
        page.once(lambda state: staleness(state, 0, 1) >= 20)
        send_command(str(folder), Leave(agent=2))
        seen["left"] = page.once(lambda state: state["agents"][2]["health"] == "has left")
        seen["joined"] = page.command(do="join", agent=2)
        seen["back"] = page.once(lambda state: state["agents"][2]["health"] == "training")
        for agent in range(3):  # which ends the run
            send_command(str(folder), Leave(agent=agent))
        seen["ended"] = page.once(lambda state: state["state"] == "failed" and state["said"])
        seen["end"] = page.end()

    operator = Operator()
    slow = {"compute": {"stragglers": {0: 0.02, 1: 0.02, 2: 0.05}}, "evaluate_every": 10}
    engine = LIVE["engine"] | {"max_lag": None}
    settings = LIVE | ENDLESS | slow | {"engine": engine}
    result = Trainer(settings, callbacks=[operator.at(10, look)], storage_path=str(tmp_path), name="page").fit()
    operator.answers()
    running = seen["running"]
    assert [running[name] for name in ("run", "algorithm", "mode", "control")] == ["page", "d-asgd", "live", True]
    assert running["state"] == "running"
    assert [one["staleness"].keys() for one in running["agents"]] == [{"1", "2"}, {"0", "2"}, {"0", "1"}]
    assert running["rate"] > 0
    assert 0 < running["tested"][0]["figures"]["test_accuracy"] < 1
    assert all(loss > 0 for _, loss in running["losses"])
    assert {"cluster_joined", "agent_started"} <= {event["kind"] for event in running["events"]}
    assert seen["answers"] == [
        "links [[0, 1]]: constant(30) steps",
        "refused: agent 1 takes part already, or is coming back",
        "all links are as the settings have them",
    ]
    assert seen["joined"] == "agent 2 is asked to come in"
    ended = seen["ended"]
    assert str(result.error).startswith("every agent ")
    assert (ended["state"], ended["said"]) == ("failed", str(result.error))
    assert ended["tested"][-1]["figures"]["test_accuracy"] == result.metrics["test_accuracy"]
    assert seen["end"] == (0, "")
