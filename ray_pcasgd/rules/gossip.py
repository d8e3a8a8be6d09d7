"""Gossiping SGD: now and then one random neighbor, instead of all of them at each step (Jin et al. 2016)."""

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from ray_pcasgd.base.numerics import Vectors, blockwise
from ray_pcasgd.records import Own, Reads, Update
from ray_pcasgd.rules.base import Probe, Rule
from ray_pcasgd.rules.exchange import Exchange, RandomNeighbor, Reading


class _Gossip(Rule):
    every: float = Field(1.0, ge=1)
    """q: steps from one exchange with a neighbor to the next, on average; 1 or more."""

    @property
    def _random(self) -> RandomNeighbor:
        return RandomNeighbor(self.every, pushes=self.reading == "news")

    @property
    def exchange(self) -> Exchange:
        """One random neighbor, every ``every`` steps on average; or what a class derived from this one says."""
        kind = type(self)
        is_own = kind.partners is _Gossip.partners and kind.receivers is _Gossip.receivers
        return self._random if is_own else self

    def partners(self, seed: int, agent: int, step: int, neighbors: tuple[int, ...]) -> tuple[int, ...]:
        """Return the neighbors that the agent pulls from at this step."""
        return self._random.partners(seed, agent, step, neighbors)

    def receivers(self, seed: int, agent: int, version: int, neighbors: tuple[int, ...]) -> tuple[int, ...]:
        """Return the neighbors that the agent pushes this version to."""
        return self._random.receivers(seed, agent, version, neighbors)

    def step(self, state: Any, own: Own, reads: Reads, probe: Probe | None = None) -> tuple[Any, Update]:
        """Return ``x - eta u`` with ``x <- (x + x_k) / 2`` for each neighbor that was read, one after another."""

        def moved(mine: Vectors, neighbors: Vectors) -> Vectors:
            x, u = mine
            for k, neighbor in enumerate(neighbors):
                x = x + torch.where(reads.mixing[k] > 0, 0.5, 0.0) * (neighbor - x)
            return (x - own.step_size * u,)

        return state, Update(blockwise(moved, (own.weights, own.direction), reads.weights)[0], {})


class GossipPull(_Gossip):
    """Gossiping SGD, pulling: ``x_i <- (x_i + x_k) / 2`` for one random neighbor every ``every`` steps on average."""

    name: Literal["gossip-pull"] = "gossip-pull"


class GossipPush(_Gossip):
    """Gossiping SGD, pushing: the averaging is the receiver's, at its next step.

    **Choice**: of several versions that one sender has pushed since the receiver's last step, the newest counts.
    """

    reading: ClassVar[Reading] = "news"

    name: Literal["gossip-push"] = "gossip-push"
