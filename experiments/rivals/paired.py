"""How two methods compare seed by seed, by Student's interval: distances by their ratio, accuracies by points."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from experiments.rivals.claims import quantile


class Paired(NamedTuple):
    """What one method's distance is of another's, each against the same seed."""

    ratio: float
    """The geometric mean of the seeds' ratios; infinite where a run of the first method has diverged; nan where one of
    each has."""
    factor: float
    """Student's 95 % interval of the logarithm's mean, as a factor on either side; infinite with one seed."""

    @property
    def told(self) -> str:
        """``nearer`` or ``farther`` where the interval leaves 1 out, else that it cannot be told."""
        if self.ratio * self.factor < 1:
            return "nearer"
        return "farther" if self.ratio / self.factor > 1 else "cannot be told"

    def __str__(self) -> str:
        """Return the ratio, and its interval."""
        if math.isnan(self.ratio):
            return "no number (both diverged)"
        if not math.isfinite(self.factor):
            return f"{self.ratio:.3g} (one seed)"
        if not math.isfinite(self.ratio) or self.ratio == 0:
            return "inf (diverged)" if self.ratio else "0 (the other diverged)"
        return f"{self.ratio:.3g} ({self.ratio / self.factor:.3g} to {self.ratio * self.factor:.3g})"


def paired(distances: "pd.Series[float]", others: "pd.Series[float]") -> Paired:
    """Return how distances compare with others, both by seed; a diverged run's is not a number, or infinite."""
    if distances.fillna(math.inf).max() == others.fillna(math.inf).max() == math.inf:
        return Paired(math.nan, 1.0)
    tiny = np.finfo(float).tiny
    logs = np.log(distances.fillna(math.inf).clip(lower=tiny)) - np.log(others.fillna(math.inf).clip(lower=tiny))
    if not np.isfinite(logs).all():
        # Who diverges is farther, whatever the others' seeds say.
        return Paired(math.inf if distances.fillna(math.inf).max() == math.inf else 0.0, 1.0)
    count = len(logs)
    error = float(logs.std()) / math.sqrt(count) if count > 1 else math.inf
    reach = quantile(count) * error if count > 1 else math.inf
    return Paired(math.exp(float(logs.mean())), math.exp(reach))


def compared(final: pd.DataFrame, one: str, other: str) -> Paired:
    """Return how one method's ``excess`` compares with another's, of the runs of one table."""
    by_seed = {method: final[final["method"] == method].set_index("seed")["excess"] for method in (one, other)}
    return paired(by_seed[one], by_seed[other])


def claim_line(final: pd.DataFrame, one: str, other: str) -> str:
    """Return whether one method ends nearer the optimum than another, as it is claimed."""
    found = compared(final, one, other)
    told = {"nearer": "reproduces", "farther": "**does not reproduce**"}.get(found.told, "**cannot be told**")
    return f"{one} nearer the optimum than {other}: {told}; its distance is {found} of the other's"


class Points(NamedTuple):
    """By how many points of accuracy one method is ahead of another, each against the same seed."""

    mean: float
    error: float
    """The mean's standard error; infinite with one seed."""
    count: int
    """The seeds."""

    @property
    def told(self) -> str:
        """``ahead`` or ``behind`` where Student's 95 % interval leaves 0 out, else that it cannot be told."""
        if self.count < 2 or abs(self.mean) <= quantile(self.count) * self.error:
            return "cannot be told"
        return "ahead" if self.mean > 0 else "behind"

    def __str__(self) -> str:
        """Return the points with their standard error, and what they tell."""
        return f"{self.mean:+.1f} points (standard error {self.error:.1f}): {self.told}"


def points(accuracies: "pd.Series[float]", others: "pd.Series[float]") -> Points:
    """Return how accuracies from 0 to 1 compare with others, both by seed; a diverged run's counts as 0."""
    differences = 100 * (accuracies.fillna(0.0) - others.fillna(0.0))
    count = len(differences)
    error = float(differences.std()) / math.sqrt(count) if count > 1 else math.inf
    return Points(float(differences.mean()), error, count)


def spread(values: "pd.Series[float]", digits: str = ".3g") -> str:
    """Return the mean, and the smallest and the largest of several values; what is no number is infinite."""
    found = values.fillna(math.inf)
    return f"{found.mean():{digits}} ({found.min():{digits}} to {found.max():{digits}})"


def at_edges(final: pd.DataFrame, labels: Sequence[str], steps: Sequence[float]) -> str:
    """Return whose chosen step size is the smallest or the largest of those that were tried, or ``none``."""
    named = [
        ", ".join(str(name) for name in names)
        for names, rows in final.groupby(list(labels), sort=False)
        if rows["step_size"].iloc[0] in (min(steps), max(steps))
    ]
    return "; ".join(named) or "none"
