"""The parameter server: workers send gradients, and the server steps along what it makes of them."""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from ray_pcasgd.base.settings import from_name
from ray_pcasgd.rules.correction import AnyCorrection, NoCorrection, State
from ray_pcasgd.rules.gathering import ASGD
from ray_pcasgd.rules.gradient_table import Entry, Table, begun, empty_table, folded, mean_of_workers, replaced
from ray_pcasgd.rules.momentum_compensation import MomentumCompensation
from ray_pcasgd.rules.screen_base import Screen
from ray_pcasgd.rules.screens import AnyScreen, NearestNeighbors
from ray_pcasgd.rules.server import Delivered, ServerRule
from ray_pcasgd.rules.shared_memory import InconsistentView
from ray_pcasgd.rules.votes import Votes


class ParameterServer(ServerRule):
    """A server holds the weights, workers send gradients: ``w <- w - eta u``, u the optimizer's direction of the mean.

    The mean is that of the K corrected gradients, ``(1/K) sum_l c(g_l)``; with ``malenia``, ``ringleader`` and
    ``ia2sgd`` that of the workers' own means, ``(1/n) sum_i (1/b_i) sum_j c(g_ij)``, as these say. **Choice**:
    floating-point buffers (BatchNorm's statistics) of the server become the mean of those that come with an update's
    gradients, after their forward passes.
    """

    name: Literal["server"] = "server"
    correction: AnyCorrection = NoCorrection()
    """How a late gradient is corrected."""
    view: InconsistentView | None = None
    """Views that mix versions, as of memory that others write to, such as ``{delay: 10}``; not given: none do."""
    nesterov: Annotated[MomentumCompensation | None, BeforeValidator(from_name)] = None
    """``momentum-compensation`` adds Nesterov's momentum, in a form for late gradients; not given: none."""
    screen: AnyScreen | None = None
    """What takes the place of the mean of an update's gradients, so that attackers among the workers cannot move it at
    will: any of bridge's screens but `nearest-neighbors`; not with `correction: kardam`. Not given: the mean."""
    attackers: int | None = Field(None, ge=0, le=1000)
    """b, with `screen`: how many of an update's gradients may be attackers'. An update takes `2b + 1` gradients at
    least, with `krum` `2b + 3`, with `bulyan` `4b + 3`; where fewer come, since workers have left, nothing moves. Not
    given: 1. Where nobody waits (`k-batch-async`), an update may take several of one worker."""

    workers_step: ClassVar[bool] = False
    described_by: ClassVar[tuple[str, ...]] = ("gathering", "correction", "screen", "nesterov")

    @property
    def needs_gap(self) -> bool:
        """Whether the correction asks how far the server has come."""
        return self.correction.needs_gap

    def check(self, num_workers: int) -> None:
        """Raise ``ValueError`` where the settings do not fit each other, or ``num_workers`` workers."""
        super().check(num_workers)
        self._check_judging(num_workers)
        if self.nesterov is not None:
            self._check_nesterov()
        if self.shards > 1 and not self.correction.elementwise:
            raise ValueError(
                f"shards = {self.shards}: allowed with correction.name = {self.correction.name!r} is 1, since it "
                "looks at all parameters at once"
            )

    def _check_nesterov(self) -> None:
        assert self.nesterov is not None
        name = self.nesterov.name
        if self.view is not None:
            raise ValueError(f"view: allowed with nesterov.name = {name!r} is null")
        if self.screen is not None:
            raise ValueError(f"screen.name = {self.screen.name!r}: allowed with nesterov.name = {name!r} is null")
        if self.correction.rejects:
            raise ValueError(
                f"correction.name = {self.correction.name!r}: allowed with nesterov.name = {name!r} are those that "
                "reject nothing"
            )
        if self.needs_gap:
            raise ValueError(
                f"correction.name = {self.correction.name!r}: allowed with nesterov.name = {name!r} are those that "
                "do not ask where a gradient was computed"
            )
        if self.nesterov.delay is None and self.gathering.name not in ("asgd", "sync"):
            raise ValueError(
                f"nesterov.delay: not given; allowed with gathering.name = {self.gathering.name!r} is a number of "
                "updates, from 0 on"
            )

    def delay_of(self, num_workers: int) -> int:
        """Return by how many updates Nesterov's momentum looks ahead."""
        assert self.nesterov is not None
        if self.nesterov.delay is not None:
            return self.nesterov.delay
        return num_workers - 1 if isinstance(self.gathering, ASGD) else 0

    def _check_judging(self, num_workers: int) -> None:
        """Raise ``ValueError`` where gradients cannot be screened or rejected as the settings say."""
        try:
            self.correction.check(num_workers)
        except ValueError as error:
            raise ValueError(f"correction.{error}") from None
        gathering, screen = self.gathering, self.screen
        named, number = f"gathering.name = {gathering.name!r}", gathering.num_gradients(num_workers)
        is_plain = gathering.averages == "gradients" and gathering.adapts_every is None
        if self.correction.rejects and screen is not None:
            raise ValueError(
                f"screen.name = {screen.name!r}: allowed with correction.name = {self.correction.name!r} is null; that "
                "says which gradients count"
            )
        if self.correction.rejects and not (is_plain and number == 1 and not gathering.grace):
            raise ValueError(
                f"correction.name = {self.correction.name!r}: allowed with {named} is another one; it takes gradients "
                "one by one, as asgd does"
            )
        if screen is not None:
            self._check_screen(screen, number, is_plain)
        elif self.attackers is not None:
            raise ValueError(f"attackers = {self.attackers}: allowed with screen = null is null")

    def _check_screen(self, screen: AnyScreen, number: int, is_plain: bool) -> None:
        """Raise ``ValueError`` where so many gradients, or parts of them, cannot be screened."""
        name, named = screen.name, f"gathering.name = {self.gathering.name!r}"
        if not is_plain or isinstance(screen, NearestNeighbors):
            allowed = (
                "another one; a server has no vector of its own"
                if is_plain
                else f"null, since {named} says what counts"
            )
            raise ValueError(f"screen.name = {name!r}: allowed is {allowed}")
        needed = screen.least(self.num_attackers, center_votes=False)
        if number < needed:
            raise ValueError(
                f"attackers = {self.num_attackers}: with screen.name = {name!r} an update takes {needed} "
                f"gradients or more; allowed with {named}, which takes {number}, are fewer attackers or another screen"
            )
        if self.shards > 1 and not screen.screens_parts:
            asked = "nearest_neighbor_mixing = true" if screen.elementwise else f"name = {name!r}"
            raise ValueError(
                f"shards = {self.shards}: allowed with screen.{asked} is 1, since it looks at all parameters at once"
            )

    @property
    def num_attackers(self) -> int:
        """b, where it is not given, too."""
        return 1 if self.attackers is None else self.attackers

    def init(self, weights: Tensor, num_workers: int) -> State:
        """Return the correction's state, and behind it the table of gradients where workers count alike.

        With a screen, behind it the last mean, and by how much each worker was left out of it.
        """
        own = self.correction.init(weights, num_workers)
        if self.screen is not None:
            return (*own, torch.zeros_like(weights), weights.new_zeros(num_workers))
        return own if self.gathering.averages == "gradients" else (*own, *empty_table(weights, num_workers))

    def gather(self, state: State, center: Tensor, delivered: Sequence[Delivered]) -> tuple[State, Tensor]:
        """Return the mean of the corrected gradients, summed in their order, or that of their workers' means."""
        if self.gathering.averages != "gradients":
            return self._gather_alike(state, delivered)
        if self.screen is not None:
            return self._gather_screened(self.screen, state, delivered)
        state, total = self.correction.apply(state, *delivered[0][:2])
        for one in delivered[1:]:
            state, corrected = self.correction.apply(state, *one[:2])
            total = total + corrected
        return state, total / len(delivered)

    def _gather_screened(self, screen: Screen, state: State, delivered: Sequence[Delivered]) -> tuple[State, Tensor]:
        """Return the screened mean of the corrected gradients; where there are too few, the last one."""
        *own, center, before = state
        corrections, vectors = tuple(own), []
        for one in delivered:
            corrections, corrected = self.correction.apply(corrections, one.worker, one.late)
            vectors.append(corrected)
        number = len(vectors)
        shares = center.new_full((number,), 1 / number)
        present = torch.ones(number, dtype=torch.bool, device=center.device)
        is_enough = self.is_enough(number)
        screened = screen.apply(Votes(center, tuple(vectors), present, shares, False), self.num_attackers)
        dropped = screened.dropped if is_enough else torch.ones_like(screened.dropped)
        left_out = torch.zeros_like(before)
        for one, share in zip(delivered, dropped.unbind(), strict=True):
            left_out[one.worker] += share / sum(other.worker == one.worker for other in delivered)
        mean = screened.vector if is_enough else center
        return (*corrections, mean, left_out), mean

    def left_out(self, state: State) -> Tensor | None:
        """Return by how much each worker's gradients were left out of the last update, shape (P,)."""
        if self.screen is not None:
            return state[-1]
        return self.correction.rejected(state) if self.correction.rejects else None

    def unfiltered(self, state: State) -> Tensor | None:
        """Return 1 where the last gradient was taken although it came too often, since too few workers are left."""
        return self.correction.unfiltered(state) if self.correction.rejects else None

    def described_further(self) -> tuple[str, ...]:
        """Return whether vectors are mixed before they are screened, and how many versions a view mixes."""
        mixes = self.screen is not None and self.screen.nearest_neighbor_mixing
        mixing = ("nearest-neighbor mixing",) if mixes else ()
        return mixing if self.view is None else (*mixing, f"view of {self.view.delay + 1} versions")

    def is_enough(self, number: int) -> bool | None:
        """Return whether so many gradients can be screened; ``None`` without a screen."""
        return None if self.screen is None else number >= self.screen.least(self.num_attackers, center_votes=False)

    def _gather_alike(self, state: State, delivered: Sequence[Delivered]) -> tuple[State, Tensor]:
        """Return the mean of the workers' means."""
        own, table = state[: -len(Table._fields)], Table(*state[-len(Table._fields) :])
        entries = []
        for one in delivered:
            own, corrected = self.correction.apply(own, one.worker, one.late)
            entries.append(Entry(one.worker, corrected, one.late.staleness))
        table = {"workers": begun, "latest": replaced, "rounds": folded}[self.gathering.averages](table, entries)
        return (*own, *table), mean_of_workers(table)
