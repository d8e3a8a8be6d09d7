"""What every law of compute times or link delays is, the user's own too."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ray_pcasgd.base.settings import Settings

Sampler = Callable[[float], float]
"""Draws the next value; the argument is when it is drawn for: a time, or a version where the unit is steps. It never
falls from one call to the next."""

_LARGEST_BLOCK = 256

LARGEST = 1e9
"""The largest number of a law: seconds of 30 years, or steps. Planned times stay floating-point numbers with it."""


class BaseLaw(Settings, ABC):
    """A law of compute times or link delays. Its fields are its settings.

    The planners need ``sampler`` alone, the theory (``ray-pcasgd theory``) the rest.
    """

    @abstractmethod
    def sampler(self, random: np.random.Generator) -> Sampler:
        """Return what draws from the law: values from 0 to ``LARGEST``, by ``random`` alone.

        One agent's compute times, or one link's delays, are the values of one sampler.
        """

    @abstractmethod
    def expectation(self) -> float:
        """Return the law's mean; may be infinite."""

    @property
    def only_value(self) -> float | None:
        """The value that the law always has; ``None`` where values differ."""
        return None

    def theory_distribution(self) -> Any:
        """Return SciPy's distribution of the law's values; the theory asks for ``cdf`` and ``ppf``.

        Raises:
            ValueError: the values are not independent of each other, or the law has no such distribution.

        """
        name = self.name  # type: ignore[attr-defined]
        raise ValueError(f"compute.law.name = {name!r}: allowed for the theory are laws with a theory_distribution")


def in_blocks(draw: Callable[[int], np.ndarray]) -> Sampler:
    """Return what draws value after value from a law that draws several at once: numpy takes as long for one as for 30.

    The values are those that single draws would give, as long as nothing else draws from the same generator. Blocks
    grow, since many links draw only a few values.
    """

    def values() -> Iterator[float]:
        size = 4
        while True:
            yield from draw(size).tolist()
            size = min(2 * size, _LARGEST_BLOCK)

    following = values().__next__
    return lambda _: following()


def scipy_stats() -> Any:
    """Return SciPy's distributions, whose import takes longer than that of all settings."""
    from scipy import stats

    return stats
