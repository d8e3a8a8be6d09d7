"""Figures as the page has them."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

STANDS = 0.05
"""By how much less than the plain mean without attackers accuracy may be where an attack is said to be stood."""
POINT = 0.01
"""By how much less, or more, figures have to be if they are said to be."""


def value(rows: pd.DataFrame, column: str = "accuracy") -> float:
    """Return the mean over seeds; not a number where there is no run."""
    return float(rows[column].mean()) if len(rows) else float("nan")


def case(rows: pd.DataFrame, **labels: Any) -> pd.DataFrame:
    """Return the runs that have these labels."""
    for name, wanted in labels.items():
        rows = rows[rows[name] == wanted]
    return rows


def percent(share: float) -> str:
    """Return a share in percent; a dash for none."""
    return "–" if share != share else f"{100 * share:.1f} %"


def accuracy(rows: pd.DataFrame, among: pd.DataFrame) -> str:
    """Return the mean accuracy, with a star where not all seeds of others were run."""
    return percent(value(rows)) + ("*" if 0 < rows["seed"].nunique() < among["seed"].nunique() else "")


def listed(parts: Sequence[str], nothing: str = "none") -> str:
    """Return parts as one list."""
    return ", ".join(parts) or nothing
