"""A run that is left at a pause and goes on from the file of its state is the run that was never left."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from sklearn.datasets import load_digits
from torch.utils.data import TensorDataset

from ray_pcasgd.base.state import FORMAT, State, load_state, pace, save_state
from ray_pcasgd.engines.base import Pause
from ray_pcasgd.runs.callbacks import Callback
from ray_pcasgd.runs.plan.plan import make_plan
from ray_pcasgd.runs.result import Result
from ray_pcasgd.runs.run import Run
from ray_pcasgd.runs.settings.loading import load_config
from ray_pcasgd.runs.storage.folder import RunFolder
from ray_pcasgd.runs.trainer import fit_together

SMALL = {
    "engine": "local",
    "num_agents": 4,
    "num_steps": 20,
    "evaluate_every": 5,
    "task": {"model": {"hidden": [8]}},
    "links": [{"between": "clusters", "delay": 3}],
}
SOMETIMES_SLOW = {"law": {"name": "exponential", "mean": 1}}


class LeaveAt(Callback):
    """Writes the state of the first pause at or after a step."""

    def __init__(self, step: int, path: Path) -> None:
        self.step = step
        self.path = path

    def on_pause(self, pause: Pause, state: Callable[[], State]) -> None:
        if pause.step >= self.step and not self.path.exists():
            save_state(self.path, state())


def run(config: dict[str, Any], folder: Path, name: str, callback: Callback | None = None) -> Result:
    plan = make_plan(load_config(config, changes={"storage_path": str(folder), "name": name}))
    return Run(plan, RunFolder.create(plan.config), [callback or Callback()]).execute()


def resumed(config: dict[str, Any], folder: Path, state: Path) -> Result:
    plan = make_plan(load_config(config, changes={"storage_path": str(folder), "name": "resumed"}))
    return Run(plan, RunFolder.create(plan.config)).execute(load_state(state))


ADAFACTOR = {"name": "torch", "optimizer": "torch.optim:Adafactor"}


def without_clock(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.drop(columns="wall_seconds", errors="ignore")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"compute": SOMETIMES_SLOW},
        {"algorithm": "pc-asgd-pv", "compute": SOMETIMES_SLOW},
        {"algorithm": {"name": "pc-asgd-pv", "condition": "smoothed"}},
        {"algorithm": {"name": "pc-asgd", "compensation": "adaptive"}, "optimizer": {"momentum": 0.9}},
        {"algorithm": "sgp-overlap", "topology": "directed-ring", "compute": SOMETIMES_SLOW},
        {"algorithm": "gossip-push", "compute": SOMETIMES_SLOW},
        {"algorithm": "dc-s3gd", "optimizer": {"momentum": 0.9}},
        {"engine": {"name": "local", "batched": "always"}},
        {"checkpoint": {"every_evaluations": 1}},
        {"optimizer": "adamw", "step_size": 0.01, "accumulate": 2},
        {"optimizer": ADAFACTOR, "step_size": 0.01},
        {"algorithm": "server", "optimizer": ADAFACTOR, "step_size": 0.01},
        {"algorithm": "elastic-averaging", "optimizer": ADAFACTOR, "step_size": 0.01},
        {"algorithm": {"name": "server", "correction": "dc-asgd-a"}, "compute": SOMETIMES_SLOW},
        {"algorithm": {"name": "server", "gathering": {"name": "k-sync", "k": 2}}, "compute": SOMETIMES_SLOW},
        {"algorithm": {"name": "server", "gathering": {"name": "k-batch-async", "k": 2}, "shards": 2}},
        {"algorithm": "elastic-averaging", "optimizer": {"momentum": 0.9}, "compute": SOMETIMES_SLOW},
        {"algorithm": "server", "optimizer": {"momentum": 0.9}, "engine": {"name": "local", "batched": "always"}},
        {"algorithm": "fedasync", "local_steps": 3, "optimizer": {"momentum": 0.9}, "compute": SOMETIMES_SLOW},
        {"algorithm": {"name": "diloco", "gathering": "k-batch-async"}, "local_steps": 2, "compute": SOMETIMES_SLOW},
        {
            "algorithm": {"name": "diloco", "gathering": "asgd", "outer": "heloco"},
            "local_steps": 2,
            "compute": SOMETIMES_SLOW,
        },
        {
            "algorithm": {"name": "diloco", "shards": 2},
            "local_steps": 2,
            "wire": {"weights": "bf16", "directions": "int4"},
        },
        {"algorithm": "fedasync", "local_steps": 2, "wire": "int8", "compute": SOMETIMES_SLOW},
        {"algorithm": "fedglomo", "local_steps": 2, "compute": SOMETIMES_SLOW},
        {"algorithm": "diloco", "local_steps": [4, 2, 1, 4], "optimizer": "adamw", "step_size": 0.01},
        {
            "algorithm": {"name": "diloco", "gathering": "asgd", "outer": "delayed-nesterov"},
            "local_steps": 2,
            "compute": SOMETIMES_SLOW,
        },
    ],
    ids=str,
)
def test_a_run_goes_on_to_the_bit(changes: dict[str, Any], tmp_path: Path) -> None:
    config = SMALL | changes
    whole = run(config, tmp_path, "whole", LeaveAt(10, tmp_path / "state.pt"))
    again = resumed(config, tmp_path, tmp_path / "state.pt")
    assert whole.error is None
    assert again.error is None
    assert again.schedule_hash == whole.schedule_hash
    pd.testing.assert_frame_equal(without_clock(again.metrics_dataframe), without_clock(whole.metrics_dataframe))
    assert whole.checkpoint is not None
    assert again.checkpoint is not None
    mine, its = again.checkpoint.state_dict(), whole.checkpoint.state_dict()
    assert all(torch.equal(mine[name], its[name]) for name in its)


def test_buffers_are_part_of_the_state(tmp_path: Path) -> None:
    images, labels = load_digits(return_X_y=True)
    images = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    data = tuple(TensorDataset(images[part], torch.tensor(labels[part])) for part in (slice(200), slice(200, 300)))
    config = SMALL | {
        "task": {"data": data, "model": {"name": "small-cnn", "channels": [2], "batch_norm": True}},
        "num_steps": 6,
        "evaluate_every": 2,
    }
    whole = run(config, tmp_path, "whole", LeaveAt(2, tmp_path / "state.pt"))
    again = resumed(config, tmp_path, tmp_path / "state.pt")
    pd.testing.assert_frame_equal(without_clock(again.metrics_dataframe), without_clock(whole.metrics_dataframe))


def test_variants_go_on_together(tmp_path: Path) -> None:
    def configs(place: str) -> list[Any]:
        places = {"storage_path": str(tmp_path / place)}
        return [
            load_config(SMALL, changes={**places, "step_size": eta, "name": f"variant-{number}"})
            for number, eta in enumerate((0.05, 0.2, 1e20))
        ]

    file = tmp_path / "state.pt"

    def leave(pause: Pause, state: Callable[[], State]) -> None:
        if pause.step == 10:
            save_state(file, state())

    whole = fit_together(configs("whole"), pausing=leave)
    again = fit_together(configs("again"), state=load_state(file))
    assert [result.error is None for result in whole] == [True, True, False]
    for mine, its in zip(again, whole, strict=True):
        assert str(mine.error) == str(its.error)
        pd.testing.assert_frame_equal(without_clock(mine.metrics_dataframe), without_clock(its.metrics_dataframe))


def test_a_file_that_would_call_something_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (print, ("called",))

    torch.save({"run": Evil()}, tmp_path / "state.pt")
    with pytest.raises(Exception, match=r"Weights only load failed|print"):
        load_state(tmp_path / "state.pt")


def test_an_unfinished_file_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(state: State, path: Path) -> None:
        path.write_bytes(b"half of it")
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", fails)
    with pytest.raises(OSError, match="no space"):
        save_state(tmp_path / "state.pt", {})
    assert not (tmp_path / "state.pt").exists()


class Stranger:
    """Of a type that no state has."""


def test_a_file_that_is_refused_leaves_nothing_behind(tmp_path: Path) -> None:
    """PyTorch would check its sparse tensors, which cannot be, with the next file's."""
    bad, good = tmp_path / "bad.pt", tmp_path / "good.pt"
    indices = torch.tensor([[99]])
    outside = torch.sparse_coo_tensor(indices, torch.ones(1), (2,), check_invariants=False)
    torch.save({"format": FORMAT, "sparse": outside, "stranger": Stranger()}, bad)
    save_state(good, {"weights": torch.ones(2)})
    with pytest.raises(pickle.UnpicklingError):
        load_state(bad)
    assert torch.equal(load_state(good)["weights"], torch.ones(2))


def test_a_sparse_tensor_that_came_by_plain_pickle_is_not_checked_with_a_state(tmp_path: Path) -> None:
    """PyTorch notes it for its next file, of any kind, and warns there (a warning is an error in these tests)."""
    pickle.loads(pickle.dumps(torch.eye(2).to_sparse()))
    save_state(tmp_path / "state.pt", {"weights": torch.ones(2)})
    assert torch.equal(load_state(tmp_path / "state.pt")["weights"], torch.ones(2))


@pytest.mark.parametrize(
    ("seconds", "cost", "expected"),
    [(60, 0, 60), (60, 1, 60), (60, 9, 450), (0, 9, 0), (60, 90, 1800), (3600, 90, 3600)],
)
def test_states_that_take_long_are_kept_more_rarely(seconds: float, cost: float, expected: float) -> None:
    assert pace(seconds, cost) == expected
