"""What Weights & Biases writes offline, read back from its own file; nothing reaches the network."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from wandb.proto.wandb_internal_pb2 import Record

from ray_pcasgd import WandB
from ray_pcasgd.runs.interrupting import RunInterrupted
from tests.unit.runs.trackers.tracked import MEASURED, Interrupting, expected, tracked


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("WANDB_SILENT", "true")
    # Wherever a test would ask for it.
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    yield
    wandb.teardown()


def records(folder: Path) -> list[Record]:
    """Return the records of a run's file, which is a log in LevelDB's format after a header of seven bytes."""
    wandb.teardown()  # the process that writes it has ended then
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    content, place, data, found = file.read_bytes(), 7, b"", []
    assert content.startswith(b":W&B")
    while place + 7 <= len(content):
        if (left := -place % 32768) and left < 7:
            place += left  # the end of a block is too short for the header of a piece
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + 7])
        data += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # the whole of a record, or its last piece
            found.append(Record.FromString(data))
            data = b""
    return found


def history(found: list[Record]) -> list[dict[str, Any]]:
    logged = [record.history.item for record in found if record.HasField("history")]
    return [{item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items} for items in logged]


def test_everything_of_a_run_can_be_read_back_from_the_folder_for_offline_runs(tmp_path: Path) -> None:
    result = tracked(WandB(project="mine", folder=tmp_path), tmp_path)
    found = records(tmp_path)
    rows = history(found)
    for name in MEASURED:
        for key, values in expected(result, name).items():
            assert [(row["step"], row[key]) for row in rows if key in row] == values, key
    event = next(row for row in rows if "event/kind" in row)
    told = [event[name] for name in ("event/kind", "event/agent", "event/detail", "step")]
    assert told == ["noticed", 1, "something | noticed", 2]
    (run,) = (record.run for record in found if record.HasField("run"))
    settings = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert (run.project, run.display_name) == ("mine", "first")
    assert (settings["algorithm.name"], settings["num_steps"]) == ("pc-asgd", 6)
    assert summary(found)["status"] == "finished"
    assert [record.exit.exit_code for record in found if record.HasField("exit")] == [0]


def summary(found: list[Record]) -> dict[str, Any]:
    items = [item for record in found if record.HasField("summary") for item in record.summary.update]
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def test_the_end_of_an_interrupted_run_is_said(tmp_path: Path) -> None:
    with pytest.raises(RunInterrupted):
        tracked(WandB(folder=tmp_path), tmp_path, Interrupting())
    found = records(tmp_path)
    assert summary(found)["status"] == "interrupted"
    assert [record.exit.exit_code for record in found if record.HasField("exit")] == [1]
