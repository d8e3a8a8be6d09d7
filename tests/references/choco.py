"""CHOCO-SGD in float64, with every public copy (Koloskova, Stich, Jaggi, arXiv 1907.09356, algorithm 2)."""

from typing import Any

import numpy as np

from ray_pcasgd.runs.plan.plan import Plan
from tests.references.peers import SIZE, Array, CombiningReference


def largest(vector: Array, count: int) -> Array:
    """Return the vector with all but its numbers of the largest magnitudes set to 0."""
    kept = np.zeros_like(vector)
    for place in sorted(range(len(vector)), key=lambda place: -abs(vector[place]))[:count]:
        kept[place] = vector[place]
    return kept


class ChocoReference(CombiningReference):
    """Agents that combine first, in float64; 2 of the 4 numbers of each difference travel."""

    def __init__(self, own: Plan) -> None:
        super().__init__(own, None)
        self.known = dict(self.versions)

    def combine(self, i: int, version: int, reads: Any) -> Array:
        weights = dict(zip(self.own.specs[i].neighbors, self.own.specs[i].mixing, strict=True))  # type: ignore[attr-defined]
        z = self.versions[i, version]
        if version:
            before = self.known[i, version - 1]
            self.known[i, version] = before + largest(z - before, 2)
        for k, own in list(self.versions.items()):
            if k not in self.known:
                before = self.known[k[0], k[1] - 1]
                self.known[k] = before + largest(own - before, 2)
        pulls = [weights[r.neighbor] * (self.known[r.neighbor, r.version] - self.known[i, version]) for r in reads]
        result: Array = z + 0.6 * sum(pulls, np.zeros(SIZE + 1))
        return result
