"""A ``LightningModule`` on actors: Lightning's own figures for one agent, and the local engine's bits for two.

Lightning is imported by the tests themselves: it takes seconds, and one of the processes that share tests runs them.
"""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.utils.data import DataLoader

if TYPE_CHECKING:
    import lightning

pytestmark = pytest.mark.usefixtures("ray_cluster")
ON_RAY: dict[str, Any] = {"engine": {"name": "ray"}}


def validated(module: "lightning.LightningModule") -> dict[str, float]:
    """Return what Lightning's own validation finds, batch by batch."""
    import lightning

    from tests.unit.runs.test_lightning import data

    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = lightning.Trainer(accelerator="cpu", devices=1, **dict.fromkeys(quiet, False))
        (figures,) = trainer.validate(module, DataLoader(data()[1], batch_size=50), verbose=False)
    return {name: float(value) for name, value in figures.items()}


def test_a_module_on_an_actor_has_the_weights_and_figures_of_lightnings_trainer(tmp_path: Path) -> None:
    from tests.unit.runs.test_lightning import Plain, adamw, fit, under_lightning

    module = Plain(adamw)
    before = torch.are_deterministic_algorithms_enabled()
    try:
        settings, result = fit(tmp_path, module, **ON_RAY)
        expected = under_lightning(settings | {"engine": "local"}, module)
        assert result.checkpoint is not None
        for key, tensor in result.checkpoint.state_dict().items():
            torch.testing.assert_close(tensor, expected[key], rtol=0, atol=1e-6)
        figures = validated(module)
    finally:
        torch.use_deterministic_algorithms(before)
    assert {f"test_{name.removeprefix('val_')}" for name in figures} == {"test_loss", "test_right", "test_auroc"}
    for name, figure in figures.items():
        assert result.metrics[f"test_{name.removeprefix('val_')}"] == pytest.approx(figure, abs=1e-6)


@pytest.mark.slow
def test_two_agents_on_actors_have_the_bits_of_the_local_engine(tmp_path: Path) -> None:
    from tests.unit.runs.test_lightning import Plain, adamw, fit

    module = Plain(adamw)  # of which every agent starts with a copy
    checkpoints = [
        fit(tmp_path / name, module, num_agents=2, engine=engine)[1].checkpoint
        for name, engine in (("ray", {"name": "ray"}), ("local", {"name": "local"}))
    ]
    on_ray, locally = (checkpoint.state_dict() for checkpoint in checkpoints if checkpoint is not None)
    assert on_ray.keys() == locally.keys()
    for key, tensor in on_ray.items():
        assert torch.equal(tensor, locally[key])
