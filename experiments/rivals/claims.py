"""Who is said to be ahead of whom, and whether it is so here: differences seed by seed."""

from collections.abc import Iterable
from typing import NamedTuple

import pandas as pd

from experiments.differences import Difference, difference

CLAIMS: dict[str, tuple[tuple[str, str], ...]] = {
    "alike": (
        ("ASGD", "sync SGD"),
        ("ASGD, polynomial", "ASGD"),
        ("ASGD, hinge", "ASGD"),
        ("ASGD, exponential", "ASGD"),
        ("Ringmaster, R = 8", "ASGD"),
        ("Ringmaster, R = 8", "Rennala, K = 8"),
        ("Rennala, K = 8", "ASGD"),
        ("Rennala, K = 8", "sync SGD"),
    ),
    "skewed (Dirichlet, 0.1)": (
        ("Malenia", "ASGD"),
        ("Ringleader", "ASGD"),
        ("IA2SGD", "ASGD"),
        ("Malenia", "sync SGD"),
        ("Ringleader", "Malenia"),
    ),
}
"""By shards the pairs of which the papers of the first one say that it needs less time than the second."""
GUESS = 0.1
"""The accuracy of a run that diverged."""


class Verdict(NamedTuple):
    """What two methods have on the same shards."""

    shards: str
    one: str
    other: str
    seconds: Difference
    """Of the times to the target."""
    accuracy: Difference
    """Of the accuracies at the end."""

    @property
    def reproduces(self) -> bool:
        """Whether the first is told to be sooner or more accurate, and neither later nor less accurate."""
        return max(-self.seconds.sign, self.accuracy.sign) > 0 and min(-self.seconds.sign, self.accuracy.sign) >= 0

    @property
    def row(self) -> str:
        """One row of ``table``."""
        found, gained = self.seconds, self.accuracy
        sooner, ahead = (("not told apart", *words)[one.sign] for one, words in zip(self[3:], WORDS, strict=True))
        return (
            f"| {self.shards} | {self.one} before {self.other} | {found.mean:+.0f} ({found.error:.0f}): {sooner} "
            f"| {100 * gained.mean:+.1f} ({100 * gained.error:.1f}): {ahead} |"
        )


WORDS = (("later", "sooner"), ("ahead", "behind"))
"""What the signs 1 and -1 say of seconds, and of accuracies."""


def verdicts(final: pd.DataFrame) -> list[Verdict]:
    """Return what is so of each claim: a row of ``final`` has a run's ``seconds`` to the target and its accuracy."""
    found = []
    for shards, pairs in CLAIMS.items():
        rows = final[final["shards"] == shards].assign(test_accuracy=lambda frame: frame["test_accuracy"].fillna(GUESS))
        tables = [rows.pivot(index="seed", columns="method", values=name) for name in ("seconds", "test_accuracy")]
        for one, other in pairs:
            found.append(Verdict(shards, one, other, *(difference(table[one] - table[other]) for table in tables)))
    return found


def table(found: Iterable[Verdict], target: float) -> str:
    """Return verdicts as a Markdown table."""
    lines = [f"| shards | claim | seconds to {target:.0%} | points at the end |", "|---|---|---|---|"]
    lines += [verdict.row for verdict in found]
    return "\n".join(lines) if len(lines) > 2 else "None."
