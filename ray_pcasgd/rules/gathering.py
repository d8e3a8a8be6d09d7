"""Which gradients a server waits for before it updates, and what becomes of workers that are late.

``P`` workers; ``K`` gradients make one update. Sources: Dutta, Joshi, Ghosh, Dube, Nagpurkar, 'Slow and Stale
Gradients Can Win the Race' (AISTATS 2018, extended version 2021) for the K-... policies; Zhang, Gupta, Lian, Liu,
'Staleness-aware Async-SGD' (IJCAI 2016) for n-softsync.
"""

import math
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import BeforeValidator, Field

from ray_pcasgd.base.doors import Door, naming_own
from ray_pcasgd.base.settings import from_name
from ray_pcasgd.rules.balanced import IA2SGD, Malenia, Ringleader
from ray_pcasgd.rules.delay_threshold import Rennala, Ringmaster
from ray_pcasgd.rules.epochs import Epochs
from ray_pcasgd.rules.gathering_base import Averaging, FirstK
from ray_pcasgd.rules.gathering_base import BaseKind as BaseKind
from ray_pcasgd.rules.gathering_base import Gathering as Gathering
from ray_pcasgd.rules.shared_memory import Adversarial


class Sync(Gathering):
    """Synchronous SGD (hardsync): all P workers have delivered."""

    name: Literal["sync"] = "sync"
    waits: ClassVar[bool] = True

    def num_gradients(self, num_workers: int) -> int:
        """Return P."""
        return num_workers


class KSync(FirstK):
    """The first K workers have delivered; the others are cancelled, and all start afresh."""

    name: Literal["k-sync"] = "k-sync"
    waits: ClassVar[bool] = True
    cancels: ClassVar[bool] = True


class KBatchSync(FirstK):
    """K gradients at the current version are in, of any workers; unfinished ones are cancelled."""

    name: Literal["k-batch-sync"] = "k-batch-sync"
    waits: ClassVar[bool] = False
    cancels: ClassVar[bool] = True


class KAsync(FirstK):
    """K different workers have delivered; the others go on, and their gradients come stale."""

    name: Literal["k-async"] = "k-async"
    waits: ClassVar[bool] = True


class KBatchAsync(FirstK):
    """K gradients are in, of any workers; the others go on. With rounds of local steps it is FedBuff's buffer."""

    name: Literal["k-batch-async"] = "k-batch-async"
    waits: ClassVar[bool] = False
    k: int = Field(10, ge=1)
    """Gradients of one update, K, from 1 on, also above the number of workers; FedBuff's buffer has 10 (Nguyen et al.
    2022, arXiv 2106.06639)."""


class Quorum(FirstK):
    """K different workers have delivered, and a grace has passed in which others may join; the rest go on, and late.

    Decoupled DiLoCo's quorum with a grace window (arXiv 2604.21428). The update takes all that have come by then, and
    is early once all P have. **Choice**: the grace is a number of seconds, not a part of what a step takes.
    """

    name: Literal["quorum"] = "quorum"
    waits: ClassVar[bool] = True
    grace_seconds: float = Field(ge=0, le=1e9)
    """Seconds (virtual ones in planned runs) from the K-th gradient to the update, from 0 on; 0 is k-async."""

    @property
    def grace(self) -> float:
        """``grace_seconds``."""
        return self.grace_seconds


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
    base: BaseKind = "k-async"
    """The policy that uses the present K."""
    initial_k: int = Field(1, ge=1)
    """K_0, below the number of workers."""
    every_seconds: float = Field(ge=1e-9)
    """Seconds (virtual ones in planned runs) after which K is set anew, from a nanosecond on."""

    @property
    def waits(self) -> bool:  # type: ignore[override]
        """Whether a worker that has delivered waits for the update that takes its gradient."""
        return self.base in ("k-sync", "k-async")

    @property
    def cancels(self) -> bool:  # type: ignore[override]
        """Whether an update cancels all work that was begun before it."""
        return self.base in ("k-sync", "k-batch-sync")

    @property
    def adapts_every(self) -> float:
        """``every_seconds``."""
        return self.every_seconds

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
    with naming_own(gathering):
        every: Any = gathering.adapts_every
    with naming_own(gathering):
        expires: Any = gathering.expires
    if expires is not None and (type(expires) is not int or expires < 1):
        raise ValueError(f"expires is {expires!r}; allowed are None and whole numbers from 1 on")
    if gathering.averages not in get_args(Averaging):
        raise ValueError(f"averages is {gathering.averages!r}; allowed are {', '.join(get_args(Averaging))}")
    with naming_own(gathering):
        harmonic: Any = gathering.harmonic
    if not isinstance(harmonic, int | float) or isinstance(harmonic, bool) or not 1 <= harmonic < math.inf:
        raise ValueError(f"harmonic is {harmonic!r}; allowed are finite numbers from 1 on")
    with naming_own(gathering):
        epoch: Any = gathering.epoch
    if epoch is not None and (type(epoch) is not int or epoch < 2):
        raise ValueError(f"epoch is {epoch!r}; allowed are None and whole numbers from 2 on")
    if expires is None and gathering.cancels:
        raise ValueError("expires is None; allowed where cancels is True are whole numbers from 1 on")
    is_number = isinstance(every, int | float) and not isinstance(every, bool)
    if every is not None and not (is_number and 0 < every < math.inf):
        raise ValueError(f"adapts_every is {every!r}; allowed are None and finite numbers above 0")
    with naming_own(gathering):
        grace: Any = gathering.grace
    if not isinstance(grace, int | float) or isinstance(grace, bool) or not 0 <= grace < math.inf:
        raise ValueError(f"grace is {grace!r}; allowed are finite numbers from 0 on")
    if grace and not gathering.waits:
        raise ValueError(f"grace is {grace:g}; allowed where waits is False is 0")


AnyGathering = Annotated[
    Annotated[
        Sync
        | KSync
        | KBatchSync
        | KAsync
        | KBatchAsync
        | Quorum
        | ASGD
        | NSoftsync
        | AdaSync
        | Ringmaster
        | Rennala
        | Malenia
        | Ringleader
        | IA2SGD
        | Adversarial
        | Epochs,
        Field(discriminator="name"),
        Door("policy", "ray_pcasgd.gathering", (Gathering,), check_gathering),
    ],
    BeforeValidator(from_name),
]
"""Any gathering policy's settings, told apart by ``name``."""
