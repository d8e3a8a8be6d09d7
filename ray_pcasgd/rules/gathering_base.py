"""What every gathering policy says: when a server updates, and what becomes of workers that are late."""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

from pydantic import Field

from ray_pcasgd.base.settings import Settings

BaseKind = Literal["k-sync", "k-batch-sync", "k-async", "k-batch-async"]
"""The four policies of Dutta et al. that have a K; every other one is a case of one of them."""


Averaging = Literal["gradients", "workers", "latest", "rounds"]
"""What a server averages: the gradients of an update, so that who is fast counts more; or the workers' own means, so
that all count alike: of one update (``workers``), of each one's latest message (``latest``), or in rounds in which each
gives rise to one update (``rounds``)."""


class Gathering(Settings, ABC):
    """When a server updates. Its fields are its settings, its methods are pure.

    A policy says whether workers wait (``waits``), whether late work is cancelled (``cancels``), and how many
    gradients make an update (``num_gradients``): planner, live servers and theory need no more. One that ignores late
    gradients without cancelling them says from when on (``expires``). One that changes K as the loss falls also says
    how often (``adapts_every``) and to what (``adapted``).
    """

    waits: ClassVar[bool]
    """Whether a worker that has delivered starts again only after the update that takes its gradient."""
    cancels: ClassVar[bool] = False
    """Whether work that ``expires`` is cancelled at the update by which it does; else it is finished, and ignored."""

    averages: ClassVar[Averaging] = "gradients"
    """What the server averages. Where that is not ``gradients``, every worker is waited for as ``rules.balance`` says,
    and K has no meaning."""

    @abstractmethod
    def num_gradients(self, num_workers: int) -> int:
        """Return K, the gradients of one update, from 1 on; where K is adapted that of the first update.

        Where workers wait it is at most P; where they do not, one update may take several gradients of each.
        """

    @property
    def expires(self) -> int | None:
        """How many updates after it was begun work is taken no more, from 1 on; ``None``: it is taken however late.

        Where work is cancelled and nothing else is said, at the first.
        """
        return 1 if self.cancels else None

    @property
    def ignores_older(self) -> bool:
        """Whether nobody waits, and work of any version but the newest is finished, and ignored."""
        return not (self.waits or self.cancels) and self.expires == 1 and self.averages != "rounds"

    @property
    def harmonic(self) -> float:
        """The least harmonic mean of the workers' numbers of gradients, from 1 on, where all count alike; 1: one each.

        An update, or a round of them, begins with it.
        """
        return 1.0

    @property
    def epoch(self) -> int | None:
        """Updates of an epoch, from 2 on; ``None``: there are none.

        The first update of an epoch takes a message of every worker, each computed at the weights where it begins;
        nothing that was begun before it, or before the update after it, is taken later.
        """
        return None

    def begins_epoch(self, version: int) -> bool:
        """Return whether the update of a server at ``version`` is the first one of an epoch."""
        return self.epoch is not None and version % self.epoch == 0

    def oldest_read(self, newest: int) -> int:
        """Return the oldest version that a worker may be told to read while the newest is ``newest``.

        0 without epochs. Else where the epoch begins, or, from its first update on, the version after that.
        """
        return 0 if self.epoch is None else newest - newest % self.epoch + (newest % self.epoch > 0)

    @property
    def grace(self) -> float:
        """Seconds (virtual ones in planned runs) for which an update waits for more once its K gradients are in.

        It then takes all that are there, and earlier once all P workers' are; only where workers wait for it.
        """
        return 0.0

    @property
    def adapts_every(self) -> float | None:
        """Seconds (virtual ones in planned runs), above 0, after which K is set anew; ``None``: K stays."""
        return None

    def adapted(self, num_workers: int, k: int, ratio: float) -> int:
        """Return K for ``ratio = F(w_0) / F(w)``, where it was ``k`` so far; not asked without ``adapts_every``."""
        return k

    @property
    def base_kind(self) -> BaseKind | None:
        """The policy that this one is a case of, by which the theory knows it; ``None`` where it is a case of none."""
        if self.averages != "gradients" or self.epoch or self.expires != (1 if self.cancels else None):
            return None
        if self.waits:
            return "k-sync" if self.cancels else "k-async"
        return "k-batch-sync" if self.cancels else "k-batch-async"

    def check(self, num_workers: int) -> None:
        """Raise ``ValueError`` where the settings do not fit ``num_workers`` workers."""
        return


class FirstK(Gathering):
    """A policy whose update takes K gradients."""

    k: int = Field(ge=1)
    """Gradients of one update, K, from 1 on; where workers wait, up to the number of workers."""

    def num_gradients(self, num_workers: int) -> int:
        """Return K."""
        return self.k

    def check(self, num_workers: int) -> None:
        """Raise ``ValueError`` where K is above P, and workers wait for the update."""
        if self.waits and self.k > num_workers:
            raise ValueError(f"k = {self.k}: allowed are 1 to the number of workers, {num_workers}")
