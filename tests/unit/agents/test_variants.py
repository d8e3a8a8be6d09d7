"""Runs that differ only in numbers, stepped together, are the runs that each of them is alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch.utils.data import TensorDataset

from ray_pcasgd.config import Config
from ray_pcasgd.runs.plan.variants import make_variants
from ray_pcasgd.runs.settings.loading import SettingsError, load_config
from ray_pcasgd.runs.trainer import Trainer, fit_together

SMALL: dict[str, Any] = {
    "engine": "local",
    "num_agents": 4,
    "num_steps": 12,
    "evaluate_every": 6,
    "task": {"model": {"hidden": [8]}},
    "links": [{"between": "clusters", "delay": 3}],
    "compute": {"law": {"name": "exponential", "mean": 1}},
}
STEP_SIZES = [{"step_size": 0.05}, {"step_size": 0.3}, {"step_size": {"name": "cosine", "start": 0.2, "steps": 12}}]
CASES: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "theta": ({}, [{"algorithm": {"theta": theta}} for theta in (0, 0.4, 1)]),
    "lambda": (
        {"algorithm": {"name": "pc-asgd", "compensation": "adaptive"}},
        [{"algorithm": {"compensation": {"lambda_0": value}}} for value in (0, 2, 8)],
    ),
    "warm-up": ({}, [{"warmup_steps": steps} for steps in (0, 5)]),
    "pc-asgd-pv": ({"algorithm": "pc-asgd-pv"}, STEP_SIZES),
    "pc-asgd-pv, smoothed": ({"algorithm": {"name": "pc-asgd-pv", "condition": "smoothed"}}, STEP_SIZES),
    "momentum": ({"algorithm": "d-asgd", "optimizer": {"momentum": 0.9, "braking": 2}}, STEP_SIZES),
    "adamw, clipped": (
        {
            "algorithm": {"name": "pc-asgd", "stability": {"name": "curvature", "every": 4, "warmup": 2}},
            "optimizer": {"name": "adamw", "decay": "matrices"},
            "gradient_clipping": {"norm": 0.5},
        },
        [{"step_size": eta} for eta in (0.002, 0.01)],
    ),
    "lion, relative lambda": (
        {"algorithm": {"name": "pc-asgd", "theta": 0.3, "compensation": "relative"}, "optimizer": "lion"},
        [{"step_size": eta} for eta in (0.001, 0.003)],
    ),
    "importance": ({"algorithm": "d-asgd-importance"}, STEP_SIZES),
    "dc-s3gd": (
        {"algorithm": "dc-s3gd"},
        [{"algorithm": {"lambda_0": value}, "step_size": eta} for value, eta in ((0, 0.1), (0.2, 0.05))],
    ),
    "sgp": ({"algorithm": "sgp", "topology": "directed-ring"}, STEP_SIZES),
    "gossip": ({"algorithm": "gossip-pull"}, STEP_SIZES),
}


def configs(base: dict[str, Any], changes: Sequence[dict[str, Any]], folder: Path) -> list[Config]:
    places = [{"storage_path": str(folder), "name": f"variant-{number}"} for number in range(len(changes))]
    return [
        load_config(load_config(SMALL | base), changes=own | place) for own, place in zip(changes, places, strict=True)
    ]


@pytest.mark.parametrize("case", CASES)
def test_together_and_alone_are_the_same(case: str, tmp_path: Path) -> None:
    variants = configs(*CASES[case], tmp_path)
    together = fit_together(variants)
    losses = set()
    for config, result in zip(variants, together, strict=True):
        alone = Trainer(config, storage_path=str(tmp_path / "alone")).fit()
        assert alone.error is None
        assert result.schedule_hash == alone.schedule_hash
        frames = (alone.metrics_dataframe, result.metrics_dataframe)
        names = ("test_loss", "test_accuracy", "consensus_distance", "train_loss", "theta", "bytes_sent")
        for name in names:
            mine, its = (frame[name].to_numpy(dtype=float) for frame in frames)
            np.testing.assert_allclose(mine, its, rtol=2e-4, atol=1e-6, err_msg=name)
        losses.add(alone.metrics["test_loss"])
    assert len(losses) == len(variants)  # the numbers matter


def test_buffers_are_each_variants_own(tmp_path: Path) -> None:
    images, labels = load_digits(return_X_y=True)
    images = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    data = tuple(TensorDataset(images[part], torch.tensor(labels[part])) for part in (slice(200), slice(200, 300)))
    task = {"data": data, "model": {"name": "small-cnn", "channels": [2], "batch_norm": True}}
    variants = configs({"task": task, "num_steps": 4, "evaluate_every": 2}, STEP_SIZES[:2], tmp_path)
    for config, result in zip(variants, fit_together(variants), strict=True):
        alone = Trainer(config, storage_path=str(tmp_path / "alone")).fit()
        assert alone.checkpoint is not None
        assert result.checkpoint is not None
        mine, its = alone.checkpoint.state_dict(), result.checkpoint.state_dict()
        assert mine.keys() == its.keys()
        for name in mine:
            torch.testing.assert_close(mine[name], its[name], rtol=1e-4, atol=1e-5)


def test_one_that_diverges_ends_alone(tmp_path: Path) -> None:
    first, second, third = fit_together(configs({}, [{"step_size": eta} for eta in (0.1, 1e25, 0.2)], tmp_path))
    assert first.error is None
    assert third.error is None
    assert "has loss" in str(second.error)
    assert (tmp_path / "variant-1" / "events.jsonl").exists()


@pytest.mark.parametrize(
    ("base", "changes", "message"),
    [
        ({}, [{}, {"seed": 1}], "may differ in step size and the rule's numbers alone"),
        ({}, [{}, {"algorithm": {"oldest_age": 3}}], "may differ in step size and the rule's numbers alone"),
        ({"algorithm": {"name": "server"}, "links": []}, [{}], "algorithm.name = 'server': allowed are rules between"),
        ({"engine": "ray"}, [{}], "engine.name = 'ray': allowed is 'local'"),
        ({"on_non_finite_loss": "isolate"}, [{}], "on_non_finite_loss = 'isolate': allowed is 'stop'"),
    ],
)
def test_what_cannot_be_stepped_together_is_refused(
    base: dict[str, Any], changes: list[dict[str, Any]], message: str, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match=message):
        make_variants(configs(base, changes, tmp_path))
