"""Tabular data and the area under the ROC curve: ``python examples/breast_cancer.py``, in seconds."""

from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_breast_cancer
from torch import nn
from torch.utils.data import TensorDataset
from torchmetrics.classification import BinaryAUROC

from ray_pcasgd import Trainer


def data() -> tuple[TensorDataset, TensorDataset]:
    """Return 400 patients to train on and 169 to test on: 30 measurements each, and whether a tumor is benign."""
    inputs, targets = (torch.from_numpy(column).float() for column in load_breast_cancer(return_X_y=True))
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
    inputs, targets = inputs[order], targets[order, None]
    scaled = (inputs - inputs[:400].mean(0)) / inputs[:400].std(0)
    return TensorDataset(scaled[:400], targets[:400]), TensorDataset(scaled[400:], targets[400:])


def network() -> nn.Module:
    """Return a small network with one output: the logit of being benign."""
    return nn.Sequential(nn.Linear(30, 16), nn.ReLU(), nn.Linear(16, 1))


def settings(**changes: Any) -> dict[str, Any]:
    """Return four agents in two clusters whose links are 10 steps late."""
    task = {
        "data": data(),
        "model": network,
        "loss": nn.functional.binary_cross_entropy_with_logits,
        "metrics": [{"name": "custom", "function": BinaryAUROC(), "label": "auroc"}],
    }
    optimizer = {"name": "adamw", "weight_decay": 0.1, "decay": "matrices"}
    run = {"engine": "local", "num_agents": 4, "num_steps": 60, "evaluate_every": 20, "step_size": 0.01}
    return {**run, "optimizer": optimizer, "task": task, **changes}


if __name__ == "__main__":
    result = Trainer(settings()).fit()
    print(f"AUROC {result.metrics['test_auroc']:.4f}, loss {result.metrics['test_loss']:.4f}, in {Path(result.path)}")
