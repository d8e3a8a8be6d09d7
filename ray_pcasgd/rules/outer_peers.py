"""Outer optimizers between peers: momentum over the rounds of local steps, at the agents themselves.

All three are adapt-then-combine. ``z_i`` is what agent i's local steps have come to from ``x_i``, where its round
began; messages hold ``z_i`` alone. ``d_i = x_i - z_i`` is its pseudo-gradient.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ray_pcasgd.base.numerics import Vectors, blockwise
from ray_pcasgd.records import Own, Reads, Update
from ray_pcasgd.rules.base import DefaultBarrier, Probe, Rule, mix
from ray_pcasgd.rules.exchange import Exchange, RandomPairs


class SlowState(NamedTuple):
    """What an agent with slow momentum remembers."""

    point: Tensor
    """x_i, where its last round began, shape (D,)."""
    momentum: Tensor
    """m_i, shape (D,)."""


class _SlowMomentum(Rule, ABC):
    """The step that both have in common: ``m <- mu m + eta (mean - x)``, ``x <- x + m``, heavy-ball momentum."""

    takes_scalars_on_cpu: ClassVar[bool] = True
    combines_first: ClassVar[bool] = True
    default_barrier: ClassVar[DefaultBarrier] = "all"

    outer_momentum: float
    outer_step_size: float

    @abstractmethod
    def shares(self, own: Own, reads: Reads) -> tuple[Tensor, Tensor]:
        """Return by how much the agent's own weights count in the mean, shape (), and its neighbors', shape (K,)."""

    def init(self, weights: Tensor, num_neighbors: int) -> SlowState:
        """Return where all begin, without momentum."""
        return SlowState(weights, torch.zeros_like(weights))

    def step(self, state: Any, own: Own, reads: Reads, probe: Probe | None = None) -> tuple[Any, Update]:
        """Return where the next round begins."""
        ours, theirs = self.shares(own, reads)

        def moved(mine: Vectors, others: Vectors) -> Vectors:
            z, x, m = mine
            m = self.outer_momentum * m + self.outer_step_size * (mix(ours, z, theirs, others) - x)
            return x + m, m

        found = SlowState(*blockwise(moved, (own.weights, *state), reads.weights))
        return found, Update(found.point, {})


class SlowMo(_SlowMomentum):
    """SlowMo: heavy-ball momentum over rounds of local steps (Wang, Tantia, Ballas, Rabbat, ICLR 2020, Algorithm 1).

    ``m_i <- mu m_i + eta (w_ii z_i + sum_k w_ik z_k - x_i)`` and ``x_i <- x_i + m_i``, where the next round begins. On
    a complete graph with equal weights the sum is their exact average. mu = 0 and eta = 1 is local SGD, or federated
    averaging.

    **Choice**: the momentum is one of displacements; the paper divides these by the step size, which is the same
    where that is constant.
    """

    takes_any_barrier: ClassVar[bool] = True

    name: Literal["slowmo"] = "slowmo"
    outer_momentum: float = Field(0.7, ge=0, lt=1)
    """mu, from 0 to below 1; the paper's for CIFAR-10 with local SGD."""
    outer_step_size: float = Field(1.0, gt=0, le=1)
    """eta, above 0 and up to 1, where disagreement shrinks on every graph; the paper's 1."""

    def shares(self, own: Own, reads: Reads) -> tuple[Tensor, Tensor]:
        """Return the mixing weights."""
        return own.mixing, reads.mixing


class NoLoCo(_SlowMomentum):
    """NoLoCo: momentum over rounds, and one random partner a round instead of an all-reduce (arXiv 2506.10911).

    ``m_i <- mu m_i + eta mean(d) + eta (mean(x) - x_i)`` over the two of a pair, with the displacements
    ``d = z - x``, and ``x_i <- x_i + m_i``. ``mean(d) + mean(x) = mean(z)``, so that a message holds one vector,
    not two as the paper's. All agents are neighbors of each other; each waits for its partner alone.
    """

    meets_in_pairs: ClassVar[bool] = True

    name: Literal["noloco"] = "noloco"
    outer_momentum: float = Field(0.5, ge=0, lt=1)
    """mu, from 0 to below 1, as far as disagreement shrinks from round to round."""
    outer_step_size: float = Field(0.7, gt=0, le=1)
    """eta, above 0 and up to 1."""

    def check(self, num_agents: int) -> None:
        """Raise ``ValueError`` where the agents would move away from each other."""
        if (
            num_agents > 1
            and (factor := disagreement_factor(self.outer_momentum, self.outer_step_size, num_agents)) >= 1
        ):
            raise ValueError(
                f"outer_momentum = {self.outer_momentum:g}: allowed with outer_step_size = {self.outer_step_size:g} "
                "are values at which the agents' disagreement shrinks from round to round; this multiplies it by "
                f"{factor:.3g}"
            )

    @property
    def exchange(self) -> Exchange:
        """Random pairs; or what a class derived from this one says."""
        kind = type(self)
        is_own = kind.partners is NoLoCo.partners and kind.receivers is NoLoCo.receivers
        return RandomPairs() if is_own else self

    def partners(self, seed: int, agent: int, step: int, neighbors: tuple[int, ...]) -> tuple[int, ...]:
        """Return the agent's partner of the round."""
        return RandomPairs().partners(seed, agent, step, neighbors)

    def receivers(self, seed: int, agent: int, version: int, neighbors: tuple[int, ...]) -> tuple[int, ...]:
        """Return the partner of the round that begins at the version."""
        return RandomPairs().receivers(seed, agent, version, neighbors)

    def shares(self, own: Own, reads: Reads) -> tuple[Tensor, Tensor]:
        """Return equal shares of the agent and of who was read: its partner, or whoever a replay names."""
        is_read = reads.mixing > 0
        share = 1.0 / (1 + is_read.sum())
        return share, torch.where(is_read, share, 0.0)


def disagreement_factor(momentum: float, step_size: float, num_agents: int) -> float:
    """Return by what a round of random pairs multiplies the disagreement of agents that take no steps of their own.

    It is the root of the spectral radius of the map of the second moments ``E x^2, E x m, E m^2`` of one agent's
    distance ``x`` from the mean and of its momentum, over the draw of its partner: with ``q = (1 + 1/(N-1))/2``,
    ``E (mean - x)^2 = q E x^2``, ``E x (mean - x) = -q E x^2``, ``E m (mean - x) = -q E x m``.

    >>> round(disagreement_factor(0.5, 0.7, 16), 2), round(disagreement_factor(0.9, 0.7, 16), 2)
    (0.83, 1.04)
    """
    mu, eta, q = momentum, step_size, (1 + 1 / (num_agents - 1)) / 2
    of_momentum = np.array([eta**2 * q, -2 * mu * eta * q, mu**2])
    of_both = np.array([-eta * q, mu, 0.0])
    before = np.array([1.0, 0.0, 0.0])
    moments = np.stack([before + 2 * of_both + of_momentum, of_both + of_momentum, of_momentum])
    return float(np.sqrt(np.abs(np.linalg.eigvals(moments)).max()))


class AcceleratedState(NamedTuple):
    """What an agent of GASLoC remembers."""

    before: Tensor
    """z_i of the round before, shape (D,)."""


class GASLoC(Rule):
    """GASLoC: gossip, local steps and an accelerated outer step (Cagnasso, Belilovsky, Oyallon, arXiv 2606.11081).

    ``x_i <- z_i - alpha (z_i - w_ii z_i - sum_k w_ik z_k) + gamma (z_i - z_i')``, where the next round begins, with
    ``z_i'`` the one of the round before, and ``z_i = x_i - eta d_i`` for the displacement ``d_i`` of its local steps.
    Rounds may differ in length. gamma = 0, alpha = eta = 1 is gossip after local steps.

    **Choice**: the graph Laplacian is that of the mixing matrix, and gamma and eta are NoLoCo's.
    """

    takes_scalars_on_cpu: ClassVar[bool] = True
    combines_first: ClassVar[bool] = True
    takes_any_barrier: ClassVar[bool] = True
    default_barrier: ClassVar[DefaultBarrier] = "all"

    name: Literal["gasloc"] = "gasloc"
    gossip: float = Field(1.0, gt=0, le=1)
    """alpha, the step size of the gossip, above 0 and up to 1."""
    outer_momentum: float = Field(0.5, ge=0, lt=1)
    """gamma, from 0 to below 1; disagreement shrinks on every graph."""
    outer_step_size: float = Field(0.7, gt=0, le=2)
    """eta, by which the displacement of the local steps is multiplied, above 0 and up to 2."""

    @property
    def displacement_factor(self) -> float:
        """The outer step size eta."""
        return self.outer_step_size

    def init(self, weights: Tensor, num_neighbors: int) -> AcceleratedState:
        """Return where all begin."""
        return AcceleratedState(weights)

    def step(self, state: Any, own: Own, reads: Reads, probe: Probe | None = None) -> tuple[Any, Update]:
        """Return where the next round begins."""

        def moved(mine: Vectors, others: Vectors) -> Vectors:
            z, before = mine
            mean = mix(own.mixing, z, reads.mixing, others)
            return (z - self.gossip * (z - mean) + self.outer_momentum * (z - before),)

        weights = blockwise(moved, (own.weights, state.before), reads.weights)[0]
        return AcceleratedState(own.weights), Update(weights, {})
