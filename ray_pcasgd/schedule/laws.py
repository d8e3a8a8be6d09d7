"""Laws of compute times and of link delays, by their names; ``law_base`` says what one of your own must have."""

import math
from numbers import Real
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator, Field, model_validator

from ray_pcasgd.base.doors import Door
from ray_pcasgd.base.settings import from_name
from ray_pcasgd.schedule.law_base import LARGEST, BaseLaw, InBlocks, Sampler, scipy_stats
from ray_pcasgd.schedule.law_measured import MeasuredLaw
from ray_pcasgd.schedule.law_own import OwnLaw, check_law
from ray_pcasgd.schedule.law_text import read_law
from ray_pcasgd.schedule.law_trace import TraceLaw

_Time = Annotated[float, Field(ge=0, le=LARGEST)]
_TimeAboveZero = Annotated[float, Field(gt=0, le=LARGEST)]


class ConstantLaw(BaseLaw):
    """The same value always."""

    name: Literal["constant"] = "constant"
    value: _Time
    """Seconds, or steps."""

    def sampler(self, random: np.random.Generator) -> Sampler:
        """Return what draws from the law."""
        return InBlocks(lambda size: np.full(size, self.value))

    def expectation(self) -> float:
        """Return the law's mean."""
        return self.value

    @property
    def only_value(self) -> float:
        """The value."""
        return self.value


class UniformLaw(BaseLaw):
    """Uniform between two bounds."""

    name: Literal["uniform"] = "uniform"
    low: _Time
    """Smallest value."""
    high: _Time
    """Largest value."""

    @model_validator(mode="after")
    def _ordered(self) -> "UniformLaw":
        if self.high < self.low:
            raise ValueError(f"high = {self.high:g}: allowed is low = {self.low:g} or more")
        return self

    def sampler(self, random: np.random.Generator) -> Sampler:
        """Return what draws from the law."""
        return InBlocks(lambda size: random.uniform(self.low, self.high, size))

    def expectation(self) -> float:
        """Return the law's mean."""
        return (self.low + self.high) / 2

    @property
    def only_value(self) -> float | None:
        """The bounds, where they are equal."""
        return self.low if self.low == self.high else None

    def theory_distribution(self) -> Any:
        """Return SciPy's distribution."""
        return scipy_stats().uniform(loc=self.low, scale=self.high - self.low)


class Exponential(BaseLaw):
    """Exponential: memoryless, at the rate ``1 / mean``."""

    name: Literal["exponential"] = "exponential"
    mean: _TimeAboveZero
    """Mean value."""

    def sampler(self, random: np.random.Generator) -> Sampler:
        """Return what draws from the law."""
        return InBlocks(lambda size: random.exponential(self.mean, size))

    def expectation(self) -> float:
        """Return the law's mean."""
        return self.mean

    def theory_distribution(self) -> Any:
        """Return SciPy's distribution."""
        return scipy_stats().expon(scale=self.mean)


class ShiftedExponential(BaseLaw):
    """A fixed part and an exponential one."""

    name: Literal["shifted-exponential"] = "shifted-exponential"
    shift: _Time
    """The fixed part."""
    mean: _TimeAboveZero
    """Mean of the exponential part."""

    def sampler(self, random: np.random.Generator) -> Sampler:
        """Return what draws from the law."""
        return InBlocks(lambda size: self.shift + random.exponential(self.mean, size))

    def expectation(self) -> float:
        """Return the law's mean."""
        return self.shift + self.mean

    def theory_distribution(self) -> Any:
        """Return SciPy's distribution."""
        return scipy_stats().expon(loc=self.shift, scale=self.mean)


class Pareto(BaseLaw):
    """Pareto (type I): heavy-tailed, ``P(X > x) = (scale / x) ** shape`` from ``scale`` on."""

    name: Literal["pareto"] = "pareto"
    shape: float = Field(ge=0.1)
    """alpha; the smaller, the heavier the tail. Below 0.1 samples would leave the range of floating-point numbers."""
    scale: _TimeAboveZero
    """x_m, the smallest value."""

    def sampler(self, random: np.random.Generator) -> Sampler:
        """Return what draws from the law."""
        return InBlocks(lambda size: self.scale * (1.0 + random.pareto(self.shape, size)))

    def expectation(self) -> float:
        """Return the law's mean; infinite up to shape 1."""
        return math.inf if self.shape <= 1 else self.shape * self.scale / (self.shape - 1)

    def theory_distribution(self) -> Any:
        """Return SciPy's distribution."""
        return scipy_stats().pareto(self.shape, scale=self.scale)


class LogNormal(BaseLaw):
    """Log-normal."""

    name: Literal["log-normal"] = "log-normal"
    median: _TimeAboveZero
    """Median value."""
    sigma: float = Field(ge=0, le=20)
    """Standard deviation of the logarithm."""

    def sampler(self, random: np.random.Generator) -> Sampler:
        """Return what draws from the law."""
        return InBlocks(lambda size: random.lognormal(math.log(self.median), self.sigma, size))

    def expectation(self) -> float:
        """Return the law's mean."""
        return self.median * math.exp(self.sigma**2 / 2)

    @property
    def only_value(self) -> float | None:
        """The median, where there is no spread."""
        return self.median if self.sigma == 0 else None

    def theory_distribution(self) -> Any:
        """Return SciPy's distribution."""
        return scipy_stats().lognorm(self.sigma, scale=self.median)


class Outage(BaseLaw):
    """A link that is up and down by turns (a two-state Markov chain): a message that is sent while it is down waits.

    **Choice**: for a message sent 100,000 mean turns of each kind after the one before it, whether the link is up is
    drawn by itself, since it no longer depends on the state at the last message.
    """

    name: Literal["outage"] = "outage"
    mean_up: _TimeAboveZero
    """Mean length of the times that the link is up; exponential."""
    mean_down: _TimeAboveZero
    """Mean length of the times that it is down; exponential."""
    delay: _Time = 0.0
    """Delay while it is up."""

    def sampler(self, random: np.random.Generator) -> Sampler:
        """Return what draws from the law; the chain starts up at 0."""
        chain = _Turns(self.mean_up, self.mean_down, random)
        return lambda moment: self.delay + chain.until_up(moment)

    def expectation(self) -> float:
        """Return the mean delay of a message that is sent at a random time."""
        return self.delay + self.mean_down**2 / (self.mean_up + self.mean_down)

    def theory_distribution(self) -> Any:
        """Raise ``ValueError``: whether the link is up depends on whether it was up before."""
        raise ValueError(
            f"compute.law.name = {self.name!r}: allowed for the theory are laws whose values are independent of each "
            "other"
        )


class _Turns:
    """The turns of a link that is up and down, as far as they have been asked for."""

    def __init__(self, mean_up: float, mean_down: float, random: np.random.Generator) -> None:
        self._means = np.array([mean_up, mean_down])
        self._cycle = mean_up + mean_down
        self._random = random
        self._turns = np.zeros(1)
        """Rising. The link goes down at odd places, and up again at even ones."""

    def until_up(self, moment: float) -> float:
        """Return how long the link is still down at ``moment``; 0 where it is up."""
        if moment - self._turns[-1] > _MOST_TURNS * self._cycle or self._cycle < moment * _RESOLUTION:
            return self._begin_anew(moment)
        while self._turns[-1] <= moment:
            # Moments never fall: the turns before the last even one are let go.
            following = int(np.searchsorted(self._turns, moment, side="right"))
            self._turns = self._turns[max(0, (following - 1) // 2 * 2) :]
            self._extend(int(2 * (moment - self._turns[-1]) / self._cycle))
        following = int(np.searchsorted(self._turns, moment, side="right"))
        return float(self._turns[following]) - moment if following % 2 == 0 else 0.0

    def _extend(self, number: int) -> None:
        """Draw the given number of turns, and some more."""
        means = np.resize(self._means if len(self._turns) % 2 else self._means[::-1], number + 16)
        times = self._random.standard_exponential(len(means)) * means
        self._turns = np.concatenate([self._turns, np.cumsum([self._turns[-1], *times])[1:]])

    def _begin_anew(self, moment: float) -> float:
        """Draw whether the link is down, and how long it stays so: the chain's law long after it began."""
        is_down = bool(self._random.random() < self._means[1] / self._cycle)
        left = float(self._random.exponential(self._means[int(is_down)]))
        self._turns = np.array([moment] * (1 + is_down) + [moment + left])
        return left if is_down else 0.0


_MOST_TURNS = 100_000
"""Mean turns of each kind between two messages beyond which they are not drawn one by one."""

_RESOLUTION = 1e-12
"""Share of a time below which turns are too short for floating-point numbers."""


def _from_short_form(value: Any) -> Any:
    if isinstance(value, Real):
        return {"name": "constant", "value": value}
    return from_name(read_law(value)[0])


def _in_seconds(value: Any) -> Any:
    if read_law(value)[1] == "steps":
        raise ValueError("is in steps; allowed are seconds, with s, ms or no unit")
    return value


Law = Annotated[
    Annotated[
        ConstantLaw
        | UniformLaw
        | Exponential
        | ShiftedExponential
        | Pareto
        | LogNormal
        | Outage
        | MeasuredLaw
        | TraceLaw,
        Field(discriminator="name"),
        Door("law", "ray_pcasgd.laws", (OwnLaw,), check_law),
    ],
    BeforeValidator(_from_short_form),
]
"""A law by its ``name``, or in one word such as ``pareto(2, 1)``; a bare number is a constant."""

LawOfSeconds = Annotated[Law, BeforeValidator(_in_seconds)]
"""A law of times in seconds: ``200ms`` is allowed, ``3 steps`` is not."""
