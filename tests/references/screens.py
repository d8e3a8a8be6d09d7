"""Screens in float64, by loops, written from the papers' formulas.

Each takes the center, which is one of the voters, or ``None`` where a server has none, the others' vectors, b, and
their shares, which centered clipping alone looks at.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def everybody(center: Array | None, others: Array) -> Array:
    return others if center is None else np.vstack([center, others])


def trimmed(center: Array | None, others: Array, b: int, shares: Array) -> Array:
    kept = np.sort(others, axis=0)[b : len(others) - b]
    whole = kept if center is None else np.vstack([kept, center])
    return np.asarray(whole.mean(axis=0))


def median(center: Array | None, others: Array, b: int, shares: Array) -> Array:
    return np.asarray(np.median(everybody(center, others), axis=0))


def krum(center: Array | None, others: Array, b: int, shares: Array) -> Array:
    vectors = everybody(center, others)
    return np.asarray(vectors[krum_choice(list(range(len(vectors))), vectors, b)])


def krum_choice(left: list[int], vectors: Array, b: int) -> int:
    """Return Krum's choice among those that are left, by loops."""

    def score(i: int) -> float:
        distances = sorted(float(((vectors[i] - vectors[k]) ** 2).sum()) for k in left if k != i)
        return sum(distances[: max(1, len(left) - b - 2)])

    return min(left, key=score)


def bulyan(center: Array | None, others: Array, b: int, shares: Array) -> Array:
    vectors = everybody(center, others)
    left, selected = list(range(len(vectors))), list[int]()
    while len(selected) < len(vectors) - 2 * b:
        selected.append(krum_choice(left, vectors, b))
        left.remove(selected[-1])
    chosen = vectors[selected]
    result = np.empty(vectors.shape[1])
    for place, numbers in enumerate(chosen.T):
        nearest = sorted(numbers, key=partial(off, float(np.median(numbers))))
        result[place] = np.mean(nearest[: len(vectors) - 4 * b])
    return result


def off(middle: float, value: float) -> float:
    return abs(value - middle)


def nearest_neighbors(center: Array | None, others: Array, b: int, shares: Array) -> Array:
    assert center is not None
    vectors = everybody(center, others)
    nearest = sorted(vectors, key=lambda vector: float(np.linalg.norm(vector - center)))
    return np.asarray(np.mean(nearest[: len(vectors) - b], axis=0))


def centered_clipping(center: Array | None, others: Array, b: int, shares: Array) -> Array:
    assert center is not None
    distances = [float(np.linalg.norm(vector - center)) for vector in others]
    radius = sorted(distances)[(len(distances) - 1) // 2]
    result = center.copy()
    for vector, distance, share in zip(others, distances, shares, strict=True):
        result += share * (vector - center) * (min(1.0, radius / distance) if distance else 1.0)
    return result


def geometric_median(center: Array | None, others: Array, b: int, shares: Array) -> Array:
    vectors = everybody(center, others)
    point = np.median(vectors, axis=0)
    for _ in range(3):
        weights = [1 / max(0.1, float(np.linalg.norm(point - vector))) for vector in vectors]
        point = sum(weight * vector for weight, vector in zip(weights, vectors, strict=True)) / sum(weights)
    return np.asarray(point)


REFERENCES: dict[str, Callable[[Array | None, Array, int, Array], Array]] = {
    "trimmed-mean": trimmed,
    "median": median,
    "krum": krum,
    "bulyan": bulyan,
    "nearest-neighbors": nearest_neighbors,
    "centered-clipping": centered_clipping,
    "geometric-median": geometric_median,
}


def apart(vectors: Array, k: int, j: int) -> float:
    return float(np.linalg.norm(vectors[j] - vectors[k]))


def mixed(vectors: Array, b: int) -> Array:
    """Nearest-neighbor mixing: each vector becomes the mean of the n - b nearest to it, itself among them."""
    result = np.empty_like(vectors)
    for k in range(len(vectors)):
        others = [j for j in range(len(vectors)) if j != k]
        others.sort(key=partial(apart, vectors, k))
        near = sorted([k, *others[: len(vectors) - b - 1]])
        result[k] = vectors[near].mean(axis=0)
    return result


def screened(screen: Any, center: Array | None, others: Array, b: int, shares: Array, center_votes: bool) -> Array:
    """Return what a screen makes of vectors, with mixing first where it asks for it.

    ``center_votes``: whether the center is an agent's own vector; else it is a server's last mean, which is not mixed.
    """
    if screen.nearest_neighbor_mixing and center_votes:
        assert center is not None
        center, *rest = mixed(np.vstack([center, others]), b)
        others = np.array(rest)
    elif screen.nearest_neighbor_mixing:
        others = mixed(others, b)
    is_used = center_votes or screen.name == "centered-clipping"
    return REFERENCES[screen.name](center if is_used else None, others, b, shares)
