"""Runs on an S3 server: what is sent when, and all that can be done with a run by its location."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import boto3
import pytest
from moto.server import ThreadedMotoServer

from ray_pcasgd import Trainer, evaluate
from ray_pcasgd.base.errors import SettingsError
from ray_pcasgd.cli.watcher import Watcher
from ray_pcasgd.runs.trainer import resume
from tests.comparing import assert_same_to_the_bit
from tests.unit.interrupted_runs import (
    KEEPING,
    SMALL,
    LeaveError,
    Noting,
    assert_as_undisturbed,
    command,
    leave,
    undisturbed,
)


class Server(NamedTuple):
    """A server with one bucket, which remembers each version of an object."""

    client: Any
    options: str

    def at(self, key: str) -> str:
        return f"s3://bucket/{key}{self.options}"

    def written(self, prefix: str) -> Counter[str]:
        """Return how often each file below a folder was written, also those that are gone."""
        found = self.client.list_object_versions(Bucket="bucket", Prefix=f"{prefix}/").get("Versions", [])
        return Counter(item["Key"].removeprefix(f"{prefix}/") for item in found if not item["Key"].endswith("/"))

    def there(self, prefix: str) -> set[str]:
        found = self.client.list_objects_v2(Bucket="bucket", Prefix=f"{prefix}/").get("Contents", [])
        return {item["Key"].removeprefix(f"{prefix}/") for item in found if not item["Key"].endswith("/")}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    running = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    client = boto3.client("s3", endpoint_url=f"http://{host}:{port}")
    client.create_bucket(Bucket="bucket")
    client.put_bucket_versioning(Bucket="bucket", VersioningConfiguration={"Status": "Enabled"})
    yield Server(client, f"?region=us-east-1&scheme=http&endpoint_override={host}:{port}")
    running.stop()


def test_what_is_there_is_not_sent_again_and_what_is_dropped_here_is_dropped_there(server: Server) -> None:
    settings = SMALL | {"checkpoint": {"state_seconds": 0, "every_evaluations": 1, "num_to_keep": 2}}
    with pytest.raises(LeaveError):
        Trainer(settings, storage_path=server.at("sent"), callbacks=[Noting(15, leave)]).fit()
    kept = server.there("sent/first")
    assert {name for name in kept if name.startswith("checkpoints/")} == {
        f"checkpoints/step_000000{step}/{file}"
        for step in ("05", "10")
        for file in ("metrics.json", "model.safetensors")
    }
    again = resume(server.at("sent/first"))
    assert_as_undisturbed(again, checkpoint=settings["checkpoint"])
    counts = server.written("sent/first")
    whole = {name: number for name, number in counts.items() if name.startswith(("checkpoints/", "states/"))}
    assert len(whole) >= 4 * 3
    assert set(whole.values()) == {1}
    kept = server.there("sent/first")
    assert {name.split("/")[1] for name in kept if name.startswith("checkpoints/")} == {
        "step_00000015",
        "step_00000020",
    }


def test_a_run_is_replayed_drawn_and_tested_by_its_location(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    here = undisturbed(tmp_path / "here", **KEEPING)
    run = Trainer(SMALL | KEEPING, storage_path=server.at("by")).fit()
    location = server.at("by/first")
    assert run.path == location
    status, out, _ = command(["replay", location, "--name", "second", "--set", "algorithm=d-asgd"], capsys)
    assert (status, out[-1]) == (0, f"report {server.at('by/second/report.html')}")
    assert {"config.yaml", "result.json", "report.html"} <= server.there("by/second")
    direct = SMALL | KEEPING | {"name": "third", "algorithm": "d-asgd", "storage_path": str(tmp_path / "here")}
    expected = Trainer(direct, schedule=str(here / "schedule.parquet")).fit()
    found = Trainer(direct | {"name": "fourth"}, schedule=server.at("by/first/schedule.parquet")).fit()
    assert_same_to_the_bit(found, expected)
    assert command(["report", location], capsys)[1] == [f"report: {server.at('by/first/report.html')}"]
    assert "report.html" in server.there("by/first")
    page = tmp_path / "both.html"
    assert command(["report", location, str(here), "--output", str(page)], capsys)[0] == 0
    assert page.is_file()
    assert evaluate(location, 10).metrics == evaluate(str(here), 10).metrics
    watcher = Watcher(location, None)
    assert (watcher.page["state"], watcher.page["run"]) == ("finished", "first")
    assert watcher.page["tested"][-1]["figures"]["test_accuracy"] == run.metrics["test_accuracy"]
    assert [one["step"] for one in watcher.page["agents"]] == [SMALL["num_steps"]] * SMALL["num_agents"]
    watcher.start()
    watcher.close()
    with pytest.raises(SettingsError, match=r"by/none.*: is no run folder; allowed are folders with a config.yaml"):
        Watcher(server.at("by/none"), None)
    assert not list(tmp_path.glob("s3*"))


def test_whoever_sees_a_result_finds_the_rest_there(tmp_path: Path) -> None:
    Trainer(SMALL, storage_path=f"file://{tmp_path}/sent").fit()
    written = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "sent" / "first").iterdir() if path.is_file()}
    assert {"config.yaml", "metrics.parquet", "schedule.parquet"} <= written.keys()
    assert max(written, key=written.__getitem__) == "result.json"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["replay", "{}"], "{}: is no run folder; allowed are folders with a config.yaml"),
        (["report", "{}"], "{}: is no run folder; allowed are folders with a config.yaml"),
        (["evaluate", "{}"], "{}: is no run folder; allowed are folders with a config.yaml"),
        (["train", "--set", "schedule={}"], "schedule = '{}': no such file; allowed is the schedule.parquet of a run"),
    ],
)
def test_what_is_not_there_is_named(
    arguments: list[str], told: str, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    location = server.at("nowhere/first")
    status, _, err = command([one.format(location) for one in arguments], capsys)
    assert (status, err) == (2, [f"error: {told.format(location)}"])


def test_a_bucket_that_is_not_there_is_named_where_one_reads(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    location = server.at("runs/first").replace("bucket", "none", 1)
    for arguments, told in (
        (["report", location], f"error: {location}: "),
        (["train", "--set", f"schedule={location}"], f"error: schedule = '{location}': "),
    ):
        status, _, (line,) = command(arguments, capsys)
        assert status == 2
        assert line.startswith(told)
