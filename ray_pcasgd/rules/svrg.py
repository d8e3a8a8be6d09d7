"""Asynchronous SVRG: variance reduction by full gradients, at a server whose workers' gradients come late.

Huo, Huang, 'Asynchronous Stochastic Gradient Descent with Variance Reduction for Non-Convex Optimization' (AAAI 2017,
arXiv 1604.03584), of whose two algorithms this is the one for distributed memory.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import field_validator
from torch import Tensor

from ray_pcasgd.rules.correction import State
from ray_pcasgd.rules.epochs import Epochs
from ray_pcasgd.rules.gathering import AnyGathering
from ray_pcasgd.rules.server import Delivered, ServerRule


class SVRG(ServerRule):
    """Asynchronous SVRG, distributed: gradients less their noise at a snapshot (Huo, Huang, AAAI 2017).

    Of each epoch ``w~`` are the weights where it begins, and ``mu = grad f(w~)`` is made synchronously: worker i sends
    ``grad f_i(w~)`` of its whole shard, ``mu = sum_i n_i grad f_i(w~) / n``. Then, for m updates, a worker that reads
    ``w`` sends ``d = g_B(w) - g_B(w~)``, of one mini-batch B with one draw of dropout and augmentation, and the server
    moves by ``v = d + mu`` as soon as that comes: ``w <- w - eta u``, u the optimizer's direction of v (arXiv
    1604.03584, the algorithm for distributed memory). As w and w~ approach a minimum the variance of v goes to 0, so
    that eta may stay as it is.

    A worker remembers w~ and the server mu, so no message is longer than that of ``server``. A gradient costs two;
    in planned runs it takes twice the compute time, and a full gradient as long as the shard's mini-batches. A
    snapshot is an update that moves nothing, and counts as one step of ``num_steps``.

    **Choice**: d is multiplied by ``n_i`` over the mean shard, so that v has no bias where shards differ in size and
    workers are equally fast. Where a link is late by steps, it holds back no snapshot, and within an epoch nothing
    older. The full gradient is computed mini-batch by mini-batch as in training, of which buffers (BatchNorm's
    statistics) show nothing. A worker that comes back within an epoch has no w~: what it sends moves nothing until
    the next one begins.
    """

    name: Literal["svrg"] = "svrg"
    gathering: AnyGathering = Epochs()
    """When the server updates: ``epochs``, which also says how long they are."""

    workers_step: ClassVar[bool] = False
    takes_epochs: ClassVar[bool] = True

    @field_validator("gathering", mode="before")
    @classmethod
    def _epochs_without_their_name(cls, value: Any) -> Any:
        # There is no other one.
        is_unnamed = isinstance(value, Mapping) and "name" not in value
        return {"name": "epochs", **value} if is_unnamed else value

    @property
    def vectors_of_workers(self) -> int:
        """w~, where the present epoch has begun."""
        return 1

    def check(self, num_workers: int) -> None:
        """Raise ``ValueError`` where the settings do not fit each other, or ``num_workers`` workers."""
        super().check(num_workers)
        if not isinstance(self.gathering, Epochs):
            raise ValueError(
                f"gathering.name = {self.gathering.name!r}: allowed with algorithm.name = 'svrg' is epochs"
            )
        if self.shards > 1:
            raise ValueError(
                f"shards = {self.shards}: allowed with algorithm.name = 'svrg' is 1; epochs of several servers would "
                "begin at different times"
            )

    def num_gradients(self, mini_batches: int, of_shard: int) -> int:
        """Return two for each mini-batch: where the worker is, and at w~."""
        return 2 * mini_batches

    def fitted(self, num_batches: int) -> Self:
        """Return the rule with a length of its epochs."""
        if not isinstance(self.gathering, Epochs) or self.gathering.updates is not None:
            return self
        return self.model_copy(update={"gathering": Epochs(updates=2 * num_batches)})

    def shares(self, samples: Sequence[int]) -> tuple[float, ...]:
        """Return the weight of each worker's message, its shard over the mean shard."""
        mean = sum(samples) / len(samples)
        return tuple(number / mean for number in samples)

    def init(self, weights: Tensor, num_workers: int) -> State:
        """Return mu = 0."""
        return (torch.zeros_like(weights),)

    def remembered(self, state: State, delivered: Sequence[Delivered]) -> State:
        """Return mu, the mean of the full gradients, summed in the order of the workers."""
        mean = delivered[0].share * delivered[0].late.gradient
        for one in delivered[1:]:
            mean = mean + one.share * one.late.gradient
        return (mean / sum(one.share for one in delivered),)

    def gather(self, state: Any, center: Tensor, delivered: Sequence[Delivered]) -> tuple[State, Tensor]:
        """Return the mean of ``v = d + mu``."""
        (mu,) = state
        total = delivered[0].share * delivered[0].late.gradient
        for one in delivered[1:]:
            total = total + one.share * one.late.gradient
        return state, total / len(delivered) + mu
