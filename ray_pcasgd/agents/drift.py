"""An agent's own recent path, for the drift that predicts a stale neighbor."""

from typing import Any

import torch
from torch import Tensor


class MeanDrift:
    """Mean displacement of one agent over any of its last ``age_max`` steps.

    Keeps a ring of running sums ``C_t = sum_{s<=t} x(s)``; the sum over a window is a difference of two entries. The
    sums are float64: in float32 they would lose the small displacements under their own growth after some thousand
    steps.
    """

    def __init__(self, weights: Tensor, age_max: int) -> None:
        self.age_max = age_max
        # Weights may have a leading axis, of variants. C_{-1} = 0: a window that begins at version 0 has a left edge.
        self._sums = torch.zeros(age_max + 2, *weights.shape, dtype=torch.float64, device=weights.device)
        self._version = 0
        self._sums[self._slot(0)] = weights

    def record(self, weights: Tensor) -> None:
        """Take in the agent's next version, shape (D,)."""
        previous = self._sums[self._slot(self._version)]
        self._version += 1
        torch.add(previous, weights, out=self._sums[self._slot(self._version)])

    def drift(self, age: int) -> Tensor:
        """Return ``1/age * sum_{r<age} (x(t-age+r) - x(t-age))`` at the newest version ``t``, shape (D,), float32.

        Zeros for ``age`` 0. Requires ``age <= min(age_max, t)``.
        """
        assert 0 <= age <= min(self.age_max, self._version), (age, self.age_max, self._version)
        if age == 0:
            return torch.zeros_like(self._sums[0], dtype=torch.float32)
        last = self._sums[self._slot(self._version - 1)]
        before = self._sums[self._slot(self._version - age - 1)]
        first = self._sums[self._slot(self._version - age)] - before
        return ((last - before).div_(age).sub_(first)).float()

    def state(self) -> dict[str, Any]:
        """Return what ``restore`` goes on from."""
        return {"sums": self._sums, "version": self._version}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self._sums.copy_(state["sums"])
        self._version = state["version"]

    def _slot(self, version: int) -> int:
        return version % (self.age_max + 2)


class DriftBefore:
    """Displacement of one agent over as many steps before a version as it has taken since.

    Keeps a ring of the agent's last ``2 age_max + 1`` versions in float32.
    """

    def __init__(self, weights: Tensor, age_max: int) -> None:
        self.age_max = age_max
        self._versions = torch.zeros(2 * age_max + 1, *weights.shape, device=weights.device)
        self._version = 0
        self._versions[0] = weights

    def record(self, weights: Tensor) -> None:
        """Take in the agent's next version, shape (D,)."""
        self._version += 1
        self._versions[self._slot(self._version)] = weights

    def drift(self, age: int) -> Tensor:
        """Return ``x(t-age) - x(t-2 age)`` at the newest version ``t``, shape (D,).

        From version 0 on where the path begins later. Zeros for ``age`` 0. Requires ``age <= min(age_max, t)``.
        """
        assert 0 <= age <= min(self.age_max, self._version), (age, self.age_max, self._version)
        end = self._version - age
        return self._versions[self._slot(end)] - self._versions[self._slot(max(0, end - age))]

    def state(self) -> dict[str, Any]:
        """Return what ``restore`` goes on from."""
        return {"versions": self._versions, "version": self._version}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self._versions.copy_(state["versions"])
        self._version = state["version"]

    def _slot(self, version: int) -> int:
        return version % (2 * self.age_max + 1)
