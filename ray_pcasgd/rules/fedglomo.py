"""FedGLOMO and FedLOMO: federated learning whose clients and server reduce the noise of what they average.

Das, Acharya, Hashemi, Sanghavi, Dhillon, Topcu, 'Faster Non-Convex Federated Learning via Global and Local Momentum'
(UAI 2022, arXiv 2012.04061).
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from ray_pcasgd.rules.correction import State
from ray_pcasgd.rules.gathering import AnyGathering, Sync
from ray_pcasgd.rules.server import Delivered, ServerRule


class FedGLOMO(ServerRule):
    """Federated averaging with local and global momentum, each of which reduces variance (Das et al., UAI 2022).

    A worker takes ``E = local_steps`` steps ``w_{s+1} = w_s - eta v_s`` from the server's ``x_k`` along
    ``v_s = g_B(w_s) + v_{s-1} - g_B(w_{s-1})``, both gradients of one mini-batch B with one draw of dropout and
    augmentation, and sends ``delta = x_k - w_E``. With the same mini-batches it takes as many from ``x_{k-1}``, which
    give ``delta'``, and sends ``delta - delta'`` as well. The server moves by ``u_k = beta mean(delta) + (1 - beta)
    (u_{k-1} + mean(delta - delta'))``, ``u_0 = mean(delta)``: ``x_{k+1} = x_k - u_k`` (arXiv 2012.04061). With
    ``beta: 1`` it is FedLOMO, whose messages hold ``delta`` alone.

    The first gradient v_0 of each descent is that of all the shard's mini-batches, S of them, so that a message costs
    ``2 (S + 2 (E - 1))`` gradients, with ``beta: 1`` half as many, and takes as much longer in planned runs; with
    ``first: batch`` S is 1. ``num_steps`` counts mini-batches, E a round, whatever is computed of them.

    **Choice**: a worker remembers ``x_{k-1}``, so that the server sends one version; it is what the worker's last
    round began at, also where a link is late. Where it has had none, or the update before took no message of the
    worker, ``delta - delta'`` counts as 0. Both descents have the present step sizes. Buffers (BatchNorm's statistics)
    show the passes at ``w_s`` alone.
    """

    name: Literal["fedglomo"] = "fedglomo"
    gathering: AnyGathering = Sync()
    """When the server updates: ``sync``, once all workers have delivered."""
    beta: float = Field(0.2, gt=0, le=1)
    """The weight of a round's own mean in the server's momentum, in (0, 1]; 1: there is none, which is FedLOMO.
    **Choice**: 0.2, of the order of what was reported; it could not be looked up."""
    first: Literal["shard", "batch"] = "shard"
    """Of what v_0 is the gradient: of the worker's whole ``shard``, so that the local steps have next to no noise, or
    of the round's first mini-batch (``batch``), whose noise they all keep. **Choice**: ``shard``, in every round; the
    paper takes a full or a large batch there, and says that its rate does not need the full one in each round."""

    workers_step: ClassVar[bool] = True
    takes_rounds: ClassVar[bool] = True

    @property
    def sends_weights(self) -> bool:
        """False: what a round has changed."""
        return False

    @property
    def has_momentum(self) -> bool:
        """Whether the server has momentum, for which workers take their local steps from two points."""
        return self.beta < 1

    @property
    def message_vectors(self) -> int:
        """``delta``, and with the server's momentum ``delta - delta'``."""
        return 1 + self.has_momentum

    @property
    def state_vectors(self) -> int:
        """u, with momentum."""
        return int(self.has_momentum)

    @property
    def vectors_of_workers(self) -> int:
        """``x_{k-1}``, with momentum."""
        return int(self.has_momentum)

    def check(self, num_workers: int) -> None:
        """Raise ``ValueError`` where the settings do not fit each other, or ``num_workers`` workers."""
        super().check(num_workers)
        if not isinstance(self.gathering, Sync):
            raise ValueError(
                f"gathering.name = {self.gathering.name!r}: allowed with algorithm.name = 'fedglomo' is sync"
            )

    def num_gradients(self, mini_batches: int, of_shard: int) -> int:
        """Return ``S + 2 (E - 1)`` of each descent; S is the shard's mini-batches, or 1 with ``first: batch``."""
        first = of_shard if self.first == "shard" else 1
        return self.message_vectors * (first + 2 * (mini_batches - 1))

    def init(self, weights: Tensor, num_workers: int) -> State:
        """Return ``u = 0``, and that no worker has sent anything yet; without momentum nothing."""
        return (torch.zeros_like(weights), weights.new_zeros(num_workers)) if self.has_momentum else ()

    def gather(self, state: Any, center: Tensor, delivered: Sequence[Delivered]) -> tuple[State, Tensor]:
        """Return u, who has sent, and ``x - u``; means are summed in the order of the messages."""
        number = len(delivered)
        if not self.has_momentum:
            total = delivered[0].late.gradient
            for one in delivered[1:]:
                total = total + one.late.gradient
            return state, center - total / number
        u, took = state
        total, change, takes = torch.zeros_like(center), torch.zeros_like(center), torch.zeros_like(took)
        for one in delivered:
            delta, difference = one.late.gradient.chunk(2)
            total = total + delta
            change = change + took[one.worker] * difference
            takes[one.worker] = 1.0
        mean = total / number
        following = self.beta * mean + (1 - self.beta) * (u + change / number)
        u = torch.where(took.any(), following, mean)
        return (u, takes), center - u
