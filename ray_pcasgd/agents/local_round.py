"""A round of local steps: what an agent computes from one version to the next where that is several mini-batches."""

from typing import Protocol

from torch import Tensor


class Stepping(Protocol):
    """What a round moves: an agent that has just computed the direction at its weights."""

    weights: Tensor
    direction: Tensor
    local_step: int

    @property
    def present_step_size(self) -> float:
        """The step size eta of the step whose gradient was computed."""
        ...

    def take_local_step(self) -> None:
        """Move the weights by the direction."""
        ...


class LocalRound:
    """One round: ``z_0 = x``, ``z_{h+1} = z_h - eta_h u_h``, and then ``(x - z_H) / sum_h eta_h`` as its direction.

    To a rule a round is one step along that mean direction, whose step size is ``sum_h eta_h``: the displacement that
    it takes is ``x - z_H``, what is sent predicts by displacements, a compensation has the units of gradients, and a
    stability bound sees ``H eta`` in the place of ``eta``.
    """

    def __init__(self, agent: Stepping) -> None:
        self._agent = agent
        self._start = agent.weights
        self._step_sizes: list[float] = []
        self._losses: list[float] = []

    def advance(self, loss: float) -> None:
        """Take the local step whose direction was computed with this loss."""
        agent = self._agent
        if not self._losses:
            # The forward pass may have changed the version itself, as it may without local steps.
            self._start = agent.weights
        self._step_sizes.append(agent.present_step_size)
        self._losses.append(loss)
        agent.take_local_step()
        agent.local_step += 1

    def finish(self) -> float:
        """Put the agent back to where the round began, with the round's direction, and return its mean loss."""
        agent = self._agent
        # Without a step size only the model itself has moved, and what it did belongs to the direction all the same.
        total = sum(self._step_sizes) or 1.0
        agent.direction = (self._start - agent.weights) / total
        agent.weights, agent.local_step = self._start, 0
        return sum(self._losses) / len(self._losses)
