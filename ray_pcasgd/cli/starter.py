"""A commented starter for your own run: settings, and the module that they name."""

import keyword
import re
from pathlib import Path

from ray_pcasgd.base.errors import SettingsError
from ray_pcasgd.base.text import one_line

_SETTINGS = """\
# Settings of a run: ray-pcasgd train {name}.yaml
# What is left out has its default; `ray-pcasgd settings` lists everything, `ray-pcasgd settings algorithm` tells more.
# On the command line, --set changes one: ray-pcasgd train {name}.yaml --set num_agents=8 --set algorithm.theta=0.5

engine: local            # local: one process, virtual time. ray: an actor for each agent, here or on a cluster
num_agents: 4
num_epochs: 10           # passes over the largest shard; or num_steps: 300
batch_size: 16           # of each agent
step_size: 0.05          # or a curve: {{name: cosine, start: 0.1, steps: 300}}
evaluate_every: 20       # steps
seed: 0

algorithm: pc-asgd  # or d-asgd, sgp, server, ...; `ray-pcasgd compare {name}.yaml` runs several

# How late weights arrive. In steps, or in seconds: 200ms, pareto(2, 0.1s); an empty list: never late.
links: [{{between: clusters, delay: 10}}]
clusters: 2              # groups of agents that are near each other
# compute: {{law: exponential(1), stragglers: {{3: 2s}}}}   # seconds of a step; agent 3 takes 2 s longer

# What is learned: objects of {module}.py, by import path. Import paths are code.
task:
  data: {{name: custom, train: '{module}:training_data', test: '{module}:test_data'}}
  model: {{name: custom, factory: '{module}:Network', arguments: {{width: 32}}}}
  loss: mse              # cross-entropy, mse, or {{name: custom, function: '{module}:my_loss'}}
  metrics: [mae, {{name: custom, function: '{module}:within_half_a_deviation'}}]

partition: iid           # how samples are dealt to the agents; with classes also dirichlet, by-label
"""

_MODULE = '''\
"""What {name}.yaml trains: data, model and a metric, to be replaced by your own."""

import torch
from sklearn.datasets import load_diabetes
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

TRAINED_ON = 350


def _samples() -> tuple[Tensor, Tensor]:
    inputs, targets = (torch.tensor(part, dtype=torch.float32) for part in load_diabetes(return_X_y=True))
    return inputs * 20, (targets - targets.mean()) / targets.std()


def training_data() -> Dataset:
    """Return any map-style data set whose items are pairs (input, target)."""
    inputs, targets = _samples()
    return TensorDataset(inputs[:TRAINED_ON], targets[:TRAINED_ON])


def test_data() -> Dataset:
    """Return the same for the samples that are tested on."""
    inputs, targets = _samples()
    return TensorDataset(inputs[TRAINED_ON:], targets[TRAINED_ON:])


class Network(nn.Module):
    """Any module; each agent builds its own, from the settings' arguments, all with the same first weights."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(10, width), nn.ReLU(), nn.Linear(width, 1))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return one number for each input."""
        return self.layers(inputs).squeeze(-1)


def within_half_a_deviation(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the share of samples whose error is below 0.5; it is called with the whole test set at once."""
    return ((outputs - targets).abs() < 0.5).float().mean()
'''


def write_starter(name: str, folder: Path) -> list[Path]:
    """Write ``NAME.yaml`` and ``NAME_task.py`` into a folder, and return their paths; nothing is overwritten.

    Raises:
        SettingsError: the name cannot be that of files and a module, one of the files exists, or cannot be written.

    """
    module = f"{re.sub('-', '_', name)}_task"
    if not re.fullmatch("[A-Za-z][A-Za-z0-9_-]{0,90}", name) or keyword.iskeyword(module):
        raise SettingsError(f"new {name}: allowed are letters, digits, - and _, the first a letter")
    contents = {
        folder / f"{name}.yaml": _SETTINGS.format(name=name, module=module),
        folder / f"{module}.py": _MODULE.format(name=name),
    }
    for path in contents:
        if path.exists() or path.is_symlink():
            raise SettingsError(f"new {name}: {path.name} exists; allowed is a name that is not in use")
    for path, content in contents.items():
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(content)
        except OSError as error:
            raise SettingsError(f"new {name}: {path.name} cannot be written ({one_line(error)})") from None
    return list(contents)
