"""The interface of a rule: what an agent computes from its own state, its direction and the versions that it read."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from ray_pcasgd.base import numerics, one_pass
from ray_pcasgd.base.numerics import Vectors, blockwise
from ray_pcasgd.base.settings import Settings
from ray_pcasgd.records import IndexedReads, Own, Reads, Update
from ray_pcasgd.rules.exchange import AllNeighbors, Exchange, Reading

State = tuple[Tensor, ...]
"""A rule's memory between steps: an empty tuple, or a NamedTuple of tensors of fixed shapes."""

DriftKind = Literal["mean", "before"]
"""Which drift of its own an agent knows for an age ``a`` at its version ``t``: ``mean``, its mean displacement
``1/a sum_{r<a} (x(t-a+r) - x(t-a))``; ``before``, its displacement over as many steps before, ``x(t-a) - x(t-2a)``."""

DriftForm = Literal["exact", "velocity"]
"""How an agent knows its drift: ``exact``, from its own last versions, about as many as the oldest message is steps
old; ``velocity``, that of kind ``mean`` alone, from one vector: its mean velocity, as if its path were straight."""

DefaultBarrier = Literal["none", "all", "bounded"]
"""A barrier by its name; ``bounded`` with a staleness of 1."""

Probe = Callable[[tuple[Tensor, ...]], Tensor]
"""Losses, shape (M,), of M candidate weight vectors of shape (D,) on one independent mini-batch."""


class Taken(NamedTuple):
    """How much one agent has contributed so far, as another one knows."""

    steps: int
    samples: int
    """Size of its shard."""


class Rule(Settings, ABC):
    """A decentralised update rule: its fields are its settings, its methods are pure.

    A rule sees flat tensors only, does not mutate them, and has no ``if`` on a tensor, so that one definition runs
    alone, under ``torch.func.vmap`` over many agents, and on any device. Sums over neighbors run in the neighbors'
    order; inner products come from ``numerics`` alone.
    """

    needs_directions: ClassVar[bool] = False
    """Whether the rule is handed the directions ``u_k`` of those who are late, which messages must then carry."""
    reads_displacements: ClassVar[bool] = False
    """Whether the place of these directions is taken by displacements between versions that were read, so that no
    message holds one; with ``needs_directions``."""
    needs_drift: ClassVar[bool] = False
    """Whether agents must keep the history of their own weights."""
    corrects_gradients: ClassVar[bool] = False
    """Whether ``correct`` changes the gradient before the local optimizer sees it; not with ``needs_directions``."""
    reading: ClassVar[Reading] = "newest"
    """What of a neighbor is read at a step: its ``newest`` version, also a second time; with ``news`` the newest only
    where it is new, without a barrier; or ``every`` version, each exactly once, since it is a part of the sender's
    mass (push-sum): then, and only then, graphs may be directed."""
    numeric_settings: ClassVar[tuple[str, ...]] = ()
    """The settings that reach ``step`` through ``coefficients`` alone, by dotted names: runs that differ only in these
    and the step size can be stepped together."""
    takes_scalars_on_cpu: ClassVar[bool] = False
    """Whether ``own`` and ``reads`` may hold their numbers on the CPU where the vectors are on a GPU, on which each
    small operation costs a kernel: only where the rule itself moves what it compares, as for ``torch.where``."""
    stackable: ClassVar[bool] = True
    """Whether one call steps several agents under ``torch.func.vmap``, to the same bits; a rule with an ``if`` on a
    tensor says False, and its agents are stepped one by one."""
    default_barrier: ClassVar[DefaultBarrier] = "none"
    """The barrier between agents under which the rule is the published algorithm."""
    takes_any_barrier: ClassVar[bool] = False
    """Whether other barriers are allowed where the default one is ``all``: the rule has no asynchronous form of another
    name."""
    combines_first: ClassVar[bool] = False
    """Whether the rule is defined for agents alone that combine what they have read before a round's local steps, and
    send what these come to (adapt-then-combine): it is then handed a direction of zeros."""
    takes_fragments: ClassVar[bool] = False
    """Whether it averages weights number by number, so that an agent may be handed its own where no message holds a
    neighbor's."""
    sends_differences: ClassVar[bool] = False
    """Whether messages hold by how much the sender has moved away from its public copy, which its readers have, too:
    ``own.public`` is the agent's, and ``reads.weights`` are its neighbors'. Only where agents combine first, and wait
    for all."""
    meets_in_pairs: ClassVar[bool] = False
    """Whether agents meet in random pairs, for which all have to be neighbors, and wait for their partner alone."""

    def check(self, num_agents: int) -> None:
        """Raise ``ValueError`` where the settings do not fit a run of that many agents."""
        return

    @property
    def age_max(self) -> int:
        """The oldest age, in own steps, for which the drift is asked; 0 where ``needs_drift`` is false."""
        return 0

    @property
    def drift_kind(self) -> DriftKind:
        """Which drift of its own an agent is asked for, where ``needs_drift``."""
        return "mean"

    @property
    def drift_form(self) -> DriftForm:
        """How an agent knows that drift, where ``needs_drift``."""
        return "exact"

    def partners(self, seed: int, agent: int, step: int, neighbors: tuple[int, ...]) -> tuple[int, ...]:
        """Return the neighbors that an agent reads at this step, in rising order; the same in every engine."""
        return neighbors

    def receivers(self, seed: int, agent: int, version: int, neighbors: tuple[int, ...]) -> tuple[int, ...]:
        """Return the neighbors that an agent sends a version to, in rising order; the same in every engine."""
        return neighbors

    @property
    def waits_for_partners(self) -> bool:
        """Whether a barrier is about those alone whom an agent reads at the step, not about all neighbors."""
        return self.meets_in_pairs

    @property
    def exchange(self) -> Exchange:
        """Who reads whom, and who sends to whom; without the rule where it asks all, so that plans need no torch."""
        kind = type(self)
        asks_all = kind.partners is Rule.partners and kind.receivers is Rule.receivers
        return AllNeighbors(self.reading) if asks_all else self

    def coefficients(self, agent: int, step: int) -> dict[str, float]:
        """Return the numeric settings of one agent at one step; they come back as ``own.coefficients``."""
        return {}

    def observed_coefficients(self, own: Taken, neighbors: Sequence[Taken]) -> dict[str, float]:
        """Return the ``coefficients`` that depend on who has taken how many steps, by what was read."""
        return {}

    def probes_at(self, step: int) -> bool:
        """Return whether ``step`` is handed a probe at this step."""
        return False

    @property
    def displacement_factor(self) -> float:
        """By what the displacement of a round's local steps is multiplied, where agents combine first."""
        return 1.0

    @property
    def measures_curvature(self) -> bool:
        """Whether agents measure the loss's curvature along the late neighbors' directions, which the rule then needs.

        It takes the place of ``coefficients``' own ``"curvature"``: above 0, or 0 as long as it is not known.
        """
        return False

    @property
    def curvature_every(self) -> int:
        """Own steps from one measurement to the next, where late neighbors are read."""
        return 1

    @property
    def curvature_samples(self) -> int:
        """The most samples of a mini-batch that it is measured on."""
        return 16

    def init(self, weights: Tensor, num_neighbors: int) -> Any:
        """Return the state before the first step for weights of shape (D,)."""
        return ()

    def correct(self, own: Own, reads: Reads) -> Tensor:
        """Return the corrected gradient, shape (D,); ``own.direction`` is the gradient as it was computed."""
        return own.direction

    @abstractmethod
    def step(self, state: Any, own: Own, reads: Reads, probe: Probe | None = None) -> tuple[Any, Update]:
        """Return the next state and the update of one step."""

    @property
    def steps_many(self) -> bool:
        """Whether ``step_many`` is there for these settings: a second form of ``step``, made for speed alone."""
        return False

    def step_many(self, state: Any, own: Own, reads: IndexedReads) -> tuple[Any, Update]:
        """Return what ``step`` does for B agents at once, but for float32 rounding.

        All tensors of ``state``, ``own`` and the update have a leading axis of B; the neighbors' vectors are summed
        where they lie.
        """
        raise AssertionError("a rule without a second form")


def mix(own_weight: Tensor, own: Tensor, weights: Tensor, neighbors: tuple[Tensor, ...]) -> Tensor:
    """Return ``w_ii x_i + sum_k w_ik x_k``, summed in the neighbors' order, shape (D,)."""
    if one_pass.takes((own, *neighbors), (own_weight, weights)):
        return one_pass.weighted_sums((own, *neighbors), torch.cat((own_weight.view(1), weights))[None]).sums[0]
    result = own_weight * own
    for weight, neighbor in zip(weights.unbind(), neighbors, strict=True):
        result = result + weight * neighbor
    return result


def averaged_step(own_weight: Tensor, weights: Tensor, own: Own, reads: Reads) -> Tensor:
    """Return ``w_ii x_i + sum_k w_ik x_k - eta u_i`` for a row ``(w_ii, w_ik)`` of a mixing matrix, shape (D,)."""
    vectors = (own.weights, *reads.weights, own.direction)
    if one_pass.takes(vectors, (own_weight, weights, own.step_size)):
        row = torch.cat((own_weight.view(1), weights, -own.step_size.view(1)))
        return one_pass.weighted_sums(vectors, row[None]).sums[0]

    def step(mine: Vectors, neighbors: Vectors) -> Vectors:
        x, u = mine
        return (mix(own_weight, x, weights, neighbors) - own.step_size * u,)

    return blockwise(step, (own.weights, own.direction), reads.weights)[0]


def averaged_steps(own_weights: Tensor, weights: Tensor, own: Own, reads: IndexedReads) -> Tensor:
    """Return what ``averaged_step`` does for B agents, shape (B, D), by rows of shapes (B,) and (B, K)."""
    mixed = numerics.sums_by_place(weights, reads.places, reads.weights)
    return mixed.addcmul_(own_weights[:, None], own.weights).addcmul_(own.step_size[:, None], own.direction, value=-1)


def clipped_row(own_mixing: Tensor, mixing: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """Return the row ``(w~_ii, w~_ik)`` of the clipped matrix: the weight of dropped neighbors goes to the agent.

    ``own_mixing`` has shape (), ``mixing`` and the mask ``keep`` shape (K,); of several agents (B,) and (B, K). The
    matrix stays doubly stochastic whenever unreliability is symmetric.
    """
    kept = torch.where(keep, mixing, 0.0)
    own = own_mixing
    for dropped in torch.where(keep, 0.0, mixing).unbind(-1):
        own = own + dropped
    return own, kept
