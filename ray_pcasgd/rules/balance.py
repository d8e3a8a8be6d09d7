"""Which gradients an update takes where all workers count alike: the memory of one server's rounds.

A plain object that the planner and a live server share, as part of their ``Gatherer``.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from fractions import Fraction
from typing import Protocol

from ray_pcasgd.base.errors import RunError
from ray_pcasgd.rules.gathering_base import Gathering

MOST = 1000
"""Gradients of one worker that an update takes at most; one for which others wait longer would fill the memory."""


class _OfWorker(Protocol):
    @property
    def worker(self) -> int: ...


class Balance:
    """When every worker has given enough, and whose gradients make updates after that."""

    def __init__(self, gathering: Gathering) -> None:
        self._gathering = gathering
        self._is_full = False
        """Whether an update has taken gradients of all workers."""
        self._renewed: set[int] = set()
        """Who has been given new weights in this round, and makes no more update in it."""

    def number_due(self, waiting: Sequence[_OfWorker], newcomer: int | None, there: Collection[int]) -> int:
        """Return how many of the gradients that wait, the last ones, are due as an update; note that it is made.

        Args:
            waiting: In the order of their arrival.
            newcomer: The worker whose gradient, the last one, has just arrived; ``None``: nothing has.
            there: The workers that are not known to be gone.

        Raises:
            RunError: a worker is so much faster than another one that the server cannot wait for that.

        """
        averages = self._gathering.averages
        if self._is_full and averages == "latest":
            return len(waiting)
        if self._is_full and averages == "rounds" and not self._renewed.issuperset(there):
            if newcomer is None or newcomer in self._renewed:
                return 0
            self._renewed.add(newcomer)
            return 1
        counts = Counter(one.worker for one in waiting)
        if not waiting or not self._has_enough(counts, there):
            self._check_pace(counts, there)
            return 0
        self._is_full = True
        self._renewed = set() if newcomer is None else {newcomer}
        return len(waiting)

    def renew(self, worker: int) -> None:
        """Note that a worker is back, with new weights."""
        self._renewed.add(worker)

    def _has_enough(self, counts: Counter[int], there: Collection[int]) -> bool:
        if not counts.keys() >= set(there):
            return False
        return len(counts) / sum(Fraction(1, count) for count in counts.values()) >= self._gathering.harmonic

    def _check_pace(self, counts: Counter[int], there: Collection[int]) -> None:
        """Raise ``RunError`` where a worker is so much faster than another one that the server cannot wait for it."""
        most = max(counts.values(), default=0)
        if most > MOST:
            slow, fast = min(there, key=lambda worker: counts[worker]), max(counts, key=lambda worker: counts[worker])
            raise RunError(
                f"algorithm.gathering.name = {self._gathering.name!r}: worker {fast} has sent {most} gradients while "  # type: ignore[attr-defined]
                f"worker {slow} has sent {counts[slow]}; allowed are {MOST} for one update: workers whose paces differ "
                "less, or gatherings that wait for nobody"
            )
