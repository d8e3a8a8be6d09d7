"""Differences seed by seed: their mean, and whether few seeds tell it from 0."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import pandas as pd
from scipy import stats


class Difference(NamedTuple):
    """The mean of differences by seed, its standard error, and its sign, 0 where it is not told from 0."""

    mean: float
    error: float
    sign: int


def difference(values: Iterable[float]) -> Difference:
    """Return the difference that some values show: told from 0 where Student's 95 % interval leaves 0 out."""
    series = pd.Series(list(values), dtype=float)
    count, mean = len(series), float(series.mean())
    error = float(series.std()) / math.sqrt(count) if count > 1 else math.inf
    is_told = abs(mean) > quantile(count) * error
    return Difference(mean, error, int(math.copysign(1, mean)) if is_told else 0)


def quantile(count: int) -> float:
    """Return how many standard errors Student's 95 % interval of the mean of so many values reaches to each side.

    Infinite of one value.
    """
    return float(stats.t.ppf(0.975, count - 1)) if count > 1 else math.inf
