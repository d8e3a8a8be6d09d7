"""Who waits for whom before a step ends: decided from version numbers alone."""

from collections.abc import Mapping
from typing import Annotated, Literal, NamedTuple

import numpy as np
from pydantic import Field

from ray_pcasgd.base.settings import Settings


class Proceed(NamedTuple):
    """The step may end."""

    capped: frozenset[int] = frozenset()
    """Neighbors of which no version newer than the agent's own step is read."""


class WaitFor(NamedTuple):
    """The step waits for these versions, by neighbor."""

    versions: dict[int, int]


class NoBarrier(Settings):
    """Asynchronous: no agent waits."""

    name: Literal["none"] = "none"

    def decide(self, step: int, newest: Mapping[int, int], random: np.random.Generator) -> Proceed | WaitFor:
        """Return the decision; ``newest`` holds each neighbor's newest known version."""
        return Proceed()


class AllBarrier(Settings):
    """Bulk-synchronous: step t reads version t of every neighbor."""

    name: Literal["all"] = "all"

    def decide(self, step: int, newest: Mapping[int, int], random: np.random.Generator) -> Proceed | WaitFor:
        """Return the decision; ``newest`` holds each neighbor's newest known version."""
        return _wait_for(step, newest) or Proceed(frozenset(newest))


class BoundedBarrier(Settings):
    """Stale-synchronous: wait while any neighbor is more than ``staleness`` steps behind."""

    name: Literal["bounded"] = "bounded"
    staleness: int = Field(ge=0)
    """Steps that a neighbor may be behind."""

    def decide(self, step: int, newest: Mapping[int, int], random: np.random.Generator) -> Proceed | WaitFor:
        """Return the decision; ``newest`` holds each neighbor's newest known version."""
        return _wait_for(step - self.staleness, newest) or Proceed()


class SampledBarrier(Settings):
    """Probabilistic synchronous (PSP): another barrier, applied to ``beta`` neighbors drawn afresh at each test."""

    name: Literal["sampled"] = "sampled"
    beta: int = Field(ge=0)
    """Neighbors that are drawn, without replacement; 0 is no barrier, the number of neighbors or more is ``base``."""
    base: Annotated[AllBarrier | BoundedBarrier, Field(discriminator="name")] = AllBarrier()
    """The barrier for the neighbors that were drawn."""

    def decide(self, step: int, newest: Mapping[int, int], random: np.random.Generator) -> Proceed | WaitFor:
        """Return the decision; ``newest`` holds each neighbor's newest known version."""
        neighbors = sorted(newest)
        drawn = random.choice(neighbors, size=min(self.beta, len(neighbors)), replace=False) if neighbors else ()
        return self.base.decide(step, {int(k): newest[int(k)] for k in drawn}, random)


Barrier = Annotated[NoBarrier | AllBarrier | BoundedBarrier | SampledBarrier, Field(discriminator="name")]
"""A barrier by its ``name``; a neighbor that has taken its last step is not waited for."""


def _wait_for(version: int, newest: Mapping[int, int]) -> WaitFor | None:
    behind = {k: version for k, known in newest.items() if known < version}
    return WaitFor(behind) if behind else None
