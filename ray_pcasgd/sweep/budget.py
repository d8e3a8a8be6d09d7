"""How many training samples a sweep may take."""

from collections.abc import Mapping
from typing import Any

from ray import tune

from ray_pcasgd.config import Config


class SampleBudget(tune.Stopper):
    """Stops all trials once they have taken a number of training samples together."""

    def __init__(self, samples: int, base: Config) -> None:
        self._samples = samples
        self._samples_per_step = base.num_agents * base.batch_size
        self._taken: dict[str, int] = {}

    def __call__(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        """Take in how far a trial is; no trial is stopped alone."""
        runs = len(result["points"]) if "points" in result else 1
        self._taken[trial_id] = runs * int(result["step"]) * self._samples_per_step
        return False

    def stop_all(self) -> bool:
        """Return whether the samples are spent."""
        return sum(self._taken.values()) >= self._samples
