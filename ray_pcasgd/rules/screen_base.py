"""What every screen is; and nearest-neighbor mixing, which may come before any of them."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from ray_pcasgd.base.numerics import Vectors
from ray_pcasgd.base.settings import Settings
from ray_pcasgd.rules.votes import (
    Screened,
    Votes,
    absent_last,
    count,
    first_of,
    means_of_vectors,
    squared_distances,
    sum_of,
)


class Screen(Settings, ABC):
    """A mean that b attackers among n voters cannot move at will; pure, without an ``if`` on a tensor."""

    nearest_neighbor_mixing: bool = False
    """Nearest-neighbor mixing (NNM) first: each vector becomes the mean of the n - b that are nearest to it, itself
    among them, and these means are screened (Allouah et al., AISTATS 2023, 2302.01772, Algorithm 2). For shards that
    differ: where honest vectors are far apart, a screen alone leaves many of them out."""

    elementwise: ClassVar[bool] = False
    """Whether each number is screened by itself, so that parts of the parameters can be, too."""
    ranks_center: ClassVar[bool] = True
    """Whether an agent's own vector is ranked as those of the others are, between peers."""

    @abstractmethod
    def ranked(self, attackers: int) -> int:
        """Return how many vectors have to be ranked to stand so many attackers: ``2b + 1`` or more, as mixing asks."""

    @abstractmethod
    def mean(self, votes: Votes, attackers: int) -> Screened:
        """Return the robust mean of what is present, and by how much each of ``votes.everybody`` was left out."""

    def least(self, attackers: int, center_votes: bool) -> int:
        """Return how many others it takes to stand so many attackers, where the center votes or does not."""
        return self.ranked(attackers) - (center_votes and self.ranks_center)

    @property
    def screens_parts(self) -> bool:
        """Whether parts of the parameters can be screened by themselves: mixing asks for distances of the whole."""
        return self.elementwise and not self.nearest_neighbor_mixing

    def apply(self, votes: Votes, attackers: int) -> Screened:
        """Return the robust mean of what is present; whatever it is where less is present than ``least`` says.

        ``dropped`` is of the others. **Choice**: with mixing, a vector is left out by the share of the means that
        count, each by how much it counts, in which it has no part.
        """
        if not self.nearest_neighbor_mixing:
            vector, dropped = self.mean(votes, attackers)
            return Screened(vector, votes.of_others(dropped))
        vectors, present = votes.everybody
        near = neighborhoods(vectors, present, attackers)
        vector, dropped = self.mean(votes.with_vectors(means_of_vectors(vectors, near)), attackers)
        return Screened(vector, votes.of_others(_without_part(near, torch.where(present, 1 - dropped, 0.0))))


def neighborhoods(vectors: Vectors, present: Tensor, attackers: int) -> Tensor:
    """Return in row k which vectors are the ``n - b`` nearest to vector k, itself among them, shape (n, n).

    n counts who is present. Of equally distant ones the first is nearer.
    """
    distances = absent_last(squared_distances(vectors, present), present[:, None])
    itself = torch.eye(len(vectors), dtype=torch.bool, device=present.device)
    # Each column is ranked; who is absent has a neighborhood, too, that nobody asks for.
    return first_of(torch.where(itself, -1.0, distances), count(present) - attackers).T


def _without_part(near: Tensor, kept: Tensor) -> Tensor:
    """Return for each vector the share in [0, 1] of what is kept of all means in which it has no part, shape (n,)."""
    # Where nothing is kept of anybody, nobody has a part.
    whole = sum_of(kept).clamp(min=torch.finfo(kept.dtype).tiny)
    parts = sum_of(torch.where(near, kept[:, None], 0.0))
    return 1 - (parts / whole).clamp(max=1.0)
