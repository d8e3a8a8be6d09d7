"""Which setting of a sweep matters: the share of the variance that it explains, and the share that chance would."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from ray_pcasgd.base.randomness import generator

FEWEST_POINTS = 8
"""With fewer points, no setting can be told apart from chance."""
_SHUFFLES = 499
_PER_GROUP = 4
_MOST_GROUPS = 5


class Importance(NamedTuple):
    """How much of the differences between points one setting explains by itself."""

    share: float
    """Share of the variance, in [0, 1], less what that many groups of values explain by chance on average."""
    by_chance: float
    """Up to which share chance alone explains in 19 of 20 cases."""

    @property
    def is_told(self) -> bool:
        """Whether it explains more than that."""
        return self.share > self.by_chance


def importances(points: pd.DataFrame, keys: Sequence[str]) -> dict[str, Importance]:
    """Return what each setting explains, of the points that finished; settings of which it cannot be told are left out.

    The variance between groups of points with one value, over the variance of all. Where each point has a number of
    its own, as in a random search, a group holds neighboring ones. What as many groups explain of noise is taken off
    (adjusted R squared), and the metric is shuffled among the points to see how far chance gets. Interactions
    count for no setting, so the shares need not sum to 1.
    """
    known = points[points["mean"].notna() & (points["finished"] > 0)]
    values = known["mean"].to_numpy(np.float64)
    if len(values) < FEWEST_POINTS or np.ptp(values) == 0:
        return {}
    found = {}
    for key in keys:
        groups = _groups(known[key])
        if groups is not None:
            found[key] = Importance(adjusted_share(values, groups), _by_chance(values, groups))
    return found


def adjusted_share(values: np.ndarray, groups: np.ndarray) -> float:
    """Return the share of the variance that groups explain, adjusted for their number, not below 0."""
    number, total = len(values), ((values - values.mean()) ** 2).sum()
    counts = np.bincount(groups)
    if total == 0 or len(counts) < 2:
        return 0.0
    means = np.bincount(groups, values) / counts
    left = ((values - means[groups]) ** 2).sum() / total
    return float(max(0.0, 1 - left * (number - 1) / (number - len(counts))))


def _by_chance(values: np.ndarray, groups: np.ndarray) -> float:
    random = generator(0, "importance")
    shuffled = [adjusted_share(random.permutation(values), groups) for _ in range(_SHUFFLES)]
    return float(np.quantile(shuffled, 0.95, method="higher"))


def _groups(column: pd.Series) -> np.ndarray | None:
    """Return the group of each point by a setting's value; None where there are no groups of several points."""
    codes, values = pd.factorize(column.astype(str) if column.dtype == object else column)
    if 2 <= len(values) <= len(column) // 3:
        return np.asarray(codes)
    if not pd.api.types.is_numeric_dtype(column) or len(values) < 2:
        return None
    number = min(_MOST_GROUPS, len(column) // _PER_GROUP)
    cut = pd.qcut(column.rank(method="average"), number, labels=False, duplicates="drop")
    codes, values = pd.factorize(cut)
    return np.asarray(codes) if len(values) > 1 else None
