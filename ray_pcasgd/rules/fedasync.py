"""FedAsync: the server mixes the weights of one worker after another into its own."""

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from ray_pcasgd.rules.correction import State
from ray_pcasgd.rules.lateness import LatenessWeight, PolynomialWeight
from ray_pcasgd.rules.server import Delivered, ServerRule, check_rounds


class FedAsync(ServerRule):
    """Asynchronous federated optimization: ``Theta <- (1 - a_t) Theta + a_t x_l`` with ``a_t = a s(tau_l)``.

    A worker starts a round from the server's weights that it has read, takes ``local_steps`` steps with the local
    optimizer, whose state stays its own, and sends the weights ``x_l`` at the round's end (Xie, Koyejo, Gupta 2019,
    arXiv 1903.03934, algorithm 1). Each ``a_t`` is made of a alone: late messages do not lower those to come.
    **Choice**: where an update takes K messages, Theta moves by the mean of their moves ``a_t (x_l - Theta)``.
    """

    name: Literal["fedasync"] = "fedasync"
    mix: float = Field(0.6, gt=0, le=1)
    """a, in (0, 1]: the weight of a message that is not late."""
    weighting: LatenessWeight = PolynomialWeight()
    """s(tau), by which a falls for a message that comes tau updates late: constant, polynomial, hinge, exponential."""
    proximal: float = Field(0.0, ge=0, le=1e6)
    """rho, from 0 on, of the term ``rho/2 |x - Theta|^2`` that workers add to their loss, Theta being the weights of
    their round's start; its gradient is added after gradient clipping. 0: none; the paper's experiments have 0.005."""

    workers_step: ClassVar[bool] = True
    takes_fragments: ClassVar[bool] = True
    takes_rounds: ClassVar[bool] = True

    def check(self, num_workers: int) -> None:
        """Raise ``ValueError`` where the settings do not fit each other, or ``num_workers`` workers."""
        super().check(num_workers)
        check_rounds(self)

    def pulled(self, gradient: Tensor, weights: Tensor, start: Tensor) -> Tensor:
        """Return the gradient with that of the proximal term, ``g + rho (x - Theta)``."""
        return gradient + self.proximal * (weights - start) if self.proximal else gradient

    def gather(self, state: State, center: Tensor, delivered: Sequence[Delivered]) -> tuple[State, Tensor]:
        """Return ``Theta + (1/K) sum_l a s(tau_l) (x_l - Theta)``, summed in the order of the messages."""
        moved = center
        for one in delivered:
            weight = self.mix * self.weighting.of(one.late.staleness) / len(delivered)
            moved = moved + weight * (one.late.gradient - center)
        return state, moved
