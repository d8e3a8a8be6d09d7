"""Algorithms with a server: what workers send, and what the server makes of it.

Pure, as the rules between peers are. When a server updates is another question, which ``gathering`` answers; the two
combine freely.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, Self

from pydantic import Field
from torch import Tensor

from ray_pcasgd.base.settings import Settings
from ray_pcasgd.rules.correction import Late, State
from ray_pcasgd.rules.gathering import ASGD, AnyGathering, Gathering


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

    def described_further(self) -> tuple[str, ...]:
        """Return what says, after the names of ``described_by``, of which kind a run's rule is."""
        return ()

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

    >>> from ray_pcasgd.rules.parameter_server import ParameterServer
    >>> described(ParameterServer())
    'server, gathering asgd, correction none'
    """
    parts = [str(getattr(algorithm, "name", ""))]
    if isinstance(algorithm, ServerRule):
        named = {setting: getattr(algorithm, setting) for setting in algorithm.described_by}
        parts += [f"{setting} {value.name}" for setting, value in named.items() if value is not None]
        parts += algorithm.described_further()
    return ", ".join(parts)
