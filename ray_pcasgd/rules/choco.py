"""CHOCO-SGD: gossip over what everybody knows of everybody, so that few bits a message are enough."""

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from ray_pcasgd.base.numerics import Vectors, blockwise
from ray_pcasgd.records import Own, Reads, Update
from ray_pcasgd.rules.base import DefaultBarrier, Probe, Rule


class ChocoSGD(Rule):
    """CHOCO-SGD: D-PSGD that sends compressed differences (Koloskova, Stich, Jaggi, ICML 2019, Algorithm 2).

    In the paper, every agent takes its step, compresses by how much it has moved away from its *public copy* ``x^_i``,
    which it and its neighbors have, and then steps toward its neighbors' public copies:

        x_i^{t+1/2} = x_i^t - eta u_i^t
        q_i^t       = Q(x_i^{t+1/2} - x^_i^t)
        x^_j^{t+1}  = x^_j^t + q_j^t                                     for j = i and all neighbors j
        x_i^{t+1}   = x_i^{t+1/2} + gamma sum_j w_ij (x^_j^{t+1} - x^_i^{t+1})

    Here version t is ``z_i(t) = x_i^{t-1/2}``, what a round's local steps have come to (with several of them it is
    arXiv 1907.09356 with local updates). Its message holds ``Q(z_i(t) - x^_i(t-1))``, what is read of a neighbor is
    ``x^_k(t)``, and ``step`` is the last line, where the next round begins. Q is the run's ``wire.weights``. With
    nobody late the mean of all agents stays where it is, whatever Q leaves out, since W is symmetric. With ``float32``
    and gamma = 1 it is D-PSGD that combines first, up to rounding.

    **Choice**: ``x^(0)`` is where all begin and not 0, since all know it. **Choice**: who comes back into a run begins
    with its weights as its public copy, which it sends whole.
    """

    takes_scalars_on_cpu: ClassVar[bool] = True
    combines_first: ClassVar[bool] = True
    sends_differences: ClassVar[bool] = True
    default_barrier: ClassVar[DefaultBarrier] = "all"

    name: Literal["choco-sgd"] = "choco-sgd"
    gamma: float | None = Field(None, gt=0, le=1)
    """The step size of the gossip, above 0 and up to 1; too large a one drives agents apart, the sooner the less of a
    difference travels. Not given: 1 with formats in which every number travels; with ``top-k`` 1.5 times its
    share, and with ``random-k`` half its share."""

    def step(self, state: Any, own: Own, reads: Reads, probe: Probe | None = None) -> tuple[Any, Update]:
        """Return ``z_i + gamma sum_k w_ik (x^_k - x^_i)``."""
        (public,) = own.public
        gamma = 1.0 if self.gamma is None else self.gamma

        def moved(mine: Vectors, others: Vectors) -> Vectors:
            z, known = mine
            pull = torch.zeros_like(z)
            for weight, other in zip(reads.mixing.unbind(), others, strict=True):
                pull = pull + weight * (other - known)
            return (z + gamma * pull,)

        return state, Update(blockwise(moved, (own.weights, public), reads.weights)[0], {})
