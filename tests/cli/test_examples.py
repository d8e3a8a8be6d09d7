"""The examples that are scripts, run as their first lines say."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.metrics import roc_auc_score

from ray_pcasgd import Trainer

ROOT = Path(__file__).parents[2]


def example(name: str) -> Any:
    """Return an example's module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_area_under_the_curve_is_that_of_scikit_learn(tmp_path: Path) -> None:
    breast_cancer = example("breast_cancer")
    result = Trainer(breast_cancer.settings(storage_path=str(tmp_path))).fit()
    assert result.error is None
    assert result.checkpoint is not None
    model = breast_cancer.network()
    model.load_state_dict(result.checkpoint.state_dict())
    inputs, targets = breast_cancer.data()[1].tensors
    with torch.no_grad():
        expected = roc_auc_score(targets.numpy(), model(inputs).numpy())
    assert result.metrics["test_auroc"] == pytest.approx(expected, abs=1e-6)
    # What was not trained is no better than guessing, give or take.
    assert expected > 0.95


@pytest.mark.parametrize("name", ["breast_cancer"])
def test_a_script_says_what_it_came_to(name: str, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "examples" / f"{name}.py")]
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert "AUROC 0.9" in ended.stdout
