"""Whatever answers at a cluster's address, or does not: one line within seconds, before a run has a folder."""

import http.server
import os
import socket
import sys
import threading
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import ray

from ray_pcasgd.engines.base import RunError
from ray_pcasgd.engines.ray import joining
from ray_pcasgd.engines.ray.cluster import Known
from ray_pcasgd.engines.ray.joining import ClusterError, open_address, own_cluster, started_last
from ray_pcasgd.runs.comparison import METHODS, compare
from ray_pcasgd.runs.settings.loading import SettingsError, load_config
from ray_pcasgd.runs.trainer import Trainer
from ray_pcasgd.sweep import running as sweep


@pytest.fixture
def closed() -> str:
    """Return an address at which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def silent() -> Iterator[str]:
    """Yield an address at which somebody listens, and never says anything."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@contextmanager
def web_server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


class Closed(grpc.GenericRpcHandler):
    """A server that asks for a token, as Ray's does, and notes what it is shown."""

    def __init__(self) -> None:
        self.shown: list[Any] = []

    def service(self, details: Any) -> Any:
        self.shown.append(details.invocation_metadata)

        def refuse(request: bytes, context: Any) -> bytes:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken: missing or incorrect")
            raise AssertionError

        return grpc.unary_unary_rpc_method_handler(refuse)


def test_an_address_at_which_nobody_answers(closed: str) -> None:
    with pytest.raises(ClusterError) as caught:
        open_address("RAY_ADDRESS", closed)
    assert str(caught.value) == f"RAY_ADDRESS = '{closed}': no Ray cluster answers there (connection refused)"


def test_an_address_at_which_somebody_is_silent(silent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "ANSWER_SECONDS", 0.5)
    with pytest.raises(ClusterError, match=r"no Ray cluster answers there \(no answer within 0.5 s\)"):
        open_address("--address", silent)


def test_an_address_at_which_something_else_answers() -> None:
    with web_server() as address, pytest.raises(ClusterError, match="another kind of server answers there"):
        open_address("--address", address)


def test_a_host_that_is_none() -> None:
    with pytest.raises(ClusterError, match=r"no Ray cluster answers there \("):
        open_address("--address", "nowhere.invalid:6379")


def test_a_cluster_is_not_shown_a_token_before_it_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret" * 8)
    handler = Closed()
    server = grpc.server(futures.ThreadPoolExecutor(1), handlers=[handler])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with pytest.raises(ClusterError) as caught:
            open_address("RAY_ADDRESS", f"127.0.0.1:{port}")
    finally:
        server.stop(None).wait()
    # The tests' own switch keeps it back.
    assert str(caught.value).endswith("asks for a token; allowed with it is RAY_AUTH_MODE=token, not disabled")
    assert len(handler.shown) == 1
    assert "secret" not in str(handler.shown)
    assert "authorization" not in str(handler.shown)


@pytest.mark.parametrize("address", ["head", "ray://head:10001", "http://head:8265", ""])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(ValueError, match="allowed are host:port, and auto"):
        open_address("RAY_ADDRESS", address)


def test_auto_is_one_s_own_cluster_alone() -> None:
    assert own_cluster("x", {"a:1", "b:2"}, "b:2") == "b:2"
    assert own_cluster("x", {"a:1"}, "gone:3") == "a:1"
    assert own_cluster("x", {"a:1"}, None) == "a:1"
    with pytest.raises(ClusterError, match="this user runs several clusters here; allowed are a:1, b:2"):
        own_cluster("x", {"b:2", "a:1"}, None)
    with pytest.raises(ClusterError, match="this user runs no Ray cluster on this machine"):
        own_cluster("x", set(), "gone:3")


def test_the_note_of_ray_start_counts_where_it_is_one_s_own_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert started_last() is None
    (tmp_path / "ray").mkdir()
    note = tmp_path / "ray" / "ray_current_cluster"
    note.write_text("192.0.2.1:6379\n")
    assert started_last() == "192.0.2.1:6379"
    note.rename(tmp_path / "elsewhere")
    note.symlink_to(tmp_path / "elsewhere")
    assert started_last() is None
    note.unlink()
    os.mkfifo(note)
    assert started_last() is None


def test_workers_look_for_modules_where_this_process_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", ["/packages"])
    known = Known()
    known.extend(["/packages", str(tmp_path)])
    assert known == ["/packages"]
    monkeypatch.setattr(sys, "path", ["", "/packages"])
    known.extend([str(tmp_path)])
    assert known == ["/packages", str(tmp_path)]


RAY: dict[str, Any] = {"num_agents": 2, "num_steps": 2, "evaluate_every": 2, "name": "mine"}


@pytest.fixture
def on_no_cluster() -> None:
    if ray.is_initialized():  # where all tests run in one process, others have started one
        pytest.skip("this process is on a cluster already")


def settings(tmp_path: Path, **engine: Any) -> dict[str, Any]:
    return {**RAY, "engine": {"name": "ray", **engine}, "storage_path": str(tmp_path / "runs")}


@pytest.mark.usefixtures("on_no_cluster")
def test_a_run_without_its_cluster_has_no_folder(tmp_path: Path, closed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunError, match=r"engine.address = .* no Ray cluster answers there"):
        Trainer(settings(tmp_path, address=closed)).fit()
    monkeypatch.setenv("RAY_ADDRESS", closed)
    with pytest.raises(RunError, match=r"RAY_ADDRESS = .* no Ray cluster answers there"):
        Trainer(settings(tmp_path)).fit()
    with pytest.raises(RunError, match=r"RAY_ADDRESS = .* no Ray cluster answers there"):
        compare(load_config(settings(tmp_path)), METHODS[:1], num_seeds=1)
    own = {name: value for name, value in settings(tmp_path).items() if name != "name"}
    swept = {"config": own, "space": {"step_size": [0.1, 0.2]}, "storage_path": str(tmp_path / "runs")}
    with pytest.raises(RunError, match=r"RAY_ADDRESS = .* no Ray cluster answers there"):
        sweep.sweep(swept)
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    with pytest.raises(SettingsError, match=r"RAY_ADDRESS = 'ray://head:10001': allowed are host:port, and auto"):
        Trainer(settings(tmp_path)).fit()
    assert not (tmp_path / "runs").exists()


def test_an_address_of_another_form_is_refused_with_the_settings(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"engine.address = 'head': allowed are host:port, and auto"):
        load_config(settings(tmp_path, address="head"))


@pytest.mark.usefixtures("on_no_cluster")
@pytest.mark.parametrize("gigabytes", [1e6, 1e300])
def test_a_store_that_is_larger_than_the_machine_is_refused(tmp_path: Path, gigabytes: float) -> None:
    with pytest.raises(
        SettingsError, match=r"engine.object_store_gigabytes = 1e\+.*: allowed are values up to .*, this"
    ):
        Trainer(settings(tmp_path, object_store_gigabytes=gigabytes)).fit()
    assert not (tmp_path / "runs").exists()
