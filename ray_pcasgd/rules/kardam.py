"""Kardam: an asynchronous server that takes gradients one by one, and rejects those that do not look like any."""

import math
from typing import ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from ray_pcasgd.base.numerics import norm
from ray_pcasgd.rules.correction_base import Correction, Late
from ray_pcasgd.rules.lateness import ExponentialWeight, LatenessWeight


class KardamState(NamedTuple):
    """What a server remembers of P workers; n is P, f the number of attackers."""

    gradients: Tensor
    """Each worker's last gradient, shape (P, D)."""
    points: Tensor
    """Where it was computed, shape (P, D)."""
    known: Tensor
    """Of which workers there are any, shape (P,), bool."""
    growths: Tensor
    """Each worker's last growths K_p, the newest first, -1 where there are none; shape (P, window)."""
    last_gradient: Tensor
    """The gradient that was accepted last, shape (D,)."""
    last_point: Tensor
    """The server's weights when it was, shape (D,)."""
    contributors: Tensor
    """The workers of the last 2f gradients that passed both filters, the newest first, -1 before the first; int64."""
    in_a_row: Tensor
    """Gradients that the Lipschitz filter has rejected since the last that was accepted, shape (), int64."""
    sent: Tensor
    """Gradients of each worker since the last that passed both filters, shape (P,), int64."""
    unfiltered: Tensor
    """1 where the last update's gradient was accepted though it came too often, else 0; shape ()."""
    rejected: Tensor
    """1 for the worker whose gradient was rejected at the last update, else 0; shape (P,)."""


class Kardam(Correction):
    """Kardam: two filters and a dampening law (Damaskinos, El Mhamdi, Guerraoui, Patra, Taziki, ICML 2018, 1802.07928).

    The paper's filtering component is both filters, its dampening component is L. A gradient g of worker p, computed at
    x_s, comes to a server at x_t that stands f attackers among n > 3f workers.

    * *Lipschitz filter*: g may not grow faster than others do, ``|g - g_last| / |x_t - x_last| <= quantile of K_q``,
      the ``(n - f)/n``-quantile over all workers q; ``g_last`` is the gradient that was accepted last, at ``x_last``.
      ``K_p = |g - g_p| / |x_s - x_p|`` is a worker's own growth since its gradient ``g_p`` before, at ``x_p``.
    * *Frequency filter*: of any 2f + 1 gradients in a row that are accepted, any f workers send f at most.
    * What passes both counts ``L(tau) g``. What does not, moves nothing: not the weights, nor the optimizer's memory.

    Until a first growth is known all pass the first filter, and so does what comes after n rejections by it in a row,
    so that training goes on. **Choice**: the quantile of m values is the ``ceil(m (n - f)/n)``-th smallest; ``K_q`` is
    the largest of a worker's last 25, as in the authors' code (whose quantile is 2/3 whatever f is, and which lacks the
    second filter); a growth over no distance is none; a gradient that is not finite, or whose square is not, never
    passes. With f = 0 the quantile is the largest of all: little is out where nobody's growth is unlike the others'.

    **Choice**: where so many workers have left that fewer than 2f + 1 still send, nothing could pass the second filter.
    So it is set aside while f + 1 workers have each sent at least ``n (1 + m)`` gradients since the last that passed
    both, where m is how many the (2f + 1)-th most active one has sent: it has left, or is n times as slow. However
    often they send, f attackers alone do not bring that about, but they do with one honest worker that is as fast, as
    long as all but 2f are so slow; and where f workers or fewer are left, who may all be attackers, nothing passes.

    The paper's own assumption is that gradients differ because weights do. Where mini-batches are small they differ for
    their samples, and the filter compares noise over one update with noise over n: see experiments/byzantine.
    """

    needs_gap: ClassVar[bool] = True
    elementwise: ClassVar[bool] = False
    rejects: ClassVar[bool] = True

    name: Literal["kardam"] = "kardam"
    attackers: int = Field(1, ge=0, le=1000)
    """f: attackers that are stood, below a third of the workers."""
    weighting: LatenessWeight = ExponentialWeight()
    """L(tau), by which a late gradient that is accepted counts less: `exponential` with a = 0.2, the paper's; or
    `polynomial` (with a = 1 the paper's other one), `hinge`, `constant`."""
    window: int = Field(25, ge=1, le=10_000)
    """Growths of each worker of which the largest counts."""

    def check(self, num_workers: int) -> None:
        """Raise ``ValueError`` where there are not more than three times as many workers as attackers."""
        if num_workers <= 3 * self.attackers:
            most = (num_workers - 1) // 3
            allowed = f"are 0 to {most}" if most else "is 0"
            raise ValueError(
                f"attackers = {self.attackers}: allowed {allowed}, below a third of the {num_workers} workers"
            )

    def init(self, weights: Tensor, num_workers: int) -> tuple[Tensor, ...]:
        """Return a state that knows nothing."""
        each = weights.new_zeros(num_workers, weights.shape[-1])
        return KardamState(
            each,
            each.clone(),
            torch.zeros(num_workers, dtype=torch.bool, device=weights.device),
            weights.new_full((num_workers, self.window), -1.0),
            torch.zeros_like(weights),
            torch.zeros_like(weights),
            torch.full((2 * self.attackers,), -1, device=weights.device),
            torch.zeros((), dtype=torch.int64, device=weights.device),
            torch.zeros(num_workers, dtype=torch.int64, device=weights.device),
            weights.new_zeros(()),
            weights.new_zeros(num_workers),
        )

    def apply(self, state: tuple[Tensor, ...], worker: int, late: Late) -> tuple[tuple[Tensor, ...], Tensor]:
        """Return ``L(tau) g``, or zeros where it is rejected."""
        before = KardamState(*state)
        number = before.known.shape[0]
        growths = self._with_growth(before, worker, late)
        is_known = growths[:, 0] >= 0
        distance = norm(late.present - before.last_point)
        growth = norm(late.gradient - before.last_gradient) / torch.where(distance > 0, distance, 1.0)
        grows = growth > self._quantile(growths.amax(1), is_known)
        # Out whatever else holds, and remembered nowhere.
        is_lie = ~norm(late.gradient).isfinite()
        is_out = grows & is_known.any() & (distance > 0) & (before.in_a_row < number)
        row = torch.arange(number, device=growths.device) == worker
        noted = row & ~is_lie
        sent = before.sent + noted
        contributors = torch.cat((torch.full_like(before.in_a_row, worker)[None], before.contributors))
        is_frequent = self._is_too_frequent(contributors, number)
        is_accepted = ~is_out & ~is_lie & (~is_frequent | self._is_left_with_few(sent))
        passes_both = is_accepted & ~is_frequent
        following = KardamState(
            torch.where(noted[:, None], late.gradient, before.gradients),
            torch.where(noted[:, None], late.computed_at, before.points),
            before.known | noted,
            growths,
            torch.where(is_accepted, late.gradient, before.last_gradient),
            torch.where(is_accepted, late.present, before.last_point),
            torch.where(passes_both, contributors[: len(before.contributors)], before.contributors),
            torch.where(is_accepted, 0, before.in_a_row + (is_out & ~is_lie)),
            torch.where(passes_both, 0, sent),
            (is_accepted & is_frequent).to(growths.dtype),
            (row & ~is_accepted).to(growths.dtype),
        )
        return following, torch.where(is_accepted, self.weighting.of(late.staleness) * late.gradient, 0.0)

    def rejected(self, state: tuple[Tensor, ...]) -> Tensor:
        """Return 1 for the worker whose gradient the last ``apply`` has rejected, else 0; shape (P,)."""
        return KardamState(*state).rejected

    def unfiltered(self, state: tuple[Tensor, ...]) -> Tensor:
        """Return 1 where the last ``apply`` has set the frequency filter aside, else 0; shape ()."""
        return KardamState(*state).unfiltered

    def _with_growth(self, state: KardamState, worker: int, late: Late) -> Tensor:
        """Return the growths with the worker's newest one, where there is one; shape (P, window)."""
        moved = norm(late.computed_at - state.points[worker])
        growth = norm(late.gradient - state.gradients[worker]) / torch.where(moved > 0, moved, 1.0)
        row = torch.cat((growth[None], state.growths[worker, :-1]))
        is_one = state.known[worker] & (moved > 0) & growth.isfinite()
        rows = torch.arange(state.known.shape[0], device=row.device)[:, None] == worker
        return torch.where(rows & is_one, row, state.growths)

    def _quantile(self, values: Tensor, is_known: Tensor) -> Tensor:
        """Return the ``(n - f)/n``-quantile of the known of n values, shape ()."""
        number = values.shape[0]
        rank = (is_known.sum() * (number - self.attackers) + number - 1) // number - 1
        ordered = torch.where(is_known, values, math.inf).sort().values
        return torch.where(torch.arange(number, device=values.device) == rank.clamp(min=0), ordered, 0.0).sum()

    def _is_too_frequent(self, contributors: Tensor, number: int) -> Tensor:
        """Return whether the f workers that contribute most to 2f + 1 gradients contribute more than f, shape ()."""
        workers = torch.arange(number, device=contributors.device)
        counts = (contributors[:, None] == workers).sum(0)
        return counts.sort(descending=True).values[: self.attackers].sum() > self.attackers

    def _is_left_with_few(self, sent: Tensor) -> Tensor:
        """Return whether f + 1 workers send, and too few others for the frequency filter, shape ()."""
        most = sent.sort(descending=True).values
        return most[self.attackers] >= len(sent) * (1 + most[2 * self.attackers])
