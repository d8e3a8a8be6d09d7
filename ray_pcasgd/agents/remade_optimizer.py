"""An optimizer that was made of some module's parameters, made anew of others in their order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch.nn import Parameter
from torch.optim import Optimizer


@dataclass(frozen=True, eq=False)
class RemadeOptimizer:
    """What ``TorchOptimizer.optimizer`` takes: a function from a list of parameters to their optimizer."""

    kind: Any
    """The optimizer's class."""
    groups: Sequence[Mapping[str, Any]]
    """Options of each group of parameters; under ``params`` are their places in the list."""

    def __call__(self, parameters: Sequence[Parameter]) -> Optimizer:
        """Return the optimizer of these parameters."""
        made: Optimizer = self.kind(
            [{**group, "params": [parameters[place] for place in group["params"]]} for group in self.groups]
        )
        return made
