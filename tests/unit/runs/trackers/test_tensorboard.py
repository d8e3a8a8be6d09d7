"""TensorBoard's own reader finds what the tracker wrote."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ray_pcasgd import TensorBoard
from ray_pcasgd.runs.interrupting import RunInterrupted
from tests.unit.runs.trackers.tracked import MEASURED, Interrupting, expected, tracked


def read(folder: Path) -> Any:
    with warnings.catch_warnings():
        # Of the protocol buffers that tensorboard was generated with.
        warnings.simplefilter("ignore", DeprecationWarning)
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        return EventAccumulator(str(folder), size_guidance={"tensors": 0, "scalars": 0}).Reload()


def text(found: Any, tag: str) -> str:
    return str(found.Tensors(f"{tag}/text_summary")[0].tensor_proto.string_val[0].decode())


def test_everything_of_a_run_can_be_read_back(tmp_path: Path) -> None:
    result = tracked(TensorBoard(), tmp_path)
    found = read(tmp_path / "first" / "tensorboard")
    for name in MEASURED:
        for tag, values in expected(result, name).items():
            read_back = [(event.step, event.value) for event in found.Scalars(tag)]
            assert read_back == [(step, float(np.float32(value))) for step, value in values], tag
    assert {tag.split("/")[0] for tag in found.Tags()["scalars"]} == {"averaged", "agent_0", "agent_1"}
    assert "| algorithm.name | pc-asgd |" in text(found, "settings")
    assert "| num_steps | 6 |" in text(found, "settings")
    assert text(found, "events/noticed") == "something | noticed"
    assert text(found, "status") == "finished"
    assert {"experiment", "session_start_info"} <= {tag.removeprefix("_hparams_/") for tag in found.summary_metadata}


def test_the_end_of_an_interrupted_run_is_said(tmp_path: Path) -> None:
    with pytest.raises(RunInterrupted):
        tracked(TensorBoard(tmp_path / "elsewhere"), tmp_path, Interrupting())
    assert text(read(tmp_path / "elsewhere"), "status").startswith("interrupted")


def test_the_files_of_a_remote_run_lie_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = tracked(TensorBoard(), tmp_path, storage_path=f"file://{tmp_path}/store")
    assert result.error is None
    assert text(read(tmp_path / "tensorboard" / "first"), "status") == "finished"
