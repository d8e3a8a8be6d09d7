"""DiLoCo and its asynchronous relatives: rounds of local steps at workers, an outer optimizer at the server."""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field
from torch import Tensor

from ray_pcasgd.base.settings import from_name
from ray_pcasgd.rules.correction import State
from ray_pcasgd.rules.gathering import AnyGathering, Sync
from ray_pcasgd.rules.heloco import HeLoCo
from ray_pcasgd.rules.lateness import ConstantWeight, LatenessWeight
from ray_pcasgd.rules.merging import Merging, radial_directional, weighted_mean
from ray_pcasgd.rules.outer import DelayedNesterov, OuterSGD
from ray_pcasgd.rules.server import Delivered, ServerRule, check_rounds

AnyOuter = Annotated[
    Annotated[OuterSGD | DelayedNesterov | HeLoCo, Field(discriminator="name")],
    BeforeValidator(from_name),
]
"""An outer optimizer by its name, with its settings."""


class DiLoCo(ServerRule):
    """Distributed low-communication training: workers take H local steps, the server an outer one over their mean.

    A worker starts a round from the server's weights that it has read, takes ``local_steps`` steps with the local
    optimizer, whose state stays its own from round to round, and sends the pseudo-gradient ``Delta_l`` = weights at
    the round's start - weights at its end. The server moves Theta by the outer optimizer over ``Delta = (1/K) sum_l
    s(tau_l) Delta_l`` (Douillard et al. 2023, arXiv 2311.08105, algorithm 1; asynchronous with gathering asgd, Liu et
    al. 2024, arXiv 2401.09135; FedBuff with k-batch-async and polynomial weights, Nguyen et al. 2022, arXiv
    2106.06639). Since a worker sends what its round has changed, not where it ended, a server that has moved on
    meanwhile keeps its moves. **Choice**: the divisor is K, not the sum of the weights s, as FedBuff has it.

    With ``wire.fragments`` it is Streaming DiLoCo (Douillard et al. 2025, arXiv 2501.18512, algorithm 2) without its
    overlap: a message holds the pseudo-gradient of one part of the numbers, over all rounds since the worker took that
    part in last; the outer optimizer moves that part alone, with a state of its own; the worker takes the part in, and
    goes on by itself in the others. **Choice**: K counts the messages of an update that hold the part, and tau is that
    of the worker's last round.
    """

    name: Literal["diloco"] = "diloco"
    gathering: AnyGathering = Sync()
    """When the server updates; sync is DiLoCo, asgd asynchronous local SGD. Work is never cancelled."""
    outer: AnyOuter = OuterSGD()
    """How the server moves by the mean pseudo-gradient: ``sgd``; for late ones ``delayed-nesterov``, ``heloco``."""
    weighting: LatenessWeight = ConstantWeight()
    """s(tau), by which a pseudo-gradient counts that comes tau updates late: constant, polynomial, hinge,
    exponential."""
    average: Literal["equal", "samples"] = "equal"
    """How the K pseudo-gradients of one update are averaged: ``equal``, as DiLoCo has it; ``samples``, in proportion
    to the sizes of their workers' shards, as FedAvg has it, where K is above 1."""
    merging: Merging = "mean"
    """How they are merged: their ``mean``; or ``radial-directional``, by tensor the mean of their lengths along the
    mean of their directions (Decoupled DiLoCo, arXiv 2604.21428), which is the mean itself where K is 1."""
    alpha: float = Field(0.0, ge=0, lt=1)
    """The share of its own weights, in [0, 1), with which a worker goes on from what the server answers, so that not
    all workers begin alike; 0: none of it, as DiLoCo has it; Streaming and Decoupled DiLoCo have 0.5."""

    workers_step: ClassVar[bool] = True
    takes_fragments: ClassVar[bool] = True
    described_by: ClassVar[tuple[str, ...]] = ("gathering", "outer")
    takes_rounds: ClassVar[bool] = True

    @property
    def sends_weights(self) -> bool:
        """False: what a round has changed."""
        return False

    @property
    def state_vectors(self) -> int:
        """Those of the outer optimizer."""
        return self.outer.state_vectors

    def check(self, num_workers: int) -> None:
        """Raise ``ValueError`` where the settings do not fit each other, or ``num_workers`` workers."""
        super().check(num_workers)
        check_rounds(self)
        try:
            self.outer.check(self._updates_a_round(num_workers))
        except ValueError as error:
            raise ValueError(f"outer.{error}") from None
        if self.average == "samples" and self.gathering.num_gradients(num_workers) == 1:
            raise ValueError(
                f"average = 'samples': allowed with gathering.name = {self.gathering.name!r}, which takes one "
                "pseudo-gradient for an update, is equal"
            )
        if self.shards > 1 and (setting := self.by_tensor):
            raise ValueError(f"shards = {self.shards}: allowed with {setting} is 1, since it looks at whole tensors")

    def shares(self, samples: Sequence[int]) -> tuple[float, ...]:
        """Return the weight of each worker's message, its shard over the mean shard; empty where all weigh the same."""
        mean = sum(samples) / len(samples)
        return tuple(number / mean for number in samples) if self.average == "samples" else ()

    @property
    def by_tensor(self) -> str | None:
        """The outer optimizer, or how pseudo-gradients are merged."""
        if self.outer.by_tensor:
            return f"outer.name = {self.outer.name!r}"
        return None if self.merging == "mean" else f"merging = {self.merging!r}"

    def begin(self, own: Tensor, center: Tensor) -> Tensor:
        """Return ``alpha x_l + (1 - alpha) Theta``.

        **Choice**: ``Delta_l`` counts from there, so that no step of a worker is sent twice.
        """
        return center + self.alpha * (own - center) if self.alpha else center

    def sent(self, start: Tensor, end: Tensor) -> Tensor:
        """Return ``Delta_l``, the start less the end."""
        return start - end

    def init(self, weights: Tensor, num_workers: int) -> State:
        """Return the outer optimizer's state."""
        state: State = self.outer.init(weights, self._updates_a_round(num_workers))
        return state

    def gather(self, state: Any, center: Tensor, delivered: Sequence[Delivered]) -> tuple[State, Tensor]:
        """Return the outer optimizer's next weights over the mean, summed in the order of the messages."""
        sizes, total = delivered[0].sizes, sum(one.share for one in delivered)
        deltas = [self.outer.corrected(state, one.late.gradient, one.late.staleness, sizes) for one in delivered]
        weights = [one.share * self.weighting.of(one.late.staleness) for one in delivered]
        is_mean = self.merging == "mean"
        merged = weighted_mean(deltas, weights, total) if is_mean else radial_directional(deltas, weights, total, sizes)
        return self.outer.step(state, center, merged)

    def _updates_a_round(self, num_workers: int) -> int:
        return num_workers // self.gathering.num_gradients(num_workers)
