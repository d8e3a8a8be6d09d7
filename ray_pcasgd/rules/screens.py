"""Screens: what an agent, or a server, takes for the mean of vectors of which some may be lies."""

import math
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from ray_pcasgd.base.numerics import Vectors
from ray_pcasgd.base.settings import from_name
from ray_pcasgd.rules.screen_base import Screen
from ray_pcasgd.rules.votes import (
    Screened,
    Votes,
    absent_last,
    count,
    distances_from,
    first_of,
    krum_scores,
    mean_of_numbers,
    mean_of_vectors,
    middle_of,
    selected_by_krum,
    smallest,
    squared_distances,
    sum_of,
)


class TrimmedMean(Screen):
    """Of each number, the b largest and the b smallest do not count: BRIDGE-T (Fang, Yang, Bajwa 2022, 1908.08098).

    ``y = 1/(m - 2b + 1) (x_i + sum of the m - 2b neighbors' numbers in the middle)``, number by number, of m neighbors:
    the agent's own is not trimmed, as the paper has it and its authors' code has not. At a server (Yin et al., ICML
    2018) the mean of the ``K - 2b`` in the middle. With b = 0 it is the plain mean, to the bit.
    """

    name: Literal["trimmed-mean"] = "trimmed-mean"
    elementwise: ClassVar[bool] = True
    ranks_center: ClassVar[bool] = False

    def ranked(self, attackers: int) -> int:
        """Return ``2b + 1``."""
        return 2 * attackers + 1

    def mean(self, votes: Votes, attackers: int) -> Screened:
        """Return the trimmed mean."""
        others = count(votes.present)
        share = 1 / (others - 2 * attackers + votes.center_votes).to(votes.center.dtype)

        def inside(block: Tensor) -> Tensor:
            return middle_of(_filled(block, votes.present), others * 0 + attackers, others - attackers)

        mean = mean_of_numbers(votes.vectors, inside, share, votes.center if votes.center_votes else None)
        return mean._replace(dropped=votes.of_everybody(mean.dropped))


class Median(Screen):
    """Of each number the one in the middle, or the mean of the two there: BRIDGE-M; at a server Yin et al. 2018."""

    name: Literal["median"] = "median"
    elementwise: ClassVar[bool] = True

    def ranked(self, attackers: int) -> int:
        """Return ``2b + 1``, a majority that is honest."""
        return 2 * attackers + 1

    def mean(self, votes: Votes, attackers: int) -> Screened:
        """Return the coordinate-wise median."""
        return coordinate_median(*votes.everybody)


class Krum(Screen):
    """The vector that is nearest to its ``n - b - 2`` nearest others: BRIDGE-K (Blanchard et al., NeurIPS 2017).

    ``argmin_i sum_{k near i} |x_i - x_k|^2`` over all n, the agent itself included.
    """

    name: Literal["krum"] = "krum"

    def ranked(self, attackers: int) -> int:
        """Return ``2b + 3``, as Krum's authors have it."""
        return 2 * attackers + 3

    def mean(self, votes: Votes, attackers: int) -> Screened:
        """Return the selected vector."""
        vectors, present = votes.everybody
        scores = krum_scores(squared_distances(vectors, present), present, count(present) - attackers - 2)
        best = smallest(scores)
        return Screened(mean_of_vectors(vectors, best, torch.ones_like(scores[0])), (~best).to(scores.dtype))


class Bulyan(Screen):
    """Krum selects ``n - 2b``; of each number the ``n - 4b`` nearest to their median are averaged: BRIDGE-B.

    El Mhamdi, Guerraoui, Rouault, ICML 2018. **Choice**: as that paper has the second phase; the code of BRIDGE's
    authors trims b at both ends there.
    """

    name: Literal["bulyan"] = "bulyan"

    def ranked(self, attackers: int) -> int:
        """Return ``4b + 3``, as Bulyan's authors have it."""
        return 4 * attackers + 3

    def mean(self, votes: Votes, attackers: int) -> Screened:
        """Return Bulyan's mean."""
        vectors, present = votes.everybody
        number, numbers = count(present), count(present) - 4 * attackers
        distances = squared_distances(vectors, present)
        selected = selected_by_krum(distances, present, attackers, number - 2 * attackers)
        low, high = _middle(count(selected))
        share = 1 / (high - low).to(vectors[0].dtype)

        def nearest(block: Tensor) -> Tensor:
            middle = middle_of(_filled(block, selected), low, high)
            median = torch.zeros_like(block[0])
            for values, counting in zip(block.unbind(), middle.unbind(), strict=True):
                median = median + torch.where(counting, share * values, 0.0)
            return first_of(_filled((block - median).abs(), selected), numbers)

        return mean_of_numbers(vectors, nearest, 1 / numbers.to(vectors[0].dtype), None)


class NearestNeighbors(Screen):
    """Nearest-neighbor averaging, MoNNA's: the mean of the ``n - b`` vectors nearest to the agent's own; peers alone.

    Its own is one of them. Farhadkhani, Guerraoui, Gupta, Hoang, Pinot, Stephan, ICML 2023 (2209.10931);
    momentum is the local optimizer's. Nearest-neighbor mixing, which any screen may have, is another thing.
    """

    name: Literal["nearest-neighbors"] = "nearest-neighbors"

    def ranked(self, attackers: int) -> int:
        """Return ``2b + 1``. **Choice**: the least that a majority needs; the paper's theorem asks for far more."""
        return 2 * attackers + 1

    def mean(self, votes: Votes, attackers: int) -> Screened:
        """Return the mean, in the order of the agents."""
        far = absent_last(distances_from(votes.center, votes.vectors), votes.present)
        number = count(votes.present) - attackers
        near = first_of(far, number)
        share = 1 / (number + 1).to(far.dtype)
        mean = share * votes.center
        for vector, counting in zip(votes.vectors, near.unbind(), strict=True):
            mean = mean + torch.where(counting, share * vector, 0.0)
        return Screened(mean, votes.of_everybody((~near).to(far.dtype)))


class CenteredClipping(Screen):
    """Every vector counts, but pulls no further than tau: ``c + sum_k w_k (x_k - c) min(1, tau/|x_k - c|)``.

    Between peers the center is the agent's own vector and w the mixing weights: self-centered clipping (He,
    Karimireddy, Jaggi 2022, 2202.01545). At a server it is the last mean, 0 at first, and w is ``1/K`` (Karimireddy,
    He, Jaggi, ICML 2021). **Choice**: where tau is not given, it is the distance in the middle (of an even number the
    smaller one of the two), which attackers that are no majority can only lower.
    """

    name: Literal["centered-clipping"] = "centered-clipping"
    ranks_center: ClassVar[bool] = False
    radius: float | None = Field(None, gt=0)
    """tau, above 0: how far a vector may be from the center without being clipped. Not given: the median distance at
    each step."""

    def ranked(self, attackers: int) -> int:
        """Return ``2b + 1``, so that most of the others are honest."""
        return 2 * attackers + 1

    def mean(self, votes: Votes, attackers: int) -> Screened:
        """Return the clipped mean."""
        far = distances_from(votes.center, votes.vectors)
        radius = _lower_median(far, votes.present) if self.radius is None else torch.full_like(far[0], self.radius)
        kept = torch.where(far > radius, radius / torch.where(far > 0, far, 1.0), 1.0)
        shares = torch.where(votes.present, votes.shares * kept, 0.0)
        mean = votes.center
        for share, vector in zip(shares.unbind(), votes.vectors, strict=True):
            # What is infinitely far away has a share of 0, of which it would make no number.
            mean = mean + torch.where(share == 0, 0.0, share * (vector - votes.center))
        return Screened(mean, votes.of_everybody(1 - kept))


class GeometricMedian(Screen):
    """The point whose distances to all vectors have the smallest sum, by smoothed Weiszfeld steps.

    ``z <- sum_k b_k x_k / sum_k b_k``, ``b_k = 1 / max(nu, |z - x_k|)`` (RFA: Pillutla, Kakade, Harchaoui, 2022,
    1912.13445). **Choice**: it begins at the coordinate-wise median; from the mean, which RFA allows, three steps stay
    where one vector that is far away has drawn it.
    """

    name: Literal["geometric-median"] = "geometric-median"
    smoothing: float = Field(0.1, gt=0)
    """nu, above 0: distances below it count as equal. It is a length, in the units of what is averaged."""
    iterations: int = Field(3, ge=1, le=1000)
    """Weiszfeld steps."""

    def ranked(self, attackers: int) -> int:
        """Return ``2b + 1``, a majority that is honest."""
        return 2 * attackers + 1

    def mean(self, votes: Votes, attackers: int) -> Screened:
        """Return the approximate geometric median; ``dropped`` is by how much less than an equal share one has."""
        vectors, present = votes.everybody
        point = coordinate_median(vectors, present).vector
        shares = present.to(point.dtype)
        for _ in range(self.iterations):
            weights = torch.where(present, 1 / distances_from(point, vectors).clamp(min=self.smoothing), 0.0)
            shares = weights / sum_of(weights)
            point = torch.zeros_like(point)
            for share, vector in zip(shares.unbind(), vectors, strict=True):
                point = point + torch.where(share == 0, 0.0, share * vector)
        equal = shares * count(present)
        return Screened(point, 1 - equal.clamp(max=1.0))


def coordinate_median(vectors: Vectors, present: Tensor) -> Screened:
    """Return the median of each number; ``dropped`` is the share of numbers in which a vector is not in the middle."""
    low, high = _middle(count(present))
    share = 1 / (high - low).to(vectors[0].dtype)
    return mean_of_numbers(vectors, lambda block: middle_of(_filled(block, present), low, high), share, None)


def _middle(number: Tensor) -> tuple[Tensor, Tensor]:
    """Return the ranks between which one or two numbers are in the middle, ``[low, high)``."""
    return (number - 1).clamp(min=0) // 2, number // 2 + 1


def _filled(block: Tensor, present: Tensor) -> Tensor:
    """Return a block (n, ...) in which what is missing, or is no number, comes last in every order."""
    return torch.where(present[:, None] & ~block.isnan(), block, math.inf)


def _lower_median(values: Tensor, present: Tensor) -> Tensor:
    low, _ = _middle(count(present))
    middle = middle_of(torch.where(present, values, math.inf), low, low + 1)
    return sum_of(torch.where(middle, values, 0.0))


AnyScreen = Annotated[
    Annotated[
        TrimmedMean | Median | Krum | Bulyan | NearestNeighbors | CenteredClipping | GeometricMedian,
        Field(discriminator="name"),
    ],
    BeforeValidator(from_name),
]
"""Any screen's settings, told apart by ``name``."""
