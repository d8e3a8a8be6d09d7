"""Outer optimizers: how a server moves its weights by what its workers' rounds of local steps come to.

``Delta`` is the mean pseudo-gradient of one update, shape (D,): weights at a round's start less those at its end. It
points uphill, as a gradient does, and has the local step sizes in it. Pure, as corrections are.
"""

from abc import abstractmethod
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from ray_pcasgd.base.settings import Settings


class OuterOptimizer(Settings):
    """Moves a server's weights ``Theta`` by the mean pseudo-gradients of its updates."""

    state_vectors: ClassVar[int] = 1
    """How many vectors of shape (D,) the state has."""
    by_tensor: ClassVar[bool] = False
    """Whether it looks at whole tensors, which a server must have then."""

    step_size: float = Field(0.7, gt=0, le=1e6)
    """The outer step size eps, above 0: at 1 without momentum, Theta becomes the mean of its workers' weights."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """mu, in [0, 1)."""

    def check(self, updates_a_round: int) -> None:
        """Raise ``ValueError`` where the settings do not fit each other; ``updates_a_round`` as ``init`` is given."""
        return

    @abstractmethod
    def init(self, weights: Tensor, updates_a_round: int) -> Any:
        """Return the state before the first update, for weights of shape (D,).

        ``updates_a_round`` is how many updates take one message of every worker, in the mean, rounded down.
        """

    def corrected(self, state: Any, delta: Tensor, staleness: Tensor, sizes: tuple[int, ...]) -> Tensor:
        """Return one worker's pseudo-gradient as it counts in the mean, shape (D,).

        ``staleness`` is by how many updates it is late, shape (); ``sizes`` are the numbers of each tensor in it.
        """
        return delta

    @abstractmethod
    def step(self, state: Any, center: Tensor, delta: Tensor) -> tuple[Any, Tensor]:
        """Return the next state and the next weights, from ``center`` by ``delta``, all of shape (D,)."""


class OuterSGD(OuterOptimizer):
    """SGD with momentum in torch's form: ``b <- mu b + Delta``, ``Theta <- Theta - eps (Delta + mu b)``.

    Without ``nesterov`` ``Theta <- Theta - eps b``. Its defaults are DiLoCo's outer optimizer (Douillard et al. 2023,
    arXiv 2311.08105, algorithm 1): the first step is 1 + mu times Delta already, unlike that of heavy-ball momentum.
    """

    name: Literal["sgd"] = "sgd"
    nesterov: bool = True
    """Nesterov's momentum; false: heavy-ball momentum. Without meaning where the momentum is 0."""

    def init(self, weights: Tensor, updates_a_round: int) -> tuple[Tensor]:
        """Return b = 0."""
        return (torch.zeros_like(weights),)

    def step(self, state: tuple[Tensor], center: Tensor, delta: Tensor) -> tuple[tuple[Tensor], Tensor]:
        """Return b and ``Theta - eps (Delta + mu b)``, or ``Theta - eps b``."""
        buffer = self.momentum * state[0] + delta
        moved = delta + self.momentum * buffer if self.nesterov else buffer
        return (buffer,), center - self.step_size * moved


class Delayed(NamedTuple):
    """What the delayed Nesterov momentum remembers."""

    momentum: Tensor
    """m, shape (D,)."""
    waiting: Tensor
    """A: the sum of the pseudo-gradients since m has changed, shape (D,)."""
    taken: Tensor
    """How many these are, shape ()."""
    every: Tensor
    """N, shape ()."""


class DelayedNesterov(OuterOptimizer):
    """Nesterov's momentum that changes at every N-th update alone: asynchronous local SGD (Liu et al. 2024).

    arXiv 2401.09135, algorithm 3. For Delta of each update: ``A <- A + Delta``; at every N-th ``m <- mu m + A / N``,
    ``Theta <- Theta - eps ((1 - c N + c) mu m + Delta / N)``, ``A <- 0``; else
    ``Theta <- Theta - eps (c mu m + Delta / N)``.

    So each update moves Theta by an N-th of Delta, and with c = 0 N of them together are one step of DiLoCo's outer
    optimizer over their mean: ``step_size`` is to be chosen as for that one, not N times larger.
    """

    name: Literal["delayed-nesterov"] = "delayed-nesterov"
    state_vectors: ClassVar[int] = 2
    every: int | None = Field(None, ge=1, le=1_000_000)
    """N, updates from one change of the momentum to the next. Not given: as many as take one message of each worker,
    P over the K of the gathering, rounded down; with gathering asgd the number of workers."""
    spread: float = Field(0.0, ge=0, le=1)
    """c, in [0, 1/N]: the share of the momentum that moves Theta at each of the other updates; 0: none of it, 1/N: as
    much at each of them."""

    def _every(self, updates_a_round: int) -> int:
        return self.every or max(1, updates_a_round)

    def check(self, updates_a_round: int) -> None:
        """Raise ``ValueError`` where c is above 1/N."""
        every = self._every(updates_a_round)
        if self.spread * every > 1:
            raise ValueError(f"spread = {self.spread:g}: allowed are 0 to 1/N, {1 / every:g} with N = {every}")

    def init(self, weights: Tensor, updates_a_round: int) -> Delayed:
        """Return m = 0 and A = 0."""
        nothing, every = weights.new_zeros(()), weights.new_tensor(float(self._every(updates_a_round)))
        return Delayed(torch.zeros_like(weights), torch.zeros_like(weights), nothing, every)

    def step(self, state: Delayed, center: Tensor, delta: Tensor) -> tuple[Delayed, Tensor]:
        """Return what is remembered, and ``Theta - eps (share mu m + Delta / N)``."""
        every, waiting = state.every, state.waiting + delta
        is_last = state.taken + 1 >= every
        momentum = torch.where(is_last, self.momentum * state.momentum + waiting / every, state.momentum)
        share = torch.where(is_last, 1 - self.spread * (every - 1), self.spread)
        moved = center - self.step_size * (share * self.momentum * momentum + delta / every)
        taken = torch.where(is_last, 0.0, state.taken + 1)
        return Delayed(momentum, torch.where(is_last, 0.0, waiting), taken, every), moved
