"""An agent's own recent path, for the drift that predicts a stale neighbor."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ray_pcasgd.base.numerics import Vectors, blockwise
from ray_pcasgd.records import Read

_SMOOTHING = 0.9
"""Share of the old velocity that is kept from step to step: a mean over about ten steps."""


class OwnPath(ABC):
    """What an agent remembers of its own versions, from which drifts over ages of 1 to ``age_max`` steps follow."""

    @abstractmethod
    def note(self, reads: Iterable[Read]) -> None:
        """Take in what is read at the newest version: what no later read can ask for need not be remembered."""

    @abstractmethod
    def record(self, weights: Tensor) -> None:
        """Take in the agent's next version, shape (D,); it must never be changed in place."""

    @abstractmethod
    def drifts(self, ages: Collection[int]) -> Mapping[int, Tensor]:
        """Return the drift over each age at the newest version, shape (D,), float32."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Return what ``restore`` goes on from."""

    @abstractmethod
    def restore(self, state: dict[str, Any], device: torch.device) -> None:
        """Go on from a state."""


class Asked:
    """From which of its own versions on an agent may still be asked for its path.

    The versions of one neighbor were sent in their order, and reads fall back by one version at most
    (``FALLBACK_VERSIONS``). So what is read later was sent no earlier than the newest version below the newest one that
    was read, however long it takes to come: no schedule has to be known for it, and a live run is as sure as a plan.
    """

    def __init__(self, neighbors: Iterable[int]) -> None:
        self._sent = dict.fromkeys(neighbors, (0, 0, 0))
        """Of each neighbor: the newest version that was read; at which own version it was sent; and the one below."""

    def note(self, reads: Iterable[Read], version: int) -> None:
        """Take in what is read at an own version."""
        for read in reads:
            newest, sent, _ = self._sent[read.neighbor]
            if read.version > newest:
                self._sent[read.neighbor] = (read.version, version - read.age, sent)
            elif read.version < newest:
                self._sent[read.neighbor] = (newest, sent, version - read.age)

    @property
    def first(self) -> int:
        """The oldest own version at which something was sent that may still be read."""
        return min((below for _, _, below in self._sent.values()), default=0)


class KeptPath(OwnPath):
    """An agent's own last versions, as far back as a read may still ask for; see ``Asked``."""

    def __init__(self, weights: Tensor, age_max: int, neighbors: Iterable[int]) -> None:
        self.age_max = age_max
        self._asked = Asked(neighbors)
        self._version = 0
        # Not copied: they are what the agent has published, and a process that still has that has them only once.
        self._versions = deque([weights])

    def __len__(self) -> int:
        """Return how many versions are kept."""
        return len(self._versions)

    @property
    def _first(self) -> int:
        """Number of the oldest version that is kept."""
        return self._version - len(self._versions) + 1

    def note(self, reads: Iterable[Read]) -> None:
        """Take in what is read at the newest version."""
        self._asked.note(reads, self._version)

    def record(self, weights: Tensor) -> None:
        """Take in the agent's next version, shape (D,), and forget those that no read can ask for any more."""
        self._version += 1
        self._versions.append(weights)
        while self._first < self._needed():
            self._forget(self._versions.popleft())

    @abstractmethod
    def _needed(self) -> int:
        """Return the number of the oldest version that is needed."""

    def _forget(self, weights: Tensor) -> None:
        """Forget the oldest version."""

    def drifts(self, ages: Collection[int]) -> dict[int, Tensor]:
        """Return the drift over each age at the newest version, shape (D,), float32.

        **Choice**: over as many steps as are kept where an age is above that, as by clocks that were set back.
        """
        kept = len(self._versions) - 1
        found = self._drifts(sorted({min(age, kept) for age in ages if kept}, reverse=True))
        return {age: found[min(age, kept)] if kept else torch.zeros_like(self._versions[0]) for age in ages}

    @abstractmethod
    def _drifts(self, falling: list[int]) -> dict[int, Tensor]:
        """Return the drift over each of the falling ages, all of them from 1 to the number of steps that are kept."""

    def state(self) -> dict[str, Any]:
        """Return what ``restore`` goes on from."""
        return {"versions": dict(enumerate(self._versions, self._first)), "version": self._version}

    def restore(self, state: dict[str, Any], device: torch.device) -> None:
        """Go on from a state. What was read before it, later reads tell anew; until then nothing is forgotten."""
        self._version = state["version"]
        self._versions = deque(weights.to(device) for _, weights in sorted(state["versions"].items()))


class MeanDrift(KeptPath):
    """Mean displacement of one agent, ``1/a sum_{r<a} (x(t-a+r) - x(t-a))`` for an age ``a`` at version ``t``.

    It is a difference of running sums ``C_t = sum_{s<=t} x(s)``, in float64: in float32 they would lose the small
    displacements under their own growth after some thousand steps. Two of these sums are kept; those between follow
    from the versions, by the same additions in the same order.
    """

    def __init__(self, weights: Tensor, age_max: int, neighbors: Iterable[int]) -> None:
        super().__init__(weights, age_max, neighbors)
        self._before = torch.zeros_like(weights, dtype=torch.float64)
        """C at the version before the oldest one that is kept."""
        self._last = torch.zeros_like(weights, dtype=torch.float64)
        """C at the version before the newest one."""

    def record(self, weights: Tensor) -> None:
        """Take in the agent's next version, shape (D,)."""
        self._last += self._versions[-1]
        super().record(weights)

    def _needed(self) -> int:
        return max(self._asked.first, self._version - self.age_max)

    def _forget(self, weights: Tensor) -> None:
        self._before += weights

    def _drifts(self, falling: list[int]) -> dict[int, Tensor]:
        if not falling:
            return {}
        kept = len(self._versions) - 1
        versions = tuple(self._versions)[: kept - falling[-1] + 1]
        wanted = {kept - age: age for age in falling}

        def found(sums: Vectors, versions: Vectors) -> Vectors:
            before, last = sums
            results = []
            for place, weights in enumerate(versions):
                following = before + weights
                if place in wanted:
                    results.append((last - before).div_(wanted[place]).sub_(following - before).float())
                before = following
            return tuple(results)

        flat = blockwise(
            found, (self._before.view(-1), self._last.view(-1)), tuple(one.reshape(-1) for one in versions)
        )
        return {age: one.view_as(self._last) for age, one in zip(falling, flat, strict=True)}

    def state(self) -> dict[str, Any]:
        """Return what ``restore`` goes on from."""
        return super().state() | {"before": self._before, "last": self._last}

    def restore(self, state: dict[str, Any], device: torch.device) -> None:
        """Go on from a state."""
        super().restore(state, device)
        # Copies: they are changed in place.
        self._before, self._last = (state[name].to(device, copy=True) for name in ("before", "last"))


class DriftBefore(KeptPath):
    """Displacement of one agent over as many steps before a version as it has taken since, ``x(t-a) - x(t-2a)``.

    From version 0 on where the path begins later.
    """

    def _needed(self) -> int:
        return max(self._asked.first - self.age_max, self._version - 2 * self.age_max)

    def _drifts(self, falling: list[int]) -> dict[int, Tensor]:
        newest = len(self._versions) - 1
        return {age: self._versions[newest - age] - self._versions[max(0, newest - 2 * age)] for age in falling}


def velocity_gain(version: Any) -> Any:
    """Return the gain g of ``MeanVelocity`` at a version from 1 on, or at each of an array of them."""
    return np.maximum(1 / version, 1 - _SMOOTHING)


class MeanVelocity(OwnPath):
    """Mean displacement of one agent if its path were straight, by its mean velocity ``v``: one vector for all ages.

    ``v <- v + g (x(t) - x(t-1) - v)`` with ``g = max(1/t, 0.1)``: the mean of the first ten displacements, an
    exponential one from there on. On a straight path ``x(t-a+r) - x(t-a) = r v``, whose mean over ``r < a`` is
    ``(a-1)/2 v``.
    """

    def __init__(self, weights: Tensor) -> None:
        self._version = 0
        self._weights = weights
        self._velocity = torch.zeros_like(weights)

    def note(self, reads: Iterable[Read]) -> None:
        """Take in what is read at the newest version; nothing follows from it."""

    def record(self, weights: Tensor) -> None:
        """Take in the agent's next version, shape (D,)."""
        self._version += 1
        change = weights - self._weights
        self._velocity += change.sub_(self._velocity).mul_(velocity_gain(self._version))
        self._weights = weights

    def drifts(self, ages: Collection[int]) -> dict[int, Tensor]:
        """Return the drift over each age at the newest version, shape (D,)."""
        return {age: self._velocity * ((age - 1) / 2) for age in ages}

    def state(self) -> dict[str, Any]:
        """Return what ``restore`` goes on from."""
        return {"velocity": self._velocity, "weights": self._weights, "version": self._version}

    def restore(self, state: dict[str, Any], device: torch.device) -> None:
        """Go on from a state."""
        self._version, self._weights = state["version"], state["weights"].to(device)
        # A copy: it is changed in place.
        self._velocity = state["velocity"].to(device, copy=True)
