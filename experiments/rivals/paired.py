"""How two methods compare seed by seed, by Student's interval: distances by their ratio, accuracies by points."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from experiments.differences import Difference, difference, quantile


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
    found = difference(logs)
    with np.errstate(over="ignore"):  # an interval may reach beyond all numbers
        return Paired(math.exp(found.mean), float(np.exp(quantile(len(logs)) * found.error)))


def compared(final: pd.DataFrame, one: str, other: str) -> Paired:
    """Return how one method's ``excess`` compares with another's, of the runs of one table."""
    by_seed = {method: final[final["method"] == method].set_index("seed")["excess"] for method in (one, other)}
    return paired(by_seed[one], by_seed[other])


def claim_line(final: pd.DataFrame, one: str, other: str) -> str:
    """Return whether one method ends nearer the optimum than another, as it is claimed."""
    found = compared(final, one, other)
    told = {"nearer": "reproduces", "farther": "**does not reproduce**"}.get(found.told, "**cannot be told**")
    return f"{one} nearer the optimum than {other}: {told}; its distance is {found} of the other's"


def points(accuracies: "pd.Series[float]", others: "pd.Series[float]") -> Difference:
    """Return by how many points accuracies from 0 to 1 are ahead, both by seed; a diverged run's counts as 0."""
    return difference(100 * (accuracies.fillna(0.0) - others.fillna(0.0)))


def in_words(found: Difference) -> str:
    """Return a difference in points with its standard error, and what it tells."""
    return f"{found.mean:+.1f} points (standard error {found.error:.1f}): {AHEAD[found.sign]}"


AHEAD = ("cannot be told", "ahead", "behind")
"""What the signs 0, 1 and -1 say of accuracies."""


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
