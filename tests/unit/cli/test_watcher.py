"""What follows a run for its page: runs that are on no cluster, and clusters that do not answer for a while."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from ray.core.generated import gcs_service_pb2

from ray_pcasgd import Trainer
from ray_pcasgd.cli.watcher import Watcher
from ray_pcasgd.engines.live.commands import Heal
from ray_pcasgd.engines.ray.board import board_at
from ray_pcasgd.engines.ray.control import Connection
from ray_pcasgd.engines.ray.discovery import NoAnswerError, NotRunningError
from ray_pcasgd.engines.ray.naming import Identity
from ray_pcasgd.runs.callbacks import Callback
from tests.unit.recorded_runs import once, placed

SETTINGS = {"num_agents": 3, "num_steps": 8, "evaluate_every": 4, "engine": "local", "links": [{"delay": 2}]}
messages: Any = gcs_service_pb2


@pytest.fixture(autouse=True)
def no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


class Looking(Callback):
    """Opens a page about the run at its first evaluation."""

    def __init__(self) -> None:
        self.folder = Path()
        self.page: dict[str, Any] = {}
        self.refusal = ""

    def on_start(self, plan: Any, path: Path) -> None:
        self.folder = path

    def on_evaluation(self, rows: Any) -> None:
        if not self.page:
            watcher = Watcher(str(self.folder), None)
            self.page, self.refusal = watcher.page, watcher.send(Heal())


def test_a_run_on_the_local_engine_is_running_while_it_is(tmp_path: Path) -> None:
    looking = Looking()
    result = Trainer(SETTINGS, storage_path=str(tmp_path), name="first", callbacks=[looking]).fit()
    page = looking.page
    assert (page["state"], page["run"], page["mode"], page["agents"]) == ("running", "first", "local", [])
    assert page["said"] == (
        f"{result.path}: is running, with no agents on a cluster: on the local engine, or it is starting or ending; "
        "its folder has its events, and figures once it has ended"
    )
    assert looking.refusal == "refused: the run has no agents on a cluster, which commands are for"
    over = Watcher(str(result.path), None)
    assert over.page["state"] == "finished"
    assert over.send(Heal()) == "refused: the run is not running"


class Head:
    """A cluster's head that has one run, and leaves some questions without an answer."""

    def __init__(self) -> None:
        self.unanswered = 0
        """How many questions, from now on."""
        self.is_there = True
        self.ended = threading.Event()

    def ListNamedActors(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802 - its name on the wire
        if self.unanswered:
            self.unanswered -= 1
            self.ended.wait()
        actors = [{"ray_namespace": "x", "name": "y"}] if self.is_there else []
        return messages.ListNamedActorsReply(named_actors_list=actors)

    def InternalKVGet(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        return messages.InternalKVGetReply(value=b"")


@contextmanager
def connected(head: Head) -> Iterator[Connection]:
    server = grpc.server(ThreadPoolExecutor(8))
    services = {"ray.rpc.ActorInfoGcsService": "ListNamedActors", "ray.rpc.InternalKVGcsService": "InternalKVGet"}
    for service, name in services.items():
        reads = getattr(messages, f"{name}Request").FromString
        writes = getattr(messages, f"{name}Reply").SerializeToString
        method = grpc.unary_unary_rpc_method_handler(getattr(head, name), reads, writes)
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, {name: method})])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with board_at(f"127.0.0.1:{port}", Identity("/runs/first"), 1.0) as board:
            yield Connection("/runs/first", board)
    finally:
        head.ended.set()
        server.stop(None).wait()


@pytest.fixture
def watcher(tmp_path: Path) -> Watcher:
    recorded, _ = once(lambda storage: Trainer(SETTINGS, storage_path=str(storage)).fit(), "watch page", SETTINGS)
    return Watcher(str(placed(recorded, tmp_path)), None)


def test_a_question_without_an_answer_is_asked_again(watcher: Watcher) -> None:
    head, before = Head(), watcher.page
    with connected(head) as connection:
        head.unanswered = 2
        assert watcher._answered(connection) == {}
    assert head.unanswered == 0
    assert watcher.page == {**before, "said": watcher.page["said"]}
    assert watcher.page["said"].startswith("no answer, asking again: /runs/first: cannot be reached (no answer within")


def test_a_cluster_that_does_not_answer_is_called_so_and_a_run_that_is_gone_at_once(watcher: Watcher) -> None:
    head = Head()
    with connected(head) as connection:
        head.unanswered = 3
        with pytest.raises(NoAnswerError) as silent:
            watcher._answered(connection)
        assert head.unanswered == 0
        head.is_there = False
        with pytest.raises(NotRunningError, match="is not running on that cluster") as gone:
            watcher._answered(connection)
    result = watcher._folder / "result.json"
    result.unlink()
    states = []
    for error in (silent.value, gone.value):
        watcher._show_files(error)
        states.append((watcher.page["state"], watcher.send(Heal())))
    assert states == [
        ("no answer", "refused: the run's cluster does not answer"),
        ("not running", "refused: the run is not running"),
    ]
