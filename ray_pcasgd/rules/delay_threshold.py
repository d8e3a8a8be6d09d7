"""Gathering policies that bound how late a gradient may be: Ringmaster ASGD and Rennala SGD.

Of a gradient whose work was begun at the server's version v and that comes at version k, the delay is ``k - v``.
**Choice**: v is the newest version that the worker knew then; weights that a link in steps holds back are not a delay
of the worker's, and would else be ignored for ever.
"""

from typing import ClassVar, Literal

from pydantic import Field

from ray_pcasgd.rules.gathering_base import FirstK, Gathering


class Ringmaster(Gathering):
    """Ringmaster ASGD: every gradient with a delay below R is an update, later ones are ignored.

    ``x <- x - gamma g`` where ``delta < R``; in either case the worker starts again at the newest x. With ``stops``,
    after each update the workers whose delays have reached R are stopped, and start again there (Maranjyan, Tyurin,
    Richtarik, ICML 2025, arXiv 2501.16168, algorithms 4 and 5). Their theory has ``R = max(1, ceil(sigma^2 / eps))``,
    sigma^2 the variance of a gradient and eps the squared gradient norm that is wanted, and a step size of
    ``min(1 / (2 R L), eps / (4 L sigma^2))``. Without a bound that is ever reached it is ``asgd``; with R = 1 every
    update takes a gradient of the present weights, of whoever is first.
    """

    name: Literal["ringmaster"] = "ringmaster"
    delay_threshold: int = Field(ge=1)
    """R, from 1 on: gradients are taken that are late by fewer updates; the mean delay of ``asgd`` is P - 1."""
    stops: bool = False
    """Whether work that has come to a delay of R is stopped at once (algorithm 5); else it is finished, and ignored."""

    waits: ClassVar[bool] = True

    @property
    def cancels(self) -> bool:  # type: ignore[override]
        """``stops``."""
        return self.stops

    @property
    def expires(self) -> int:
        """R."""
        return self.delay_threshold

    def num_gradients(self, num_workers: int) -> int:
        """Return 1."""
        return 1


class Rennala(FirstK):
    """Rennala SGD: K gradients at the current version are in, of any workers; older ones are ignored.

    ``x <- x - gamma (1/K) sum_l g_l``, all ``g_l`` at x; a fast worker adds several (Tyurin, Richtarik, NeurIPS 2023,
    arXiv 2305.12387, method 4). Their theory has ``K = max(1, ceil(sigma^2 / eps))``, sigma^2 the variance of a
    gradient and eps the squared gradient norm that is wanted, and a step size of ``min(1 / L, eps K / (2 L sigma^2))``.
    ``k-batch-sync`` is the same but that it stops what would be ignored.
    """

    name: Literal["rennala"] = "rennala"
    waits: ClassVar[bool] = False

    @property
    def expires(self) -> int:
        """1: at the first update."""
        return 1
