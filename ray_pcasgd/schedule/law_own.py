"""Laws that are not the package's own: their base class, and the check that plans can rely on them."""

from abc import abstractmethod
from numbers import Real

import numpy as np

from ray_pcasgd.base.doors import naming_own
from ray_pcasgd.schedule.law_base import LARGEST, BaseLaw, Sampler


class OwnLaw(BaseLaw):
    """Base class of laws that are not the package's own.

    A law draws from the generator that ``draws`` is given, and from no other: each link and each agent has one of its
    own, which follows from the run's seed, so that a plan is the same whenever it is made.
    """

    @abstractmethod
    def draws(self, random: np.random.Generator) -> Sampler:
        """Return what draws one value after another, numbers in [0, 1e9]: seconds, or steps."""

    def sampler(self, random: np.random.Generator) -> Sampler:
        """Return what draws from the law; each value is checked.

        Raises:
            ValueError: (what draws) a value is no number in [0, 1e9].

        """
        draw = self.draws(random)

        def checked(moment: float) -> float:
            value = draw(moment)
            if isinstance(value, bool) or not (isinstance(value, Real) and 0 <= value <= LARGEST):
                raise ValueError(
                    f"the law {self.name!r} has drawn {value!r}; allowed are numbers from 0 on, up to {LARGEST:g}"  # type: ignore[attr-defined]
                )
            return float(value)

        return checked


_TRIED = 64
"""Values that are drawn from a law before it is used."""


def check_law(law: OwnLaw) -> None:
    """Raise ``ValueError`` where a law cannot be drawn from, or draws from another generator than the one given."""
    with naming_own(law):
        first, second = (
            [draw(float(moment)) for moment in range(_TRIED)]
            for draw in (law.sampler(np.random.default_rng(0)) for _ in range(2))
        )
        mean = law.expectation()
    if first != second:
        raise ValueError("it draws other values from the same generator; allowed is to draw from the one given alone")
    if isinstance(mean, bool) or not (isinstance(mean, Real) and mean >= 0):
        raise ValueError(f"its expectation is {mean!r}; allowed are numbers from 0 on, and math.inf")
