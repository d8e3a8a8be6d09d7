"""Where a run's files go: a folder of this machine, or a remote location, here one with the scheme ``file://``."""

from pathlib import Path

import pytest
import torch

from ray_pcasgd.config import CheckpointSettings
from ray_pcasgd.runs.settings.loading import SettingsError, load_config
from ray_pcasgd.runs.storage.checkpoints import Checkpoint, Checkpoints
from ray_pcasgd.runs.storage.folder import RunFolder


def test_a_remote_run_is_written_here_and_published_at_the_end(tmp_path: Path) -> None:
    storage = f"file://{tmp_path}/some/where"
    config = load_config({"storage_path": storage, "algorithm": "d-asgd"})
    folder = RunFolder.create(config)
    written_here = folder.path
    assert not written_here.is_relative_to(tmp_path)
    weights = {"weight": torch.arange(3.0)}
    folder.write_model(weights, {})
    checkpoints = Checkpoints(folder, CheckpointSettings(every_evaluations=1))
    checkpoints.offer({"step": 5, "test_loss": 0.5}, lambda: weights)
    location = folder.publish()
    checkpoints.published(location)
    assert location == f"{storage}/d-asgd-1"
    assert not written_here.exists()
    assert load_config(tmp_path / "some" / "where" / "d-asgd-1" / "config.yaml") == config
    ((kept, metrics),) = checkpoints.kept
    assert (kept.path, metrics) == (f"{location}/checkpoints/step_00000005", {"loss": 0.5})
    for checkpoint in (Checkpoint(location), kept):
        assert torch.equal(checkpoint.state_dict()["weight"], weights["weight"])


def test_names_that_are_in_use_remotely_are_not_given_again(tmp_path: Path) -> None:
    storage = f"file://{tmp_path}"
    (tmp_path / "pc-asgd-1").mkdir()
    (tmp_path / "pc-asgd-2").mkdir()
    assert RunFolder.create(load_config({"storage_path": storage})).path.name == "pc-asgd-3"
    with pytest.raises(
        SettingsError, match=r"^name = 'pc-asgd-2': the run folder file:.*/pc-asgd-2 exists; allowed is"
    ):
        RunFolder.create(load_config({"storage_path": storage, "name": "pc-asgd-2"}))


def test_a_location_that_nothing_knows_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"^storage_path = 'nowhere://x': cannot be reached \("):
        RunFolder.create(load_config({"storage_path": "nowhere://x"}))


def test_a_home_folder_is_spelled_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    paths = [RunFolder.create(load_config({"storage_path": "~/runs"})).path for _ in range(2)]
    assert paths == [tmp_path / "runs" / "pc-asgd-1", tmp_path / "runs" / "pc-asgd-2"]
