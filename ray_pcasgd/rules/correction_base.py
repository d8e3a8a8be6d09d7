"""What a correction is: it turns a late gradient into the one that a server takes."""

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ray_pcasgd.base.settings import Settings

State = tuple[Tensor, ...]


class Late(NamedTuple):
    """One worker's gradient as the server takes it."""

    gradient: Tensor
    """g_l, shape (D,)."""
    gap: Tensor
    """``w - w_bak(l)``: how far the server has come since the weights of the gradient; shape (D,), or (0,) where
    nobody needs it."""
    staleness: Tensor
    """tau_l, shape (): the server's updates since those weights."""
    step_size: Tensor
    """eta at this update, shape ()."""
    num_workers: Tensor
    """P, shape ()."""
    present: Tensor = torch.zeros(0)
    """``w``: the server's weights, shape (D,)."""
    computed_at: Tensor = torch.zeros(0)
    """``w_bak(l)``: the weights of the gradient, shape (D,), or (0,) where nobody needs the gap."""


class Correction(Settings, ABC):
    """Turns a late gradient into the one that is averaged into the update; weight decay and momentum come after it.

    Pure: its arguments are not mutated, and there is no ``if`` on a tensor.
    """

    needs_gap: ClassVar[bool] = False
    """Whether the server must keep the weights that workers compute at."""
    elementwise: ClassVar[bool] = True
    """Whether a part of the parameters can be corrected without the others, on a server of its own."""
    rejects: ClassVar[bool] = False
    """Whether gradients may be rejected, so that they move nothing; ``rejected`` then says of a state which were."""

    def check(self, num_workers: int) -> None:
        """Raise ``ValueError`` where the settings do not fit ``num_workers`` workers."""
        return

    def rejected(self, state: State) -> Tensor:
        """Return 1 for the worker whose gradient the last ``apply`` has rejected, else 0; shape (P,)."""
        raise AssertionError("a correction that rejects nothing")

    def unfiltered(self, state: State) -> Tensor | None:
        """Return 1 where the last ``apply`` has set a filter aside since too few workers are left for it, shape ().

        Else 0; ``None`` where there is no such filter.
        """
        return None

    def init(self, weights: Tensor, num_workers: int) -> State:
        """Return the state before the first update, for weights of shape (D,)."""
        return ()

    @abstractmethod
    def apply(self, state: State, worker: int, late: Late) -> tuple[State, Tensor]:
        """Return the next state and the corrected gradient, shape (D,); ``worker`` counts from 0 to P - 1."""
