"""How long an update takes and how stale its gradients are: the theory of Dutta et al. against the planner.

Dutta, Joshi, Ghosh, Dube, Nagpurkar, 'Slow and Stale Gradients Can Win the Race' (AISTATS 2018; extended 2021). P
workers compute for independent times of one law X, and messages take no time. ``X_{K:P}`` is the K-th smallest of P.
"""

import itertools
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray
from scipy import integrate, special, stats

from ray_pcasgd.rules.gathering import ASGD, BaseKind, Gathering, KAsync, KBatchAsync, KBatchSync, KSync, Sync
from ray_pcasgd.schedule.delays import ComputeTimes
from ray_pcasgd.schedule.law_base import BaseLaw
from ray_pcasgd.schedule.law_measured import MeasuredLaw
from ray_pcasgd.schedule.laws import ConstantLaw, Exponential, Pareto, ShiftedExponential, UniformLaw
from ray_pcasgd.schedule.plan_servers import ServerPlanner

Kind = Literal["exact", "at most", "about"]


class Expectation(NamedTuple):
    """A mean of the theory."""

    seconds: float
    kind: Kind
    """Whether the mean is that, is bounded by it, or has no formula and is only of its order."""


def order_statistic(law: BaseLaw, k: int, num_workers: int) -> float:
    """Return ``E[X_{K:P}]`` in seconds: in closed form where there is one, else integrated numerically.

    Exponential: ``mean (H_P - H_{P-K})``, plus the shift. Pareto: by gamma functions. Infinite where the law's tail is
    too heavy.

    Raises:
        ValueError: the theory does not know the law (``theory_distribution``).

    """
    law = without_spread(law)
    if isinstance(law, ConstantLaw):
        return law.value
    if isinstance(law, Exponential | ShiftedExponential):
        shift = law.shift if isinstance(law, ShiftedExponential) else 0.0
        return shift + law.mean * sum(1 / (num_workers - i) for i in range(k))
    if isinstance(law, Pareto):
        return _pareto_order_statistic(law, k, num_workers)
    if isinstance(law, UniformLaw):
        return law.low + (law.high - law.low) * k / (num_workers + 1)
    return integrated_order_statistic(law, k, num_workers)


def without_spread(law: BaseLaw) -> BaseLaw:
    """Return a law of one value as a constant, and any other as it is.

    >>> without_spread(UniformLaw(low=2, high=2))
    ConstantLaw(name='constant', value=2.0)
    """
    value = law.only_value
    return law if value is None else ConstantLaw(value=value)


def _pareto_order_statistic(law: Pareto, k: int, num_workers: int) -> float:
    inverse = 1 / law.shape
    if num_workers - k + 1 <= inverse:
        return math.inf
    logarithm = math.lgamma(num_workers + 1) + math.lgamma(num_workers - k + 1 - inverse)
    logarithm -= math.lgamma(num_workers - k + 1) + math.lgamma(num_workers + 1 - inverse)
    return law.scale * math.exp(logarithm)


def integrated_order_statistic(law: BaseLaw, k: int, num_workers: int) -> float:
    """Return ``E[X_{K:P}]`` as the integral of the law's quantiles against the density of Beta(K, P - K + 1)."""
    beta = stats.beta(k, num_workers - k + 1)
    if isinstance(law, MeasuredLaw):
        values = np.sort(law.values)
        return float(values @ np.diff(beta.cdf(np.arange(len(values) + 1) / len(values))))
    quantile = law.theory_distribution().ppf
    value, _ = integrate.quad(lambda u: quantile(u) * beta.pdf(u), 0, 1, limit=500, points=[0.5, 0.9, 0.99, 0.999])
    return float(value)


_KNOWN = ", ".join(get_args(BaseKind))


def seconds_per_update(gathering: Gathering, law: BaseLaw, num_workers: int, k: int | None = None) -> Expectation:
    """Return the mean seconds between two updates (Dutta et al. 2021, lemmas 1 to 6).

    ``k`` takes the place of the policy's own number of gradients, for AdaSync. K-batch-async, n-softsync and ASGD are
    exact for every law by the renewal theorem; K-batch-sync is integrated numerically unless the law is memoryless.
    """
    k = gathering.num_gradients(num_workers) if k is None else k
    kind, law = gathering.base_kind, without_spread(law)
    if kind is None:
        raise ValueError(f"gathering {type(gathering).__name__}: the theory knows policies that are a case of {_KNOWN}")
    if kind == "k-sync" or (kind == "k-async" and k == num_workers):
        return Expectation(order_statistic(law, k, num_workers), "exact")
    if kind == "k-batch-sync":
        return Expectation(_seconds_of_k_batches(law, k, num_workers), "exact")
    if kind == "k-async" and k > 1:
        return Expectation(order_statistic(law, k, num_workers), _k_async_kind(law))
    return Expectation(k * law.expectation() / num_workers, "exact")


def mean_staleness(gathering: Gathering, num_workers: int, k: int | None = None) -> float:
    """Return the mean staleness of a gradient: the server's updates between its version and the one that takes it.

    0 where the server waits for gradients at its version. Where workers wait for their update (K-async, ASGD), each is
    taken every P / K updates in the mean: ``P / K - 1``, for ASGD P - 1, whatever the law. Where they do not
    (K-batch-async, n-softsync), P - 1 gradients of others come between two of one worker: ``(P - 1) / K``. All of that
    without delays of links, which add to it.
    """
    k = gathering.num_gradients(num_workers) if k is None else k
    if gathering.cancels:
        return 0.0
    return num_workers / k - 1 if gathering.waits else (num_workers - 1) / k


def _k_async_kind(law: BaseLaw) -> Kind:
    """Say how ``E[X_{K:P}]`` bounds K-async: from above where new work takes longer than the rest of other work.

    The heavy tail of a Pareto law breaks that late, its smallest value holds it early on.
    """
    if isinstance(law, Exponential):
        return "exact"
    return "at most" if isinstance(law, ConstantLaw | UniformLaw | ShiftedExponential) else "about"


_GRID = 4000
"""Points of the grid on which renewals are counted; figures change by less than 0.1 % with twice as many."""


@lru_cache(maxsize=256)
def _seconds_of_k_batches(law: BaseLaw, k: int, num_workers: int) -> float:
    """Return the mean time until P workers that start together have finished K mini-batches between them.

    ``E[T] = int_0^inf P(N_1(t) + ... + N_P(t) < K) dt``, ``N`` the renewals of one worker.
    """
    if isinstance(law, Exponential):
        return k * law.mean / num_workers
    if isinstance(law, ConstantLaw):
        return law.value * math.ceil(k / num_workers)
    # Until K have come from P workers, none takes longer than if each did its share alone.
    limit = order_statistic(law, 1, num_workers) + 3 * k * min(law.expectation(), law.theory_distribution().ppf(0.9))
    while True:
        times = np.linspace(0, limit, _GRID + 1)
        missing = _probability_of_fewer(law, k, num_workers, times)
        if missing[-1] < 1e-7:
            return float(integrate.trapezoid(missing, times))
        limit *= 1.5


def _probability_of_fewer(law: BaseLaw, k: int, num_workers: int, times: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ``P(N_1(t) + ... + N_P(t) < K)`` at each time."""
    at_least = np.stack([np.ones_like(times), *_renewals(law, k, times)])
    # P(N = n) of one worker for n below K, a row for each n; then of sums of workers, cut off at K.
    exactly = at_least[:-1] - at_least[1:]
    total = np.zeros_like(exactly)
    total[0] = 1.0
    for _ in range(num_workers):
        total = np.stack([(total[: n + 1] * exactly[n::-1]).sum(0) for n in range(k)])
    return np.asarray(total.sum(0))


def _renewals(law: BaseLaw, k: int, times: NDArray[np.float64]) -> Sequence[NDArray[np.float64]]:
    """Return ``P(N(t) >= n)`` for n = 1 to K: the distribution functions of sums of n times."""
    if isinstance(law, ShiftedExponential):
        return [special.gammainc(n, np.maximum(times - n * law.shift, 0) / law.mean) for n in range(1, k + 1)]
    distribution = law.theory_distribution().cdf(times)
    # What falls between two points of the grid is taken to lie in the middle of them.
    masses = np.diff(distribution)
    results = [distribution]
    for _ in range(k - 1):
        middle = (results[-1][1:] + results[-1][:-1]) / 2
        folded = np.convolve(middle, masses)[: len(times) - 1]
        results.append(np.concatenate([[0.0], folded]))
    return results


class Planned(NamedTuple):
    """The figures of a plan of many updates."""

    seconds: float
    """Mean seconds between updates."""
    deviation: float
    """Standard error of that mean, from the means of 32 parts of the plan."""
    staleness: NDArray[np.int64]
    """Of every gradient that was taken."""
    cancelled: float
    """Cancelled gradients for each update."""

    @property
    def fresh(self) -> float:
        """The share of gradients without staleness."""
        return float((self.staleness == 0).mean())


def plan_updates(gathering: Gathering, law: BaseLaw, num_workers: int, num_updates: int, seed: int = 0) -> Planned:
    """Return the figures of a plan of ``num_updates`` updates, without delays of links."""
    planner = ServerPlanner(
        num_workers=num_workers,
        num_servers=1,
        gathering=gathering,
        num_steps=math.ceil(num_updates * gathering.num_gradients(num_workers) / num_workers),
        local_steps=(1,) * num_workers,
        reads_before=0,
        compute=ComputeTimes(law=law),
        links=(),
        clusters=(0,) * (num_workers + 1),
        seed=seed,
    )
    ends, staleness, cancelled = [0.0], [], 0
    for row in planner:
        assert row is not None
        cancelled += row.kind == "cancelled"
        if row.agent == num_workers:
            ends.append(row.end)
            staleness += [read.staleness for read in row.reads]
    parts = np.array([part.mean() for part in np.array_split(np.diff(ends), 32)])
    mean = ends[-1] / (len(ends) - 1)
    return Planned(mean, float(parts.std(ddof=1) / math.sqrt(32)), np.array(staleness), cancelled / (len(ends) - 1))


def speed_up(law: BaseLaw, num_workers: int) -> float:
    """Return how many updates ASGD makes in the time of one of sync SGD: ``P E[X_{P:P}] / E[X]``."""
    return num_workers * order_statistic(law, num_workers, num_workers) / law.expectation()


class Bound(NamedTuple):
    """What the error's bound depends on besides the policy; the defaults are those of a picture, not of a problem."""

    initial_error: float = 1.0
    """``F(w_0) - F*``."""
    step_size: float = 0.1
    smoothness: float = 1.0
    """L."""
    variance: float = 1.0
    """sigma^2 / m: of a mini-batch's gradient."""
    staleness_penalty: float = 0.5
    """gamma in [0, 1): how far gradients at stale weights are off, in squared lengths of the fresh gradient."""


def error_bound(bound: Bound, k: int, seconds: float, fresh: float, time: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the bound on the mean squared gradient after ``time`` seconds, at a fixed step size.

    ``2 (F(w_0) - F*) E[T] / (t eta c) + L eta sigma^2 / (K m c)`` with ``E[T] = seconds`` and
    ``c = 1 - gamma + p_0 / 2`` where gradients may be stale, ``p_0`` the share of ``fresh`` ones (Dutta et al. 2018,
    theorem 3, for non-convex F); where all are fresh, c is 1.
    """
    factor = 1.0 if fresh == 1.0 else min(1.0, 1 - bound.staleness_penalty + fresh / 2)
    falls = 2 * bound.initial_error * seconds / (time * bound.step_size)
    floor = bound.smoothness * bound.step_size * bound.variance / k
    return np.asarray((falls + floor) / factor)


def policies(num_workers: int) -> list[Gathering]:
    """Return the policies of a table: each K of a few, from 1 to P."""
    sizes = sorted({*(2**i for i in range(num_workers.bit_length()) if 2**i < num_workers), num_workers})
    kinds: Sequence[type[KSync | KBatchSync | KAsync | KBatchAsync]] = (KSync, KBatchSync, KAsync, KBatchAsync)
    return [Sync(), ASGD(), *(kind(k=k) for kind, k in itertools.product(kinds, sizes))]
