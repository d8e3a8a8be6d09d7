"""Algorithms with a server: what workers send, and what the server makes of it.

Pure, as the rules between peers are. When a server updates is another question, which ``gathering`` answers; the two
combine freely.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from ray_pcasgd.base.settings import Settings, from_name
from ray_pcasgd.rules.correction import AnyCorrection, Late, NoCorrection, State
from ray_pcasgd.rules.gathering import ASGD, AnyGathering, Gathering
from ray_pcasgd.rules.gradient_table import Entry, Table, begun, empty_table, folded, mean_of_workers, replaced
from ray_pcasgd.rules.momentum_compensation import MomentumCompensation
from ray_pcasgd.rules.screen_base import Screen
from ray_pcasgd.rules.screens import AnyScreen, NearestNeighbors
from ray_pcasgd.rules.shared_memory import InconsistentView
from ray_pcasgd.rules.votes import Votes


class Delivered(NamedTuple):
    """One worker's message as the server takes it."""

    worker: int
    """0 to P - 1."""
    late: Late
    """Its ``gradient`` is whatever the rule's workers send."""
    share: float = 1.0
    """By how much it counts in a mean, as ``ServerRule.shares`` has it."""
    sizes: tuple[int, ...] = ()
    """Numbers of each tensor, or part of one, that the server's vectors are made of."""


class ServerRule(Settings, ABC):
    """An algorithm with a server: its fields are its settings, its methods are pure."""

    gathering: AnyGathering = ASGD()
    """When the server updates."""
    shards: int = Field(1, ge=1, le=1000)
    """Servers among which the parameters are divided, each with its own actor; they gather alike, each on its own."""
    micro_batches: int = Field(4, ge=1, le=10_000)
    """Pieces of a mini-batch; between them a worker looks whether its work has been cancelled. The gradient is that of
    the whole batch. Without meaning where no work is ever cancelled: then batches stay whole."""

    workers_step: ClassVar[bool]
    """Whether the workers have the local optimizer and keep their own weights; else the server has it."""
    reads_before: ClassVar[int] = 0
    """How many versions before its present one a worker is given."""
    described_by: ClassVar[tuple[str, ...]] = ("gathering",)
    """Settings whose names say which of its kind a run's rule is."""
    takes_rounds: ClassVar[bool] = False
    """Whether the run's ``local_steps`` say how many mini-batches a message has; else ``local_steps`` here."""
    takes_epochs: ClassVar[bool] = False
    """Whether its updates are in epochs, each of which begins with one that moves nothing (``remembered``)."""
    takes_fragments: ClassVar[bool] = False
    """Whether messages may hold a part of the numbers each, which the server then moves alone: only where workers go on
    by themselves in the others, and ``begin``, ``sent``, ``pulled`` and ``gather`` look at each number by itself."""

    @property
    def local_steps(self) -> int:
        """Mini-batches of one message."""
        return 1

    @property
    def needs_gap(self) -> bool:
        """Whether the server keeps the weights that its workers compute at."""
        return False

    @property
    def sends_weights(self) -> bool:
        """Whether workers send weights; else gradients, or what a round has changed."""
        return self.workers_step

    @property
    def by_tensor(self) -> str | None:
        """The setting for which a server looks at whole tensors, with its value; ``None`` where it does not."""
        return None

    @property
    def message_vectors(self) -> int:
        """How many vectors of shape (D,) a worker's message holds; ``late.gradient`` has one after another."""
        return 1

    @property
    def state_vectors(self) -> int:
        """How many vectors of shape (D,) the server keeps besides its weights, where it has no local optimizer."""
        return 0

    @property
    def vectors_of_workers(self) -> int:
        """How many vectors of shape (D,) a worker keeps from message to message besides its weights."""
        return 0

    @property
    def pieces(self) -> int:
        """Pieces of a mini-batch."""
        return self.micro_batches if self.gathering.cancels else 1

    def check(self, num_workers: int) -> None:
        """Raise ``ValueError`` where the settings do not fit ``num_workers`` workers."""
        try:
            self.gathering.check(num_workers)
        except ValueError as error:
            raise ValueError(f"gathering.{error}") from None
        gathering = self.gathering
        _check_numbers(gathering, num_workers)
        if gathering.epoch is not None and not self.takes_epochs:
            raise ValueError(f"gathering.name = {gathering.name!r}: allowed with algorithm.name = 'svrg' alone")
        # Servers that take different ones first would leave each worker waiting for a server that waits for others.
        takes_some = gathering.adapts_every is not None or 1 < gathering.num_gradients(num_workers) < num_workers
        if self.shards > 1 and takes_some and gathering.waits and not gathering.cancels:
            raise ValueError(
                f"shards = {self.shards}: allowed with gathering.name = {gathering.name!r} is 1, unless its k is 1 "
                "or the number of workers; k-batch-async has no such limit"
            )

    def begin(self, own: Tensor, center: Tensor) -> Tensor:
        """Return the weights at which a worker computes: its own ones are ``own``, the server's ``center``; (D,)."""
        return center

    def pulled(self, gradient: Tensor, weights: Tensor, start: Tensor) -> Tensor:
        """Return the gradient that the optimizer of a worker sees which began its round at ``start``; all (D,)."""
        return gradient

    def sent(self, start: Tensor, end: Tensor) -> Tensor:
        """Return what a worker with the local optimizer sends of a round from ``start`` to ``end``; all (D,)."""
        return end

    def shares(self, samples: Sequence[int]) -> tuple[float, ...]:
        """Return by how much each worker's message counts in a mean, by the sizes of their shards; empty: by 1."""
        return ()

    def num_gradients(self, mini_batches: int, of_shard: int) -> int:
        """Return how many mini-batch gradients a message of so many mini-batches takes.

        ``of_shard`` is how many mini-batches the worker's whole shard has.
        """
        return mini_batches

    def fitted(self, num_batches: int) -> Self:
        """Return the rule with what it leaves to the run: all shards together have ``num_batches`` mini-batches."""
        return self

    def init(self, weights: Tensor, num_workers: int) -> State:
        """Return the server's state before its first update."""
        return ()

    def remembered(self, state: State, delivered: Sequence[Delivered]) -> State:
        """Return the state after the first update of an epoch, which moves nothing; all workers' messages are there."""
        return state

    def left_out(self, state: State) -> Tensor | None:
        """Return the share in [0, 1] by which each worker's messages were left out of the last update, shape (P,).

        Where all that an update has taken was left out whole, it moves nothing. ``None``: nothing is ever left out.
        """
        return None

    def is_enough(self, number: int) -> bool | None:
        """Return whether so many gradients can be screened; ``None`` where none are."""
        return None

    def unfiltered(self, state: State) -> Tensor | None:
        """Return 1 where the last update has set a filter aside since too few workers are left for it, shape ().

        Else 0; ``None`` where there is no such filter.
        """
        return None

    @abstractmethod
    def gather(self, state: State, center: Tensor, delivered: Sequence[Delivered]) -> tuple[State, Tensor]:
        """Return the server's next state and what moves it: a gradient for its optimizer, or its next weights."""


def _check_numbers(gathering: Gathering, num_workers: int) -> None:
    setting = f"gathering.name = {gathering.name!r}"  # type: ignore[attr-defined]
    number: Any = gathering.num_gradients(num_workers)
    if type(number) is not int or number < 1 or (gathering.waits and number > num_workers):
        bound = f"from 1 to the number of workers, {num_workers}" if gathering.waits else "from 1 on"
        raise ValueError(f"{setting}: takes {number!r} gradients for an update; allowed are whole numbers {bound}")
    ratios = (0.5, 1.0, 100.0, math.inf) if gathering.adapts_every is not None else ()
    first, again = (
        [gathering.num_gradients(num_workers), *(gathering.adapted(num_workers, number, ratio) for ratio in ratios)]
        for _ in range(2)
    )
    if wrong := [k for k in first if type(k) is not int]:
        raise ValueError(f"{setting}: adapts the gradients for an update to {wrong[0]!r}; allowed are whole numbers")
    if first != again:
        raise ValueError(
            f"{setting}: takes other numbers of gradients from call to call; allowed is what follows from its settings "
            "and what it is given"
        )


def check_rounds(rule: ServerRule) -> None:
    """Raise ``ValueError`` where a rule whose workers take rounds of local steps has a gathering that cancels them."""
    if rule.gathering.expires is not None or rule.gathering.averages != "gradients":
        raise ValueError(
            f"gathering.name = {rule.gathering.name!r}: allowed with rounds of local steps are those that take "
            "all work, as sync, k-async, asgd, k-batch-async and n-softsync"
        )


def described(algorithm: Settings) -> str:
    """Return an algorithm's name, with what it waits for and how it corrects where there is a server.

    >>> described(ParameterServer())
    'server, gathering asgd, correction none'
    """
    parts = [str(getattr(algorithm, "name", ""))]
    if isinstance(algorithm, ServerRule):
        named = {setting: getattr(algorithm, setting) for setting in algorithm.described_by}
        parts += [f"{setting} {value.name}" for setting, value in named.items() if value is not None]
        if isinstance(algorithm, ParameterServer):
            if algorithm.screen is not None and algorithm.screen.nearest_neighbor_mixing:
                parts.append("nearest-neighbor mixing")
            if algorithm.view is not None:
                parts.append(f"view of {algorithm.view.delay + 1} versions")
    return ", ".join(parts)


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


class ElasticAveraging(ServerRule):
    """EASGD: workers train on their own, tied to a center variable by springs (Zhang, Choromanska, LeCun 2015).

    Every ``period`` steps a worker and the center move towards each other by ``e = alpha (x_i - c)``: with gathering
    ``asgd`` one worker after another (asynchronous EASGD), with ``sync`` all at once. The worker's ``c`` is the one
    before the update that takes its ``x_i``, so both sides use the same ``e``. With momentum it is EAMSGD.
    """

    name: Literal["elastic-averaging"] = "elastic-averaging"
    alpha: float = Field(0.1, gt=0, lt=1)
    """Strength of the spring, in (0, 1); the authors suggest 0.9 over the number of workers."""
    period: int = Field(4, ge=1, le=10_000)
    """Steps of a worker between exchanges."""

    workers_step: ClassVar[bool] = True
    takes_fragments: ClassVar[bool] = True
    reads_before: ClassVar[int] = 1

    @property
    def local_steps(self) -> int:
        """The period."""
        return self.period

    def check(self, num_workers: int) -> None:
        """Raise ``ValueError`` where the settings do not fit each other, or ``num_workers`` workers."""
        super().check(num_workers)
        gathering = self.gathering
        is_plain = gathering.expires is None and gathering.adapts_every is None and not gathering.grace
        if not is_plain or not gathering.waits:
            raise ValueError(
                f"gathering.name = {gathering.name!r}: allowed with elastic averaging are sync, k-async, asgd; "
                "each exchange is waited for, and none is given up"
            )
        if gathering.num_gradients(num_workers) * self.alpha > 1:
            raise ValueError(
                f"alpha = {self.alpha:g}: allowed are values up to {1 / gathering.num_gradients(num_workers):g}, one "
                "over the number of workers that move the center at once"
            )

    def begin(self, own: Tensor, center: Tensor) -> Tensor:
        """Return ``x_i - alpha (x_i - c)``."""
        return own - self.alpha * (own - center)

    def gather(self, state: State, center: Tensor, delivered: Sequence[Delivered]) -> tuple[State, Tensor]:
        """Return ``c + alpha sum_i (x_i - c)``, summed in the order of the workers."""
        moved = center
        for one in delivered:
            moved = moved + self.alpha * (one.late.gradient - center)
        return state, moved
