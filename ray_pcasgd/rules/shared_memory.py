"""SGD in asynchronous shared memory: the adversary of the lower bound, and views that mix versions.

Alistarh, De Sa, Konstantinov, 'The Convergence of Stochastic Gradient Descent in Asynchronous Shared Memory' (PODC
2018, arXiv 1803.08841).
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field

from ray_pcasgd.base.randomness import generator
from ray_pcasgd.base.settings import Settings
from ray_pcasgd.rules.gathering_base import BaseKind, Gathering

if TYPE_CHECKING:  # plans need no tensor
    from torch import Tensor


class Adversarial(Gathering):
    """The adversary of the lower bound: of one worker each gradient is held back over ``delay`` updates of the others.

    In periods: the last worker computes at the present weights; the others then take ``delay`` updates one after
    another, each at the newest weights; then comes the last worker's. On ``f(x) = h x^2 / 2``, with ``a = eta h``, a
    period multiplies x by ``(1 - a)^delay - a``, where as many sequential steps give ``(1 - a)^(delay + 1)``: with a
    constant step size it is slower by a factor that grows linearly in ``delay`` (``slowdown``), the paper's lower
    bound. Planned runs alone; of ``compute`` the others' times count, and nobody is late but whom it holds back.
    """

    name: Literal["adversarial"] = "adversarial"
    delay: int = Field(ge=1)
    """tau: updates of the others for each gradient of the last worker."""

    waits: ClassVar[bool] = True

    @property
    def base_kind(self) -> BaseKind | None:
        """``None``: who delivers when does not follow from times."""
        return None

    def num_gradients(self, num_workers: int) -> int:
        """Return 1."""
        return 1

    def check(self, num_workers: int) -> None:
        """Raise ``ValueError`` where there is no other worker."""
        if num_workers < 2:
            raise ValueError(f"name = {self.name!r}: allowed with num_agents = {num_workers} are others; it needs two")


def slowdown(delay: int, contraction: float) -> float:
    """Return how many times as many steps the adversary makes a quadratic take; ``contraction``: eta x curvature.

    >>> [round(slowdown(delay, 0.1), 1) for delay in (100, 300)], round(slowdown(500, 0.05), 1)
    ([4.6, 13.8], 8.6)
    """
    return (delay + 1) * math.log(1 - contraction) / math.log(abs((1 - contraction) ** delay - contraction))


class InconsistentView(Settings):
    """Inconsistent reads: what a worker is sent mixes versions, block by block of coordinates.

    The paper's model of reads: a view's coordinates may be of different moments, tau updates old at most. Each block is
    that of a version drawn evenly from the last ``delay + 1`` ones, as where memory is read while others write to it:
    views are between versions ``t - delay`` and t in every coordinate. **Choice**: blocks are drawn anew for each
    version, the same for all that read it; a correction takes the view for the version.
    """

    delay: int = Field(ge=1)
    """tau: how many updates old a block may be."""
    block: int = Field(16, ge=1)
    """Coordinates of one block; 16 numbers are a cache line. As large as the model, or larger, a view is one version
    with all its numbers, up to ``delay`` updates old."""

    def of(self, versions: "Sequence[Tensor]", seed: int, version: int) -> "Tensor":
        """Return the view of a version, shape (D,), of the last versions' weights, the newest last."""
        newest, *before = reversed(versions)
        size = newest.numel()
        block = min(self.block, max(size, 1))
        drawn = generator(seed, "view", version).integers(len(versions), size=-(-size // block))
        ages = newest.new_tensor(np.repeat(drawn, block)[:size])
        view = newest
        for age, older in enumerate(before, 1):
            view = older.where(ages == age, view)
        return view
