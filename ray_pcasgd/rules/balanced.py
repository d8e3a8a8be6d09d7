"""Gathering policies under which all workers count alike, however fast they are: for shards that differ.

Where every gradient counts, as under ``asgd``, the server minimizes ``sum_i r_i f_i``, r_i the pace of worker i, in
place of ``f = (1/n) sum_i f_i``. Sources: of Malenia SGD Tyurin, Richtarik, NeurIPS 2023, arXiv 2305.12387; of
Ringleader ASGD and IA2SGD Maranjyan, Richtarik, arXiv 2509.22860.
"""

from typing import ClassVar, Literal

from pydantic import Field

from ray_pcasgd.rules.balance import MOST
from ray_pcasgd.rules.gathering_base import Averaging, Gathering


class _Balanced(Gathering):
    waits: ClassVar[bool] = False

    def num_gradients(self, num_workers: int) -> int:
        """Return P, what the first update takes at least."""
        return num_workers


class Malenia(_Balanced):
    """Malenia SGD: every worker's gradients at the current version are in, enough of them; older ones are ignored.

    ``x <- x - gamma (1/n) sum_i (1/b_i) G_i``, G_i the sum of worker i's b_i gradients at x, as soon as the harmonic
    mean ``n / sum_i (1/b_i)`` is at least ``S/n``. Fast workers add several gradients, and so less noise (Tyurin,
    Richtarik, method 6, with ``S = max(ceil(sigma^2 / eps), n)``).
    """

    name: Literal["malenia"] = "malenia"
    target: float = Field(1.0, ge=1, le=MOST)
    """S/n: the least harmonic mean of the workers' numbers of gradients, from 1 to 1000; 1: one each."""

    averages: ClassVar[Averaging] = "workers"

    @property
    def harmonic(self) -> float:
        """``target``."""
        return self.target

    @property
    def expires(self) -> int:
        """1: at the first update."""
        return 1


class Ringleader(_Balanced):
    """Ringleader ASGD: rounds of n updates, one for each worker, over a table of all workers' gradients.

    Phase 1: gradients are added to the table, worker by worker, until each has one; the server stays at its version,
    and workers go on at theirs. Phase 2: n updates ``x <- x - gamma (1/n) sum_i (1/b_i) G_i``, G_i the sum of worker
    i's b_i gradients in the table. The first is that of the worker which was the last of phase 1; then each other
    worker's next gradient is added and makes the next update. Who has made its update goes on at the new x, and its
    gradients wait for the next table. So each worker gets new weights once a round, all gradients are used, and none
    is late by more than ``2 n - 2`` updates (Maranjyan, Richtarik 2025, arXiv 2509.22860, algorithm 1). Their theory
    has a step size of ``min(1 / (8 n L), eps B / (10 L sigma^2))``, B the harmonic mean of the b_i.
    """

    name: Literal["ringleader"] = "ringleader"
    target: float = Field(1.0, ge=1, le=MOST)
    """The least harmonic mean of the b_i that ends phase 1, from 1 to 1000; 1: one each. Where paces change at will,
    their theory has ``max(1, sigma^2 / (n eps))``."""

    averages: ClassVar[Averaging] = "rounds"

    @property
    def harmonic(self) -> float:
        """``target``."""
        return self.target


class IA2SGD(_Balanced):
    """IA2SGD, incremental aggregated asynchronous SGD: each gradient takes its worker's place in a table, and updates.

    ``x <- x - gamma (1/n) sum_i G_i``, G_i the latest gradient of worker i, once every worker has one: a slow worker's
    place gets as old as that worker is slow. Where updates take several of a worker, G_i is their mean. **Choice**: the
    gradient by which the table becomes full makes the first update; before it workers go on at the first version, and
    their place is the mean of what they have sent, for which they need less noise and wait no longer. A live
    worker that is lost keeps its place, with the last that it has sent, until it is back.
    """

    name: Literal["ia2sgd"] = "ia2sgd"
    averages: ClassVar[Averaging] = "latest"
