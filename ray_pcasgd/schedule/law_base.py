"""What every law of compute times or link delays is, the user's own too."""

from abc import ABC, abstractmethod
from collections.abc import Callable
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


class InBlocks:
    """Draws from a law that draws several values at once: numpy takes as long for one as for 30.

    The values are those that single draws would give, as long as nothing else draws from the same generator. Blocks
    grow, since many links draw only a few values.
    """

    __slots__ = ("_at", "_block", "_draw")

    def __init__(self, draw: Callable[[int], np.ndarray]) -> None:
        self._draw = draw
        self._block: list[float] = []
        self._at = 0

    def __call__(self, moment: float) -> float:
        """Return the next value, the same at any moment."""
        if self._at == len(self._block):
            self._block = self._draw(min(max(2 * len(self._block), 4), _LARGEST_BLOCK)).tolist()
            self._at = 0
        self._at += 1
        return self._block[self._at - 1]

    def many(self, number: int) -> np.ndarray:
        """Return the next values, shape (number,)."""
        left = self._block[self._at : self._at + number]
        self._at += len(left)
        drawn = self._draw(number - len(left))
        return np.concatenate([left, drawn]) if left else drawn


def scipy_stats() -> Any:
    """Return SciPy's distributions, whose import takes longer than that of all settings."""
    from scipy import stats

    return stats
