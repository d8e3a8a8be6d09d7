"""``ray-pcasgd watch``: its server gives the run to nobody but who has its address, and its page trusts no text."""

import json
import re
import shutil
import socket
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from ray_pcasgd import Trainer
from ray_pcasgd.base.errors import SettingsError
from ray_pcasgd.cli import main
from ray_pcasgd.cli.control import page_command
from ray_pcasgd.cli.watch_server import WatchServer
from ray_pcasgd.cli.watcher import Watcher
from ray_pcasgd.engines.live.commands import Heal, Join, SetDelay
from tests.unit.recorded_runs import once, placed

SETTINGS = {"num_agents": 3, "num_steps": 8, "evaluate_every": 4, "engine": "local", "links": [{"delay": 2}]}
CHROMIUM = shutil.which("chromium")
HOSTILE = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    recorded, _ = once(lambda storage: Trainer(SETTINGS, storage_path=str(storage)).fit(), "watch page", SETTINGS)
    return placed(recorded, tmp_path)


@contextmanager
def serving(run: Path, control: bool = False) -> Iterator[WatchServer]:
    watcher = Watcher(str(run), None)
    with WatchServer(0, lambda: watcher.page, watcher.send if control else None) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class Answer(NamedTuple):
    status: int
    content: str
    headers: Any

    @property
    def said(self) -> str:
        return str(json.loads(self.content)["said"])


def asked(server: WatchServer, path: str, body: Any = None, **headers: str | None) -> Answer:
    """Ask as the page does, but for what is given otherwise; ``None`` leaves a header out."""
    own = {"Host": server.names[0], "X-Token": server.token, "Origin": f"http://{server.names[0]}"}
    given = own | {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(
        f"http://{server.names[0]}{path}",
        data=None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode(),
        headers={name: value for name, value in given.items() if value is not None},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return Answer(answer.status, answer.read().decode(), answer.headers)
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, error.read().decode(), error.headers)


def test_the_page_shows_the_last_state_of_a_run_that_has_ended(run: Path) -> None:
    with serving(run) as server:
        page = asked(server, "/", X_Token=None, Origin=None)
        assert page.status == 200
        assert server.token not in page.content
        assert run.name not in page.content
        state = json.loads(asked(server, "/state", Origin=None).content)
        assert (state["state"], state["run"], state["control"]) == ("finished", run.name, False)
        assert [one["step"] for one in state["agents"]] == [8, 8, 8]
        assert asked(server, "/config.yaml").status == 404
        assert asked(server, "/../config.yaml").status == 404


@pytest.mark.parametrize(
    "headers",
    [
        {"X_Token": None},
        {"X_Token": "x"},
        {"X_Token": "\u00fc"},
        {"Host": "example.org"},
        {"Host": "example.org:80"},
        {"Host": None},
    ],
    ids=str,
)
def test_who_has_another_address_sees_nothing_of_the_run(headers: dict[str, str | None], run: Path) -> None:
    with serving(run, control=True) as server:
        headers = {name: value.encode().decode("latin-1") if value else value for name, value in headers.items()}
        if "Host" in headers and headers["Host"] is None:
            headers["Host"] = ""
        answer = asked(server, "/state", **headers)
        assert answer.status == 403
        assert answer.said.startswith("refused: ")
        assert run.name not in answer.content
        assert asked(server, "/command", {"do": "heal"}, **headers).status == 403


@pytest.mark.parametrize("origin", [None, "null", "http://example.org", "https://{own}", "http://{own}.example.org"])
def test_commands_of_other_pages_are_refused(origin: str | None, run: Path) -> None:
    with serving(run, control=True) as server:
        given = None if origin is None else origin.replace("{own}", server.names[0])
        answer = asked(server, "/command", {"do": "heal"}, Origin=given)
        assert (answer.status, answer.said) == (403, "refused: another page has sent this")


def test_commands_need_control_and_a_running_run(run: Path) -> None:
    with serving(run) as server:
        answer = asked(server, "/command", {"do": "heal"})
        said = "refused: this page only shows; ray-pcasgd watch --control takes commands"
        assert (answer.status, answer.said) == (403, said)
    with serving(run, control=True) as server:
        assert json.loads(asked(server, "/state").content)["control"]
        answer = asked(server, "/command", {"do": "heal"})
        assert (answer.status, answer.said) == (200, "refused: the run is not running")


WRONG: list[Any] = [
    *({}, [], "heal", {"do": "leave", "agent": 1}, {"do": "join", "agent": "1"}, {"do": "join", "agent": True}),
    *({"do": "delay", "links": "0-1", "law": "nonsense"}, {"do": "delay", "links": "", "law": "1s"}),
    *({"do": "delay", "links": "0-0", "law": "1s"}, {"do": "delay", "between": "others", "law": "1s"}),
    *({"do": "delay", "links": "0-1", "law": "x" * 5000}, {"do": "delay", "links": "0-1"}, b"{", b"[" * 4000, b"\xff"),
]


@pytest.mark.parametrize("body", WRONG, ids=lambda body: repr(body)[:50])
def test_what_is_no_command_is_refused_in_one_line(body: Any, run: Path) -> None:
    with serving(run, control=True) as server:
        answer = asked(server, "/command", body)
        assert answer.status == (413 if "x" * 5000 in repr(body) else 400)
        assert re.fullmatch(r"refused: [^\n]+", answer.said)


@pytest.mark.parametrize("token", [None, "own"])
def test_who_sends_megabytes_gets_an_answer(token: str | None, run: Path) -> None:
    with serving(run, control=True) as server:
        given = {} if token else {"X_Token": None}
        answer = asked(server, "/command", b" " * (5 * 2**20), **given)
        assert answer.status == (413 if token else 403)
        assert answer.said == "refused: a command has up to 4096 bytes" or not token


@pytest.mark.parametrize("length", ["", "-1", "1e3", "9" * 5000])
def test_who_does_not_say_how_much_there_is_gets_an_answer(length: str, run: Path) -> None:
    with serving(run, control=True) as server, socket.create_connection(("127.0.0.1", server.server_port)) as client:
        header = f"Content-Length: {length}\r\n" if length else ""
        client.sendall(f"POST /command HTTP/1.1\r\nHost: {server.names[0]}\r\n{header}\r\n".encode())
        assert client.makefile("rb").readline().split()[1] == b"411"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"links": "0-1", "law": "-1s"}, "Delay '-1s': allowed are values from 0 on"),
        (
            {"links": "0-1", "law": "pareto(-2, 1s)"},
            "Delay 'pareto(-2, 1s)': shape = -2: allowed are values from 0.1 on",
        ),
        ({"links": "0-1", "law": "pareto(2)"}, "Delay 'pareto(2)': allowed is pareto(shape, scale)"),
        ({"between": "all", "law": "soon"}, "Delay 'soon': allowed are constant, uniform, exponential, "),
        ({"links": "2-2", "law": "1s"}, "Agents '2-2': allowed are two different agents"),
        ({"links": "-1-2", "law": "1s"}, "Agents '-1-2': allowed are two agents, such as 0-3"),
        ({"between": "some", "law": "1s"}, "Which links 'some': allowed are clusters and all"),
    ],
)
def test_a_field_is_called_as_the_page_calls_it(fields: dict[str, str], said: str, run: Path) -> None:
    with serving(run, control=True) as server:
        answer = asked(server, "/command", {"do": "delay", **fields})
        assert answer.status == 400
        assert answer.said.startswith(f"refused: {said}")
        for word in ("--", "delay.", "Value error", "input"):
            assert word not in answer.said
        label = answer.said.removeprefix("refused: ").partition(" '")[0]
        assert label.removesuffix("s") in re.sub("<[^>]+>", "\n", asked(server, "/").content).replace("\n ", "\n")


def test_what_a_page_sends_becomes_a_command() -> None:
    assert page_command({"do": "heal"}) == Heal()
    assert page_command({"do": "join", "agent": 2}) == Join(agent=2)
    on_links = page_command({"do": "delay", "links": "0-3 1-2", "law": "200ms"})
    assert isinstance(on_links, SetDelay)
    assert (on_links.entry.links, on_links.entry.unit) == (((0, 3), (1, 2)), "seconds")
    between = page_command({"do": "delay", "between": "clusters", "law": "10"})
    assert isinstance(between, SetDelay)
    assert (between.entry.between, between.entry.links, between.entry.unit) == ("clusters", None, "steps")


def test_the_page_asks_nobody_else_and_takes_no_text_for_html() -> None:
    text = resources.files("ray_pcasgd.report").joinpath("watch.html").read_text(encoding="utf-8")
    assert re.findall(r"https?://[^\"' ]+", text) == ["http://www.w3.org/2000/svg"]
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval|setTimeout\([\"'`]", text)
    assert not re.search(r"<[^>]+ (style|on\w+)=", text)
    assert "<script nonce" in text


def test_browsers_are_told_to_load_nothing_else_and_to_show_it_in_no_frame(run: Path) -> None:
    with serving(run) as server:
        headers = asked(server, "/").headers
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert f"script-src 'nonce-{server.nonce}'" in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{run}/none"], "{run}/none: no such folder, and this user has no run here that is running"),
        (["{run}/.."], "{run}/..: this user has no run here that is running"),
        (["{run}", "--port", "x"], "Invalid value for '--port'"),
        (["{run}", "--port", "65536"], "Invalid value for '--port'"),
        (["{run}", "--port", "{taken}"], "--port {taken}: cannot be listened on (Address already in use)"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_input_is_refused_in_one_line(
    arguments: list[str], said: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        places = {"run": str(run), "taken": str(other.getsockname()[1])}
        with pytest.raises(SystemExit) as ended:
            main(["watch", *(argument.format(**places) for argument in arguments)])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {said.format(**places)}")


def test_a_damaged_run_is_shown_as_far_as_that_is_possible(run: Path) -> None:
    (run / "metrics.parquet").write_bytes(b"PAR1 and nothing else")
    page = Watcher(str(run), None).page
    assert page["state"] == "not running"
    assert "metrics.parquet" in page["said"]
    (run / "config.yaml").unlink()
    with pytest.raises(SettingsError, match="it has its result already"):
        Watcher(str(run), None)


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on PATH")
@pytest.mark.parametrize(("local_steps", "unit"), [(1, "steps"), (2, "rounds")])
def test_a_browser_shows_the_run_and_obeys_nothing_that_comes_of_it(
    local_steps: int, unit: str, run: Path, tmp_path: Path
) -> None:
    settings = yaml.safe_load((run / "config.yaml").read_text()) | {"local_steps": local_steps}
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    event = {"time": 1.5, "kind": "noticed", "agent": 1, "step": 3, "detail": HOSTILE}
    with (run / "events.jsonl").open("a") as file:
        file.write(json.dumps(event) + "\n")
    assert CHROMIUM is not None
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    options += ["--disable-background-networking", "--disable-component-update", f"--user-data-dir={tmp_path / 'user'}"]
    with serving(run, control=True) as server:
        command = [CHROMIUM, *options, "--virtual-time-budget=3000", "--dump-dom", server.address]
        dumped = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    assert f"<title>{run.name}: finished</title>" in dumped
    assert '<strong id="state" class="good">finished</strong>' in dumped
    assert len(re.findall("<svg", dumped)) == 3
    assert len(re.findall(rf'title="agent \d read of \d: \d {unit} old"', dumped)) == 6
    assert ("Rounds of local steps by which what" in dumped) is (unit == "rounds")
    assert "step 8 of 8" in dumped
    assert "<img" not in dumped
    assert "&lt;img src=x" in dumped
    assert '<section id="change" hidden="">' in dumped
