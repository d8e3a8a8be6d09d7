"""The largest step size at which Nesterov's momentum converges under delay, with and without compensation.

It is found by planned runs of the package on a quadratic of curvature 1, all of whose gradients are late by the same
number of updates, and once more by the roots of the recursion's characteristic polynomial.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd

from experiments.rivals.quadratic import planned, task, weights_of

LARGEST = 2.0
"""Beyond which nothing converges, whatever the momentum."""


def converges(delay: int, momentum: float, compensate: bool, step_size: float, updates: int) -> bool:
    """Return whether a run's weight swings less in its last quarter than in its second.

    Of ``delay + 1`` workers that are equally fast, and wait for nobody, each gradient is ``delay`` updates late.
    """
    nesterov = {"name": "momentum-compensation", "momentum": momentum, "compensate": compensate}
    settings = {
        "num_agents": delay + 1,
        "num_steps": -(-updates // (delay + 1)),
        "step_size": step_size,
        "task": task([1.0]),
        "algorithm": {"name": "server", "gathering": "asgd", "nesterov": nesterov},
        "compute": {"law": {"name": "constant", "value": 1.0}},
    }
    swings = np.abs(weights_of(planned(settings), updates)[:, 0])
    quarter = updates // 4
    if len(swings) <= updates or not np.isfinite(swings).all():
        return False
    return bool(swings[-quarter:].max() < swings[quarter : 2 * quarter].max())


def radius(delay: int, momentum: float, compensate: bool, step_size: float) -> float:
    """Return the largest modulus of the recursion's roots: below 1 it converges.

    With ``c = a (1 + B)``, B the sum of a^i from 1 to the delay (0 without compensation), a gradient is that at
    ``w_j = x_j + c (x_j - x_{j-1})``, and ``x_{k+1} = x_k + a (x_k - x_{k-1}) - gamma w_{k-delay}``.
    """
    ahead = sum(momentum**i for i in range(1, delay + 1)) if compensate else 0.0
    c = momentum * (1 + ahead)
    polynomial = np.zeros(delay + 3)
    polynomial[:3] = 1, -(1 + momentum), momentum
    polynomial[-2:] += step_size * (1 + c), -step_size * c
    return float(np.abs(np.roots(polynomial)).max())


def largest(holds: Callable[[float], bool], within: float = 0.02) -> float:
    """Return the largest step size at which something holds, to so large a share, by bisection from ``LARGEST``."""
    low, high = LARGEST / 1000, LARGEST
    while high > low * (1 + within):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def stable_steps(delays: list[int], momentum: float, updates: int) -> pd.DataFrame:
    """Return the largest step size x curvature of each delay, with and without compensation: of runs, and by roots."""
    rows = []
    for delay in delays:
        for compensate in (True, False):
            by_runs = largest(lambda step, d=delay, c=compensate: converges(d, momentum, c, step, updates))  # type: ignore[misc]
            by_roots = largest(lambda step, d=delay, c=compensate: radius(d, momentum, c, step) < 1, 1e-6)  # type: ignore[misc]
            labels = {"delay": delay, "momentum": momentum, "compensate": compensate}
            rows.append(labels | {"by_runs": by_runs, "by_roots": by_roots})
    return pd.DataFrame(rows)


def stable_table(stable: pd.DataFrame) -> str:
    """Return the largest stable step sizes by delay, and how many times as large compensation makes them."""
    text = "| delay | with compensation | without | ratio | by roots: with | without | ratio |\n"
    text += "|---|---|---|---|---|---|---|\n"
    for delay, rows in stable.groupby("delay"):
        cells = []
        for column in ("by_runs", "by_roots"):
            of = rows.set_index("compensate")[column]
            cells += [f"{of[True]:.3g}", f"{of[False]:.3g}", f"{of[True] / of[False]:.2f}"]
        text += f"| {delay} | {' | '.join(cells)} |\n"
    return text.rstrip()
