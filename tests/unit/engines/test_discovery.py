"""Commands go to clusters that the user has named, or on which a run of his is running; never where a folder says."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_pcasgd.cli.app import main
from ray_pcasgd.engines.ray.discovery import (
    NoClusterError,
    NotRunningError,
    address_of,
    driven,
    host_and_port,
    is_loopback,
    location_of,
    noted,
)


@pytest.fixture(autouse=True)
def state(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("state")
    monkeypatch.setenv("XDG_STATE_HOME", str(folder))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return folder


def noted_address(run: str) -> str | None:
    """Return the address that a run's driver has noted, if commands would go there."""
    try:
        return address_of(run).address
    except NotRunningError:
        return None


class Listener:
    """Notes whether anybody comes to a port of this machine."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.socket.getsockname()[1]}"
        self.came = 0
        self.thread = threading.Thread(target=self.accept)
        self.thread.start()

    def accept(self) -> None:
        while True:
            connection, _ = self.socket.accept()
            with connection:
                if connection.recv(4) == b"done":
                    return
            self.came += 1

    def close(self) -> int:
        with socket.create_connection(self.socket.getsockname()) as connection:
            connection.sendall(b"done")
        self.thread.join()
        self.socket.close()
        return self.came


@pytest.fixture
def listener() -> Iterator[Listener]:
    listener = Listener()
    yield listener
    if listener.thread.is_alive():
        listener.close()


def folder_that_names(path: Path, address: str) -> Path:
    path.mkdir()
    (path / "config.yaml").write_text("num_agents: 2\n")
    event = {"time": 0.1, "kind": "cluster_joined", "agent": -1, "step": -1, "detail": address}
    (path / "events.jsonl").write_text(json.dumps(event) + "\n")
    return path


def complaint(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


@pytest.mark.parametrize(
    "command", [["status"], ["delay", "--heal"], ["leave", "--agent", "1"], ["join", "--agent", "1"]]
)
def test_where_a_folder_says_nobody_comes(
    command: list[str], tmp_path: Path, listener: Listener, capsys: pytest.CaptureFixture[str]
) -> None:
    run = folder_that_names(tmp_path / "run", listener.address)
    name, *options = command
    line = complaint(capsys, name, str(run), *options)
    assert line == (
        f"{run}: this user has no run here that is running; its events.jsonl names the cluster {listener.address}: "
        f"if you know that one, --address {listener.address}"
    )
    assert listener.close() == 0


@pytest.mark.parametrize(
    "content",
    [
        b"[1, 2]\n3\nnull\n",
        b'{"kind": "cluster_joined", "detail": ["1.2.3.4:5"]}\n',
        b'{"kind": "cluster_joined"}\n',
        b'{"kind": ["cluster_joined"], "detail": "1.2.3.4:5"}\n',
        b'{"kind": "cluster_joined", "detail": "$(rm -rf ~):5"}\n',
        b'{"kind": "cluster_joined", "detail": "1.2.3.4:5\\u001b[2J; reboot"}\n',
        b"\xff\xfe\x00\x01\n",
        b"[" * 100_000 + b"\n",
        b'{"kind": "' + b"x" * 3_000_000 + b'"}\n',
        b'{"kind": "cluster_joined", "detail": "1.2.3.4:5", "time": ' + b"9" * 5000 + b"}\n",
    ],
    ids=["lists", "list", "none", "kind", "shell", "escape", "bytes", "deep", "long", "number"],
)
def test_any_events_are_survived_in_one_line(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = folder_that_names(tmp_path / "run", "x")
    (run / "events.jsonl").write_bytes(content)
    assert complaint(capsys, "status", str(run)) == f"{run}: this user has no run here that is running"


def test_a_run_that_has_ended_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = folder_that_names(tmp_path / "run", "127.0.0.1:4001")
    (run / "result.json").write_text("{}")
    said = f"{run}: this user has no run here that is running; it has its result already"
    assert complaint(capsys, "status", str(run)) == said


def test_a_torn_last_line_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = folder_that_names(tmp_path / "run", "192.0.2.7:6379")
    with (run / "events.jsonl").open("a") as file:
        file.write('{"time": 3.1, "kind": "agent_lo')
    assert "names the cluster 192.0.2.7:6379" in complaint(capsys, "status", str(run))


def test_events_that_are_a_pipe_are_not_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = folder_that_names(tmp_path / "run", "x")
    (run / "events.jsonl").unlink()
    os.mkfifo(run / "events.jsonl")
    assert complaint(capsys, "status", str(run)) == f"{run}: this user has no run here that is running"


def test_a_run_is_noted_for_as_long_as_it_is_running(tmp_path: Path, state: Path) -> None:
    one, other = tmp_path / "a" / "run", tmp_path / "b" / "run"
    with noted(str(one), "127.0.0.1:4001"), noted(str(other), "127.0.0.1:4002"):
        assert address_of(str(one)) == ("its cluster", "127.0.0.1:4001")
        assert address_of(str(other)) == ("its cluster", "127.0.0.1:4002")
        assert noted_address(str(tmp_path / "c" / "run")) is None
        notes = list((state / "ray-pcasgd" / "running").iterdir())
        assert [stat.S_IMODE(note.stat().st_mode) for note in notes] == [0o600] * 2
        assert stat.S_IMODE(notes[0].parent.stat().st_mode) == 0o700
    assert list((state / "ray-pcasgd" / "running").iterdir()) == []
    with pytest.raises(NotRunningError, match="no run here that is running"):
        address_of(str(one))


def test_a_remote_location_is_known_with_and_without_a_slash() -> None:
    with noted("s3://bucket/runs/first", "192.0.2.2:6379"):
        assert address_of("s3://bucket/runs/first/").address == "192.0.2.2:6379"


def test_what_is_given_comes_before_what_is_noted_and_that_before_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.9:1")
    with noted(str(tmp_path), "127.0.0.1:4001"):
        assert address_of(str(tmp_path), "auto") == ("--address", "auto")
        assert address_of(str(tmp_path)) == ("its cluster", "127.0.0.1:4001")
    assert address_of(str(tmp_path)) == ("RAY_ADDRESS", "192.0.2.9:1")


def test_a_second_driver_of_one_run_leaves_the_first_one_s_note(tmp_path: Path) -> None:
    with noted(str(tmp_path), "127.0.0.1:4001"):
        with noted(str(tmp_path), "127.0.0.1:4002"):
            assert noted_address(str(tmp_path)) == "127.0.0.1:4001"
        assert noted_address(str(tmp_path)) == "127.0.0.1:4001"


DRIVER = """
import sys
from ray_pcasgd.engines.ray.discovery import noted
with noted(sys.argv[1], sys.argv[2]):
    print("noted", flush=True)
    sys.stdin.read()
"""


def test_nobody_comes_to_the_port_of_a_driver_that_was_killed(
    tmp_path: Path, listener: Listener, capsys: pytest.CaptureFixture[str], state: Path
) -> None:
    run = folder_that_names(tmp_path / "run", listener.address)
    command = [sys.executable, "-c", DRIVER, str(run), listener.address]
    driver = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    assert driver.stdin is not None
    assert driver.stdout.readline() == "noted\n"
    assert noted_address(str(run)) == listener.address
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    driver.stdin.close()
    driver.stdout.close()
    said = complaint(capsys, "status", str(run))
    assert said == f"{run}: its driver has ended; ray-pcasgd train --resume goes on with it"
    assert listener.close() == 0
    (state / "ray-pcasgd" / "running" / "mine.txt").write_text("kept")
    with noted(str(tmp_path / "another"), "127.0.0.1:4001"):
        names = {path.name for path in (state / "ray-pcasgd" / "running").iterdir()}
        assert len(names) == 2
        assert "mine.txt" in names


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"location": 1}', b'{"location": "x", "address": "a b"}'])
def test_a_note_that_is_damaged_is_none(content: bytes, tmp_path: Path, state: Path) -> None:
    with noted(str(tmp_path), "127.0.0.1:4001"):
        (note,) = (state / "ray-pcasgd" / "running").iterdir()
        note.write_bytes(content)
        assert noted_address(str(tmp_path)) is None


def test_loopback_is_another_one_on_another_machine(
    tmp_path: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with noted(str(tmp_path / "a"), "127.0.0.1:4001"), noted(str(tmp_path / "b"), "192.0.2.1:6379"):
        monkeypatch.setattr("platform.node", lambda: "another")
        with pytest.raises(NotRunningError, match="no run here that is running"):
            address_of(str(tmp_path / "a"))
        assert noted_address(str(tmp_path / "b")) == "192.0.2.1:6379"


def test_a_run_goes_on_where_nothing_can_be_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    with noted(str(tmp_path), "127.0.0.1:4001"):
        assert noted_address(str(tmp_path)) is None


def test_a_folder_of_notes_is_no_link_and_nobody_else_s(tmp_path: Path, state: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (state / "ray-pcasgd").mkdir()
    (state / "ray-pcasgd" / "running").symlink_to(tmp_path / "elsewhere")
    with noted(str(tmp_path), "127.0.0.1:4001"):
        assert list((tmp_path / "elsewhere").iterdir()) == []
    (state / "ray-pcasgd" / "running").unlink()
    (state / "ray-pcasgd" / "running").mkdir(mode=0o777)
    (state / "ray-pcasgd" / "running").chmod(0o777)
    with noted(str(tmp_path), "127.0.0.1:4001"):
        assert stat.S_IMODE((state / "ray-pcasgd" / "running").stat().st_mode) == 0o700


@pytest.mark.parametrize("address", ["head:6379", "192.0.2.1:1024", "[2001:db8::1]:6379", "127.0.0.1:65535"])
def test_addresses(address: str) -> None:
    host, port = host_and_port("engine.address", address)
    assert address in (f"{host}:{port}", f"[{host}]:{port}")


@pytest.mark.parametrize(
    "address",
    ["", "head", "head:", ":6379", "head:0", "head:65536", "ray://head:10001", "a b:1", "h:1\n", "u@h:1", "$(x):1"],
)
def test_other_texts_are_no_addresses(address: str) -> None:
    with pytest.raises(ValueError, match="allowed are host:port") as caught:
        host_and_port("engine.address", address)
    assert str(caught.value).startswith(f"engine.address = {address!r}: ")


def test_loopback() -> None:
    addresses = ["127.0.0.1:1", "127.8.0.1:1", "localhost:1", "[::1]:1", "192.0.2.1:1", "head:1"]
    assert [is_loopback(address) for address in addresses] == [True, True, True, True, False, False]


def test_a_run_that_a_driver_has_is_running_though_it_is_on_no_cluster(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with driven(location_of(str(run))):
        told = "is running, with no agents on a cluster: on the local engine, or it is starting or ending"
        assert complaint(capsys, "status", str(run)) == f"{run}: {told}"
        with noted(location_of(str(run)), "192.0.2.2:6379"):
            assert address_of(str(run)).address == "192.0.2.2:6379"
        with pytest.raises(NoClusterError):
            address_of(str(run))
        with pytest.raises(NotRunningError, match="this user has no run here that is running"):
            address_of(str(tmp_path))
    assert complaint(capsys, "status", str(run)) == f"{run}: this user has no run here that is running"
