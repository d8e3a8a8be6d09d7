"""Fresh replicas: copies of the untrained model on which something is measured without touching the agent's own."""

import copy
from collections.abc import Callable

from torch import nn

from ray_pcasgd.agents.replica import Replica

Measure = Callable[[Replica], float | None]
"""Returns what a replica comes to, the same for each that has not run; ``None`` where it comes to nothing."""


class FreshReplicas:
    """Measures on replicas that have not run: made anew, or copied where a copy was seen to come to the same.

    To make a model draws all of its weights, which takes several times as long as to copy one. But a copy is not always
    another model: a function that a layer keeps may call the layer of the original.
    """

    def __init__(self, make: Callable[[], Replica], replica_of: Callable[[nn.Module], Replica]) -> None:
        self._make = make
        self._replica_of = replica_of
        self._num_measured = 0
        self._spare: nn.Module | None = None
        """What is copied: a module that never runs, whose trained parameters take up no memory."""

    def measure(self, measure: Measure) -> float | None:
        """Return what a replica comes to whose module has not run."""
        if self._spare is not None:
            return measure(self._replica_of(copy.deepcopy(self._spare)))
        found = measure(self._make())
        self._num_measured += found is not None
        if self._num_measured == 2:  # not at the first one: short runs have no second one
            self._spare = self._checked(measure, found)
        return found

    def _checked(self, measure: Measure, found: float | None) -> nn.Module | None:
        """Return what can be copied; ``None`` where a copy does not come to what was found."""
        spare = self._make()
        if spare.has_frozen:  # it would stay in memory
            return None
        spare.forget_weights()
        try:
            same = measure(self._replica_of(copy.deepcopy(spare.module))) == found
        except Exception:  # whatever the model's own code raises as it is copied, or as its copy runs
            return None
        return spare.module if same else None
