"""Robust means of a few vectors: numbers ranked one by one, and vectors by how far they are from each other.

Pure, without an ``if`` on a tensor; what is missing is masked, so that it changes no bit of the others. Distances are
``numerics.inner`` of differences: by inner products of the vectors themselves (a Gram matrix), float32 would leave
nothing of the distance between two models that hardly differ.

A vector may hold anything, numbers that are not finite too: those are infinitely far away, and the largest of all.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ray_pcasgd.base.numerics import Vectors, inner

_BLOCK = 1 << 15
"""Numbers of each vector that are ranked at a time: temporaries stay in a core's cache."""


class Votes(NamedTuple):
    """What a robust mean is taken of."""

    center: Tensor
    """Shape (D,): between peers the agent's own weights; at a server the last mean."""
    vectors: Vectors
    """Those of n others, each of shape (D,)."""
    present: Tensor
    """Which of the others are there, shape (n,), bool."""
    shares: Tensor
    """Their mixing weights, shape (n,)."""
    center_votes: bool
    """Whether the center is one of those that are ranked and averaged: between peers."""

    @property
    def everybody(self) -> tuple[Vectors, Tensor]:
        """All that vote, and which of them are there: the center first, if it does."""
        if not self.center_votes:
            return self.vectors, self.present
        return (self.center, *self.vectors), torch.cat((torch.ones_like(self.present[:1]), self.present))

    def with_vectors(self, everybody: Vectors) -> "Votes":
        """Return the votes with other vectors in place of ``everybody``'s."""
        if not self.center_votes:
            return self._replace(vectors=everybody)
        return self._replace(center=everybody[0], vectors=everybody[1:])

    def of_everybody(self, dropped: Tensor) -> Tensor:
        """Return a value of the others for each of ``everybody``: nothing of the center is left out."""
        return torch.cat((torch.zeros_like(dropped[:1]), dropped)) if self.center_votes else dropped

    def of_others(self, dropped: Tensor) -> Tensor:
        """Return the others' part of a value for each of ``everybody``."""
        return dropped[1:] if self.center_votes else dropped


class Screened(NamedTuple):
    """A robust mean."""

    vector: Tensor
    """Shape (D,)."""
    dropped: Tensor
    """The share in [0, 1] by which each vector was left out, shape (n,): of numbers, or of its weight."""


def count(present: Tensor) -> Tensor:
    """Return how many of a mask (n,) are set, shape (), int64."""
    return present.sum(-1)


def first_of(values: Tensor, number: Tensor) -> Tensor:
    """Return the mask of the ``number`` smallest values along the first axis, ties to who comes first."""
    return ranks(values) < number.to(torch.int16)


def middle_of(values: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return the mask of the values whose rank along the first axis is in ``[low, high)``, counted from 0."""
    places = ranks(values)
    return (places >= low.to(torch.int16)) & (places < high.to(torch.int16))


def ranks(values: Tensor) -> Tensor:
    """Return the rank of each value along the first axis, from 0, ties to who comes first; int16, like the values.

    By counting who comes before: of a few vectors, that takes a fourth of the time of sorting each number's column.
    """
    rows = values.unbind()
    return torch.stack(
        [
            (values[:k] <= row).sum(0, dtype=torch.int16) + (values[k + 1 :] < row).sum(0, dtype=torch.int16)
            for k, row in enumerate(rows)
        ]
    )


Chosen = Callable[[Tensor], Tensor]
"""Which numbers of some vectors count, a mask like them, shape (n, block)."""


def mean_of_numbers(vectors: Vectors, chosen: Chosen, share: Tensor, center: Tensor | None) -> Screened:
    """Return ``share (center + sum_k x_k)``, each number over those k that are chosen, summed in their order.

    Args:
        vectors: What is averaged, n of shape (D,).
        chosen: Says block by block which numbers count.
        share: One over how many count, shape ().
        center: A vector all of whose numbers count; ``None``: there is none.

    """
    size = vectors[0].shape[-1]
    means, kept = [], torch.zeros(len(vectors), dtype=torch.int64, device=vectors[0].device)
    for start in range(0, max(size, 1), _BLOCK):
        part = slice(start, start + _BLOCK)
        block = torch.stack([vector[part] for vector in vectors])
        counts = chosen(block)
        total = torch.zeros_like(block[0]) if center is None else share * center[part]
        for number, counting in zip(block.unbind(), counts.unbind(), strict=True):
            total = total + torch.where(counting, share * number, 0.0)
        means.append(total)
        kept = kept + counts.sum(1)
    return Screened(torch.cat(means), 1 - kept / size)


def means_of_vectors(vectors: Vectors, counts: Tensor) -> Vectors:
    """Return n means, the k-th of the vectors in row k of a mask (n, n), of each as many, summed in their order."""
    share = 1 / count(counts[0]).to(vectors[0].dtype)
    parts = []
    for start in range(0, max(vectors[0].shape[-1], 1), _BLOCK):
        block = torch.stack([share * vector[start : start + _BLOCK] for vector in vectors])
        total = torch.zeros_like(block)
        for vector, counting in zip(block.unbind(), counts.unbind(1), strict=True):
            total = total + torch.where(counting[:, None], vector, 0.0)
        parts.append(total)
    return torch.cat(parts, dim=1).unbind()


def mean_of_vectors(vectors: Vectors, counts: Tensor, share: Tensor) -> Tensor:
    """Return ``share sum_k x_k`` over the mask ``counts``, shape (n,), summed in their order."""
    total = torch.zeros_like(vectors[0])
    for vector, counting in zip(vectors, counts.unbind(), strict=True):
        total = total + torch.where(counting, share * vector, 0.0)
    return total


def distances_from(point: Tensor, vectors: Vectors) -> Tensor:
    """Return the Euclidean distances of n vectors from a point, shape (n,)."""
    return far(torch.stack([_square(vector - point) for vector in vectors]).sqrt())


def _square(vector: Tensor) -> Tensor:
    return inner(vector, vector)


def sum_of(values: Tensor) -> Tensor:
    """Return the sum along the first axis, in its order."""
    result = torch.zeros_like(values[0])
    for value in values.unbind():
        result = result + value
    return result


def far(distances: Tensor) -> Tensor:
    """Return distances, infinite where they are not numbers."""
    return torch.where(distances.isnan(), math.inf, distances)


def absent_last(distances: Tensor, present: Tensor) -> Tensor:
    """Return distances by which who is there comes before who is not, even where it holds no finite numbers."""
    return torch.where(present, distances.clamp(max=torch.finfo(distances.dtype).max), math.inf)


def squared_distances(vectors: Vectors, present: Tensor) -> Tensor:
    """Return the squared distances of n vectors, shape (n, n); infinite ones to itself and to the missing."""
    number = len(vectors)
    found = {(i, k): _square(vectors[i] - vectors[k]) for i in range(number) for k in range(i)}
    nothing = torch.full_like(present, math.inf, dtype=vectors[0].dtype)[0]
    rows = [
        torch.stack([nothing if i == k else found[max(i, k), min(i, k)] for k in range(number)]) for i in range(number)
    ]
    both = present[:, None] & present[None, :]
    return far(torch.where(both, torch.stack(rows), math.inf))


def krum_scores(distances: Tensor, among: Tensor, nearest: Tensor) -> Tensor:
    """Return Krum's scores, shape (n,): the sum of the squared distances to the ``nearest`` others of a mask ``among``.

    To all others where there are not so many. Infinite for those outside of the mask.
    """
    nearest = torch.minimum(nearest, count(among) - 1)
    others = torch.where(among[None, :], distances, math.inf).sort(dim=1).values
    scores = torch.zeros_like(others[:, 0])
    for place, column in enumerate(others.unbind(1)):
        scores = scores + torch.where(place < nearest, column, 0.0)
    return torch.where(among, scores, math.inf)


def smallest(scores: Tensor) -> Tensor:
    """Return the mask of the smallest of n scores, of equal ones the first."""
    return torch.arange(scores.shape[0], device=scores.device) == scores.argmin()


def selected_by_krum(distances: Tensor, present: Tensor, attackers: int, number: Tensor) -> Tensor:
    """Return the mask of what Krum selects one after another, ``number`` of them: Bulyan's first phase.

    **Choice**: with r vectors left, Krum looks at the ``max(1, r - b - 2)`` nearest: the last rounds have fewer left
    than Krum is defined for.
    """
    left, selected = present, torch.zeros_like(present)
    for place in range(present.shape[0]):
        nearest = (count(left) - attackers - 2).clamp(min=1)
        best = smallest(krum_scores(distances, left, nearest)) & left & (place < number)
        selected, left = selected | best, left & ~best
    return selected
