"""The guard of prediction: lowers the stability bound where steps outgrow what agents really do."""

from typing import NamedTuple

import torch
from torch import Tensor

_GROWTH = 4.0
"""How many times a usual step a step may be long before it counts as outgrown."""
_RISE = 1.02
"""Factor per step by which the gain comes back to 1: from a half in 35 steps."""
_LEAST = 2.0**-10
_SMOOTHING = 0.9


class GuardState(NamedTuple):
    """What the guard remembers: tensors of shape (), on the CPU."""

    gain: Tensor
    """Factor of the stability bound, in (0, 1]."""
    usual: Tensor
    """Running mean of the lengths of the agent's own steps, ``eta |u_i|``; 0 before the first one."""

    def at(self, device: torch.device) -> "GuardState":
        """Return the same on a device."""
        return GuardState(self.gain.to(device), self.usual.to(device))


def unguarded(weights: Tensor) -> GuardState:
    """Return the state before the first step, in the weights' type."""
    return GuardState(weights.new_ones((), device="cpu"), weights.new_zeros((), device="cpu"))


def guarded(state: GuardState, predicted: Tensor, own_step: Tensor) -> GuardState:
    """Return the state after a step.

    ``predicted`` is the length of what prediction has added to the step, ``own_step`` that of the agent's own step;
    both of shape (). Prediction rolls neighbors forward by what agents do in ``tau`` steps, weighed by theta W: within
    the bound about one own step. Where it is several usual ones long, directions have grown since, or are not
    directions to go on with: the gain is halved; else it rises slowly.
    """
    is_known = state.usual > 0
    usual = torch.where(is_known, _SMOOTHING * state.usual + (1 - _SMOOTHING) * own_step, own_step)
    outgrown = predicted > _GROWTH * torch.where(is_known, state.usual, usual)
    gain = torch.where(outgrown, (state.gain / 2).clamp(min=_LEAST), (state.gain * _RISE).clamp(max=1.0))
    return GuardState(gain, torch.where(outgrown & is_known, state.usual, usual))
