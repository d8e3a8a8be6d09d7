"""Which gradients a server waits for before it updates, and what becomes of workers that are late.

``P`` workers; ``K`` gradients make one update. Sources: Dutta, Joshi, Ghosh, Dube, Nagpurkar, 'Slow and Stale
Gradients Can Win the Race' (AISTATS 2018, extended version 2021) for the K-... policies; Zhang, Gupta, Lian, Liu,
'Staleness-aware Async-SGD' (IJCAI 2016) for n-softsync.
"""

import math
from abc import ABC, abstractmethod
from typing import Annotated, ClassVar, Literal, NamedTuple

from pydantic import BeforeValidator, Field

from ray_pcasgd.base.doors import Door
from ray_pcasgd.base.settings import Settings, from_name
from ray_pcasgd.base.state import State


class Arrival(NamedTuple):
    """A gradient that has come to the server."""

    worker: int
    version: int
    """The worker's version: this is its gradient number ``version``."""
    computed_at: int
    """The server's version that the gradient was computed at."""
    round: int
    """The newest server version that the worker knew when it started."""


class Gathering(Settings, ABC):
    """When a server updates. Its fields are its settings."""

    waits: ClassVar[bool]
    """Whether a worker that has delivered starts again only after the update that takes its gradient."""
    cancels: ClassVar[bool] = False
    """Whether an update cancels all work that was begun before it."""

    @abstractmethod
    def num_gradients(self, num_workers: int) -> int:
        """Return K, the gradients of one update, in [1, P]; for AdaSync that of the first update."""

    def check(self, num_workers: int) -> None:
        """Raise ``ValueError`` where the settings do not fit ``num_workers`` workers."""
        return


class Sync(Gathering):
    """Synchronous SGD (hardsync): all P workers have delivered."""

    name: Literal["sync"] = "sync"
    waits: ClassVar[bool] = True

    def num_gradients(self, num_workers: int) -> int:
        """Return P."""
        return num_workers


class _FirstK(Gathering):
    k: int = Field(ge=1)
    """Gradients of one update, K, up to the number of workers."""

    def num_gradients(self, num_workers: int) -> int:
        """Return K."""
        return self.k

    def check(self, num_workers: int) -> None:
        """Raise ``ValueError`` where K is above P."""
        if self.k > num_workers:
            raise ValueError(f"k = {self.k}: allowed are 1 to the number of workers, {num_workers}")


class KSync(_FirstK):
    """The first K workers have delivered; the others are cancelled, and all start afresh."""

    name: Literal["k-sync"] = "k-sync"
    waits: ClassVar[bool] = True
    cancels: ClassVar[bool] = True


class KBatchSync(_FirstK):
    """K gradients at the current version are in, of any workers; unfinished ones are cancelled."""

    name: Literal["k-batch-sync"] = "k-batch-sync"
    waits: ClassVar[bool] = False
    cancels: ClassVar[bool] = True


class KAsync(_FirstK):
    """K different workers have delivered; the others go on, and their gradients come stale."""

    name: Literal["k-async"] = "k-async"
    waits: ClassVar[bool] = True


class KBatchAsync(_FirstK):
    """K gradients are in, of any workers; the others go on."""

    name: Literal["k-batch-async"] = "k-batch-async"
    waits: ClassVar[bool] = False


class ASGD(Gathering):
    """Asynchronous SGD: every gradient is an update; K-async with K = 1."""

    name: Literal["asgd"] = "asgd"
    waits: ClassVar[bool] = True

    def num_gradients(self, num_workers: int) -> int:
        """Return 1."""
        return 1


class NSoftsync(Gathering):
    """n-softsync: ``floor(P / n)`` gradients are in; K-batch-async with that K."""

    name: Literal["n-softsync"] = "n-softsync"
    waits: ClassVar[bool] = False
    n: int = Field(ge=1)
    """Updates for each round of all workers, n; staleness stays near it. 1 to the number of workers."""

    def num_gradients(self, num_workers: int) -> int:
        """Return ``floor(P / n)``."""
        return num_workers // self.n

    def check(self, num_workers: int) -> None:
        """Raise ``ValueError`` where n is above P."""
        if self.n > num_workers:
            raise ValueError(f"n = {self.n}: allowed are 1 to the number of workers, {num_workers}")


class AdaSync(Gathering):
    """AdaSync: K starts small and rises as the loss falls (Dutta et al. 2021, section 5).

    Every ``every_seconds``, ``K`` is set anew from ``r = F(w_0) / F(w)``, rounded, never below the last one, at most
    P. Where the runtime of an update grows linearly in K (K-batch-sync, K-batch-async): ``K = K_0 sqrt(r)``. Where it
    is the K-th of P order statistics (K-sync, K-async): ``K^2 / (P - K) = r K_0^2 / (P - K_0)``.

    **Choice**: ``F(w_0)`` is the mean of the workers' first losses, ``F(w)`` that of the losses that have come since
    K was last set; where none has, K stays.
    """

    name: Literal["adasync"] = "adasync"
    base: Literal["k-sync", "k-batch-sync", "k-async", "k-batch-async"] = "k-async"
    """The policy that uses the present K."""
    initial_k: int = Field(1, ge=1)
    """K_0, below the number of workers."""
    every_seconds: float = Field(ge=1e-9)
    """Seconds (virtual ones in planned runs) after which K is set anew, from a nanosecond on."""

    @property
    def waits(self) -> bool:  # type: ignore[override]
        """Whether a worker that has delivered waits for the update that takes its gradient."""
        return _BASES[self.base].waits

    @property
    def cancels(self) -> bool:  # type: ignore[override]
        """Whether an update cancels all work that was begun before it."""
        return _BASES[self.base].cancels

    def num_gradients(self, num_workers: int) -> int:
        """Return K_0."""
        return self.initial_k

    def check(self, num_workers: int) -> None:
        """Raise ``ValueError`` where K_0 is not below P."""
        if self.initial_k >= num_workers:
            raise ValueError(
                f"initial_k = {self.initial_k}: allowed are values below the number of workers, {num_workers}"
            )

    def adapted(self, num_workers: int, k: int, ratio: float) -> int:
        """Return K for ``ratio = F(w_0) / F(w)``, where it was ``k`` so far."""
        if self.base in ("k-batch-sync", "k-batch-async"):
            wanted = self.initial_k * math.sqrt(ratio)
        else:
            # The positive root of K^2 + c K - c P = 0.
            c = ratio * self.initial_k**2 / (num_workers - self.initial_k)
            wanted = (-c + math.sqrt(c * c + 4 * c * num_workers)) / 2 if c < 1e12 else num_workers
        return max(k, round(min(wanted, num_workers)))


def check_gathering(gathering: Gathering) -> None:
    """Raise ``ValueError`` where a policy that is not the package's own does not say what every policy says."""
    for name in ("waits", "cancels"):
        if not isinstance(value := getattr(gathering, name, None), bool):
            raise ValueError(f"{name} is {value!r}; allowed are True and False")


_BASES: dict[str, type[Gathering]] = {
    "k-sync": KSync,
    "k-batch-sync": KBatchSync,
    "k-async": KAsync,
    "k-batch-async": KBatchAsync,
}

AnyGathering = Annotated[
    Annotated[
        Sync | KSync | KBatchSync | KAsync | KBatchAsync | ASGD | NSoftsync | AdaSync,
        Field(discriminator="name"),
        Door("policy", "ray_pcasgd.gathering", (Gathering,), check_gathering),
    ],
    BeforeValidator(from_name),
]
"""Any gathering policy's settings, told apart by ``name``."""


class Gatherer:
    """One server's arrivals: a plain object that the planner and a live server share."""

    def __init__(self, gathering: Gathering, num_workers: int, version: int = 0) -> None:
        self.gathering = gathering
        self.num_workers = num_workers
        self._wanted = gathering.num_gradients(num_workers)
        self.version = version
        """The server's version."""
        self.waiting: list[Arrival] = []
        """Gradients that the next update will take."""
        self._adaptive = _AdaptiveK(gathering, num_workers) if isinstance(gathering, AdaSync) else None

    @property
    def k(self) -> int:
        """The gradients of the next update: no more than there are workers."""
        return max(1, min(self._wanted, self.num_workers))

    def arrive(self, arrival: Arrival) -> bool:
        """Take in a gradient; return whether it counts, or comes too late for a policy that cancels."""
        if self.gathering.cancels and arrival.round < self.version:
            if self._adaptive is not None:
                self._adaptive.ignore(arrival)
            return False
        self.waiting.append(arrival)
        if self._adaptive is not None:
            self._adaptive.expect(arrival)
        return True

    def take(self) -> tuple[Arrival, ...]:
        """Return the gradients of the next update, in the order of their arrival, once it is due; else an empty tuple.

        What is returned is taken: the server's version rises by one.
        """
        if len(self.waiting) < self.k:
            return ()
        taken, left = self.waiting[: self.k], self.waiting[self.k :]
        self.version += 1
        self.waiting = [] if self.gathering.cancels else left
        return tuple(taken)

    def state(self) -> State:
        """Return the state from which K follows; gradients that wait for an update are not part of it."""
        return {"wanted": self._wanted, "adaptive": self._adaptive.state() if self._adaptive else None}

    def restore(self, state: State) -> None:
        """Go on from a state, without gradients that wait."""
        self._wanted = state["wanted"]
        if self._adaptive is not None:
            self._adaptive.restore(state["adaptive"])

    def lose(self) -> None:
        """Note that a worker is gone, which is no longer waited for."""
        self.num_workers -= 1

    def gain(self) -> None:
        """Note that a lost worker is back."""
        self.num_workers += 1

    def tell(self, worker: int, version: int, loss: float) -> None:
        """Take in the mini-batch loss of a gradient; only AdaSync cares."""
        if self._adaptive is not None:
            self._adaptive.tell(worker, version, loss)

    def adapt(self, now: float) -> bool:
        """Set K anew where that is due by second ``now``; return whether all losses were there that it needs."""
        while self._adaptive is not None and self._adaptive.is_due(now):
            if self._adaptive.is_owed_losses():
                return False
            self._wanted = self._adaptive.next_k(self.k)
            self._adaptive.skip_to(now)
        return True


_MOST_INTERVALS = 10_000
"""Intervals that are passed over one by one."""


class _AdaptiveK:
    """AdaSync's memory of losses."""

    def __init__(self, gathering: AdaSync, num_workers: int) -> None:
        self._gathering = gathering
        self._num_workers = num_workers
        self._due = gathering.every_seconds
        self._first: dict[int, float] = {}
        """The first loss of each worker."""
        self._owed: set[tuple[int, int]] = set()
        """Gradients of this interval whose losses are not known yet, by worker and version."""
        self._early: dict[tuple[int, int], float] = {}
        """Losses that are known before their gradients have arrived."""
        self._losses: dict[tuple[int, int], float] = {}
        """The losses of this interval."""

    def expect(self, arrival: Arrival) -> None:
        key = (arrival.worker, arrival.version)
        if key in self._early:
            self._add(key, self._early.pop(key))
        else:
            self._owed.add(key)

    def ignore(self, arrival: Arrival) -> None:
        self._early.pop((arrival.worker, arrival.version), None)

    def tell(self, worker: int, version: int, loss: float) -> None:
        if (worker, version) in self._owed:
            self._owed.remove((worker, version))
            self._add((worker, version), loss)
        else:
            self._early[worker, version] = loss

    def is_due(self, now: float) -> bool:
        return now >= self._due

    def is_owed_losses(self) -> bool:
        return bool(self._owed)

    def next_k(self, k: int) -> int:
        self._due += self._gathering.every_seconds
        if not self._losses:
            return k
        before = math.fsum(self._first.values()) / len(self._first)
        now = math.fsum(self._losses.values()) / len(self._losses)
        self._losses = {}
        return self._gathering.adapted(self._num_workers, k, before / now if now > 0 else math.inf)

    def skip_to(self, now: float) -> None:
        """Pass over intervals that have no losses, in which K stays, up to the next one."""
        every = self._gathering.every_seconds
        for _ in range(_MOST_INTERVALS):
            if not self.is_due(now):
                return
            self._due += every
        # So many that adding them up one by one would take long, or not change a late time at all.
        self._due = max(now + every, math.nextafter(now, math.inf))

    def state(self) -> State:
        return {"due": self._due, "first": dict(self._first), "losses": dict(self._losses)}

    def restore(self, state: State) -> None:
        self._due, self._first, self._losses = state["due"], dict(state["first"]), dict(state["losses"])

    def _add(self, key: tuple[int, int], loss: float) -> None:
        self._first.setdefault(key[0], loss)
        self._losses[key] = loss
