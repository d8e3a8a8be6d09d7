"""Sweeps whose folder is on remote storage, a real S3 server: results, the page, going on after a kill, refusals."""

import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pandas as pd
import pytest
import yaml
from moto.server import ThreadedMotoServer

from ray_pcasgd.runs.settings.loading import SettingsError, load_config
from ray_pcasgd.runs.storage.names import make_room
from ray_pcasgd.runs.trainer import Trainer, fit_together
from ray_pcasgd.sweep.folder import SweepFolder
from ray_pcasgd.sweep.running import resume, sweep

BASE = {"engine": "local", "num_agents": 3, "num_steps": 20, "evaluate_every": 10, "task": {"model": {"hidden": [8]}}}


class RunsCode:
    """Makes a file when it is read with pickle."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return Path(self._path).touch, ()


class Bucket:
    """A bucket of a real server."""

    def __init__(self, host: str, port: int) -> None:
        self.options = f"?region=us-east-1&scheme=http&endpoint_override={host}:{port}"
        self.client = boto3.client(
            "s3",
            endpoint_url=f"http://{host}:{port}",
            aws_access_key_id="id",
            aws_secret_access_key="key",
            region_name="us-east-1",
        )
        self.client.create_bucket(Bucket="bucket")

    def read(self, key: str) -> bytes:
        return bytes(self.client.get_object(Bucket="bucket", Key=key)["Body"].read())

    def names(self) -> set[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket="bucket")
        return {item["Key"] for page in pages for item in page.get("Contents", ()) if not item["Key"].endswith("/")}


@pytest.fixture(scope="module")
def bucket() -> Iterator[Bucket]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        yield Bucket(*server.get_host_and_port())
    finally:
        server.stop()


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("batched", ["never", pytest.param("always", marks=pytest.mark.slow)])
def test_a_sweep_on_remote_storage_leaves_everything_there(batched: str, bucket: Bucket, tmp_path: Path) -> None:
    location = f"s3://bucket/sweeps/{batched}{bucket.options}"
    folder = f"sweeps/{batched}"
    settings = {
        "name": batched,
        "storage_path": f"s3://bucket/sweeps{bucket.options}",
        "config": BASE,
        "space": {"step_size": [0.05, 0.2]},
        "batched": batched,
        "max_concurrent": 1,  # in one process, one after another
    }
    result = sweep(settings)
    assert result.trials["error"].isna().all()
    assert result.trials["finished"].all()
    assert result.path == location
    for file in result.files:
        assert file.startswith("s3://")
        assert bucket.read(f"{folder}/{Path(file.partition('?')[0]).name}")
    table = pd.read_parquet(BytesIO(bucket.read(f"{folder}/trials.parquet")))
    pd.testing.assert_frame_equal(table, result.trials)
    assert b"The best point" in bucket.read(f"{folder}/report.html")
    assert result.best is not None
    assert yaml.safe_load(bucket.read(f"{folder}/best.yaml"))["step_size"]["value"] == result.best["step_size"]
    runs = {key.split("/")[3] for key in bucket.names() if key.startswith(f"{folder}/runs/")}
    assert runs == {path.partition("?")[0].rpartition("/")[2] for path in result.trials["path"]}
    assert all(f"{folder}/runs/{run}/metrics.parquet" in bucket.names() for run in runs)
    with pytest.raises(SettingsError, match=rf"^name = '{batched}': the sweep's folder s3://.* exists"):
        sweep(settings)
    # What is not as this user has left it, or lies elsewhere, may run a stranger's code.
    untrusted = (
        r": a sweep's files may run code, and this sweep is not known as started by this user here; allowed with"
    )
    with pytest.raises(SettingsError, match=untrusted):
        resume(f"{location}&allow_bucket_deletion=false")
    base = bucket.read(f"{folder}/base.yaml")
    bucket.client.put_object(Bucket="bucket", Key=f"{folder}/base.yaml", Body=base + b"\n# changed\n")
    with pytest.raises(SettingsError, match=untrusted):
        resume(location)
    bucket.client.put_object(Bucket="bucket", Key=f"{folder}/base.yaml", Body=base)
    held = SweepFolder.reopen(location)
    with pytest.raises(SettingsError, match=": is running; allowed is to go on with a sweep that has ended"):
        resume(location)
    held.close()
    for name, said in (("base.yaml", "its base.yaml is empty"), ("tuner.pkl", "cannot be read .UnpicklingError")):
        whole = bucket.read(f"{folder}/{name}")
        bucket.client.put_object(Bucket="bucket", Key=f"{folder}/{name}", Body=b"" if name == "base.yaml" else b"torn")
        with pytest.raises(SettingsError, match=said):
            resume(location, trust=True)
        bucket.client.put_object(Bucket="bucket", Key=f"{folder}/{name}", Body=whole)
    pickles = [name for name in bucket.names() if re.fullmatch(rf"{folder}/[^/]+\.(pkl|json)", name)]
    assert len(pickles) >= 2
    trial = next(name.split("/")[2] for name in bucket.names() if name.startswith(f"{folder}/run_trial"))
    for name in (*pickles, f"{folder}/searcher-state-9.pkl", f"{folder}/{trial}/error.pkl"):
        if name == f"{folder}/packs.json":
            continue
        whole = bucket.read(name) if name in bucket.names() else None
        bucket.client.put_object(Bucket="bucket", Key=name, Body=pickle.dumps(RunsCode(str(tmp_path / "run"))))
        told = f": {name.removeprefix(f'{folder}/')} is not as this user's sweep has left it, and may run code; allowed"
        with pytest.raises(SettingsError, match=re.escape(told)):
            resume(location)
        if whole is None:
            bucket.client.delete_object(Bucket="bucket", Key=name)
        else:
            bucket.client.put_object(Bucket="bucket", Key=name, Body=whole)
    assert not (tmp_path / "run").exists()
    again = resume(location)
    pd.testing.assert_frame_equal(again.trials, result.trials)
    with pytest.raises(SettingsError, match=r"^storage_path = 's3://none.*: cannot be written \(Bucket"):
        sweep(settings | {"storage_path": f"s3://none/sweeps{bucket.options}"})


def test_a_sweep_whose_folder_was_removed_keeps_its_place_as_long_as_it_runs(bucket: Bucket) -> None:
    storage, files = f"s3://bucket/sweeps{bucket.options}", {"sweep.yaml": "a: 1", "base.yaml": "b: 2"}
    running = SweepFolder.create(storage, "removed", files)
    for key in ("", *files):
        bucket.client.delete_object(Bucket="bucket", Key=f"sweeps/removed/{key}")
    with pytest.raises(SettingsError, match=": is running; allowed is to go on with a sweep that has ended"):
        SweepFolder.create(storage, "removed", files)
    assert not {key for key in bucket.names() if key.startswith("sweeps/removed/")}
    running.close()
    SweepFolder.create(storage, "removed", files).close()


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_population_exchanges_states_on_remote_storage(bucket: Bucket, tmp_path: Path) -> None:
    result = sweep(
        {
            "name": "population",
            "storage_path": f"s3://bucket/sweeps{bucket.options}",
            "config": BASE | {"num_steps": 30},
            "space": {"step_size": {"low": 0.01, "high": 1, "log": True}, "algorithm.theta": [0, 0.3, 0.6]},
            "search": {"name": "random", "num_points": 2},
            "scheduler": {"name": "population", "interval_steps": 10, "quantile": 0.5},
        }
    )
    assert result.trials["error"].isna().all()
    assert result.trials["finished"].all()
    best = yaml.safe_load(bucket.read("sweeps/population/best.yaml")) | {"storage_path": str(tmp_path)}
    again = Trainer(best).fit()
    assert again.metrics["test_accuracy"] == result.trials["test_accuracy"].max()


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_sweep_s_folder_may_be_named_by_a_location_on_this_machine(tmp_path: Path) -> None:
    result = sweep({"storage_path": f"file://{tmp_path}/sweeps", "config": BASE, "space": {"step_size": [0.05, 0.2]}})
    assert result.path == f"file://{tmp_path}/sweeps/sweep-1"
    assert result.trials["finished"].all()
    left = {path.name for path in (tmp_path / "sweeps" / "sweep-1").iterdir() if not path.name.startswith("run_trial")}
    assert {"best.yaml", "report.html", "trials.parquet", "runs"} <= left
    assert ".mark" not in left


@pytest.mark.slow
def test_an_interrupted_sweep_on_remote_storage_goes_on_to_the_same_table(bucket: Bucket, tmp_path: Path) -> None:
    base = BASE | {"num_steps": 300, "evaluate_every": 20}
    space = {"algorithm.theta": [0, 0.1, 0.2, 0.3, 0.4, 0.5]}
    file = tmp_path / "sweep.yaml"
    given = {"storage_path": f"s3://bucket/sweeps{bucket.options}", "name": "killed", "config": base, "space": space}
    file.write_text(yaml.safe_dump(given | {"checkpoint_seconds": 1e-3, "max_concurrent": 1}))
    command = [sys.executable, "-m", "ray_pcasgd", "sweep"]
    environment = os.environ | {"RAY_ADDRESS": ""}
    location = f"s3://bucket/sweeps/killed{bucket.options}"
    with subprocess.Popen([*command, str(file)], env=environment, start_new_session=True) as process:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not any(key.endswith(".pt") for key in bucket.names()):
            pass
        os.killpg(process.pid, signal.SIGKILL)
    assert "sweeps/killed/trials.parquet" not in bucket.names()
    subprocess.run([*command, location, "--resume"], env=environment, check=True)
    resumed = pd.read_parquet(BytesIO(bucket.read("sweeps/killed/trials.parquet")))
    assert resumed["finished"].all()
    changes = [{"algorithm": {"theta": theta}, "name": f"{theta}"} for theta in space["algorithm.theta"]]
    whole = fit_together([load_config(base, changes=own | {"storage_path": str(tmp_path)}) for own in changes])
    metrics = ["test_loss", "test_accuracy", "consensus_distance"]
    np.testing.assert_allclose(resumed[metrics], [[run.metrics[name] for name in metrics] for run in whole], rtol=1e-4)
    own = [key for key in bucket.names() if key.startswith("sweeps/killed/runs/")]
    assert sum(key.endswith("/metrics.parquet") for key in own) == 6
    assert any(b"resumed" in bucket.read(key) for key in own if key.endswith("/events.jsonl"))
    assert not any(key.endswith(".pt") for key in bucket.names())


def test_room_is_made_on_remote_storage_for_a_run_that_begins_again(bucket: Bucket, tmp_path: Path) -> None:
    storage = f"s3://bucket/room{bucket.options}"
    for name in ("first", "second"):
        Trainer(BASE, storage_path=storage, name=name, checkpoint={"every_evaluations": 1}).fit()
    bucket.client.put_object(Bucket="bucket", Key="room/second/notes.txt", Body=b"precious")
    bucket.client.put_object(Bucket="bucket", Key="room/third/notes.txt", Body=b"precious")
    make_room(storage, "first")
    make_room(storage, "none")
    with pytest.raises(ValueError, match=r"room/second\?.*: holds other files than a run's"):
        make_room(storage, "second")
    with pytest.raises(ValueError, match=r"room/third\?.*: is no run folder; allowed are folders with a config.yaml"):
        make_room(storage, "third")
    left = {key for key in bucket.names() if key.startswith("room/")}
    assert left == {"room/second/notes.txt", "room/third/notes.txt"}
    assert Trainer(BASE, storage_path=storage, name="first").fit().error is None
