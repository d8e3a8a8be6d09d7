"""Laws of compute times and of link delays."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator, Field, model_validator

from ray_pcasgd.base.doors import Door, naming_own
from ray_pcasgd.base.scalars import number
from ray_pcasgd.base.settings import Settings, from_name
from ray_pcasgd.schedule.law_text import read_law

if TYPE_CHECKING:
    import pandas as pd

Sampler = Callable[[float], float]
"""Draws the next value; the argument is when it is drawn for: a time, or a version where the unit is steps. It never
falls from one call to the next."""

LARGEST = 1e9
"""The largest number of a law: seconds of 30 years, or steps. Planned times stay floating-point numbers with it."""

_Time = Annotated[float, Field(ge=0, le=LARGEST)]
_TimeAboveZero = Annotated[float, Field(gt=0, le=LARGEST)]


class ConstantLaw(Settings):
    """The same value always."""

    name: Literal["constant"] = "constant"
    value: _Time
    """Seconds, or steps."""

    def sampler(self, random: np.random.Generator) -> Sampler:
        """Return what draws from the law."""
        return lambda _: self.value

    def expectation(self) -> float:
        """Return the law's mean."""
        return self.value


class UniformLaw(Settings):
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
        return lambda _: float(random.uniform(self.low, self.high))

    def expectation(self) -> float:
        """Return the law's mean."""
        return (self.low + self.high) / 2


class Exponential(Settings):
    """Exponential: memoryless, at the rate ``1 / mean``."""

    name: Literal["exponential"] = "exponential"
    mean: _TimeAboveZero
    """Mean value."""

    def sampler(self, random: np.random.Generator) -> Sampler:
        """Return what draws from the law."""
        return lambda _: float(random.exponential(self.mean))

    def expectation(self) -> float:
        """Return the law's mean."""
        return self.mean


class ShiftedExponential(Settings):
    """A fixed part and an exponential one."""

    name: Literal["shifted-exponential"] = "shifted-exponential"
    shift: _Time
    """The fixed part."""
    mean: _TimeAboveZero
    """Mean of the exponential part."""

    def sampler(self, random: np.random.Generator) -> Sampler:
        """Return what draws from the law."""
        return lambda _: self.shift + float(random.exponential(self.mean))

    def expectation(self) -> float:
        """Return the law's mean."""
        return self.shift + self.mean


class Pareto(Settings):
    """Pareto (type I): heavy-tailed, ``P(X > x) = (scale / x) ** shape`` from ``scale`` on."""

    name: Literal["pareto"] = "pareto"
    shape: float = Field(ge=0.1)
    """alpha; the smaller, the heavier the tail. Below 0.1 samples would leave the range of floating-point numbers."""
    scale: _TimeAboveZero
    """x_m, the smallest value."""

    def sampler(self, random: np.random.Generator) -> Sampler:
        """Return what draws from the law."""
        return lambda _: self.scale * (1.0 + float(random.pareto(self.shape)))

    def expectation(self) -> float:
        """Return the law's mean; infinite up to shape 1."""
        return math.inf if self.shape <= 1 else self.shape * self.scale / (self.shape - 1)


class LogNormal(Settings):
    """Log-normal."""

    name: Literal["log-normal"] = "log-normal"
    median: _TimeAboveZero
    """Median value."""
    sigma: float = Field(ge=0, le=20)
    """Standard deviation of the logarithm."""

    def sampler(self, random: np.random.Generator) -> Sampler:
        """Return what draws from the law."""
        return lambda _: float(random.lognormal(math.log(self.median), self.sigma))

    def expectation(self) -> float:
        """Return the law's mean."""
        return self.median * math.exp(self.sigma**2 / 2)


class Outage(Settings):
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


_SHOWN = 20
"""Columns of a file that are named where another one was asked for."""

_PARTS = {"s": 1, "ms": 1e3, "us": 1e6, "steps": 1, None: 1}
"""How many of a unit of measured values make a second, or a step."""


class MeasuredLaw(Settings):
    r"""Measured values from a file, one after another, from the start again after the last.

    For example, ``ping`` measures round-trip times to a host, in milliseconds; here in a file without a header::

        ping -c 1000 HOST | sed -n 's/.*time=\([0-9.]*\) ms.*/\1/p' > rtt.csv
        links: [{delay: {name: measured, path: rtt.csv, column: 0, unit: ms, round_trip: true}}]
    """

    name: Literal["measured"] = "measured"
    path: Path
    """A CSV or Parquet file."""
    column: str | Annotated[int, Field(ge=0)] = "delay"
    """The column that holds the values: its name, or in a CSV file without a header its number, from 0 on."""
    unit: Literal["s", "ms", "us", "steps"] | None = None
    """Unit of the file's values; not given: seconds for compute times, and the link's ``unit`` for delays. A link's
    delays in s, ms or us are delays in seconds."""
    round_trip: bool = False
    """Whether the values are round-trip times, of which a delay is half."""

    @model_validator(mode="after")
    def _readable(self) -> "MeasuredLaw":
        assert self.values
        return self

    @cached_property
    def values(self) -> tuple[float, ...]:
        """Return the file's values, one way, in seconds or steps.

        Raises:
            ValueError: there is no such file or column, or it holds values that are no delays.

        """
        import pandas as pd  # here, since it takes 60 MB and no other law needs it

        column = self._column()
        values = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64)
        values = values / _PARTS[self.unit] / (2 if self.round_trip else 1)
        wrong = np.flatnonzero(~((values >= 0) & (values <= LARGEST)))
        if len(wrong) or not len(values):
            told = f", such as {str(column.iloc[wrong[0]])!r} in row {wrong[0] + 1}" if len(wrong) else ""
            raise ValueError(
                f"column = {self.column!r}: holds values that are no delays{told}; allowed are numbers from 0 on, up "
                f"to {LARGEST:g} seconds or steps"
            )
        return tuple(values.tolist())

    def _column(self) -> "pd.Series":
        import pandas as pd

        if self.path.exists() and not self.path.is_file():  # a pipe would be waited for, a device never ends
            raise ValueError(f"path = {str(self.path)!r}: is no file; allowed is CSV or Parquet")
        is_parquet = self.path.suffix == ".parquet"
        if is_parquet and not isinstance(self.column, str):
            raise ValueError(f"column = {self.column!r}: allowed in a Parquet file is a name")
        header = 0 if isinstance(self.column, str) else None
        try:
            # Spaces after commas are no part of a name.
            frame = (
                pd.read_parquet(self.path)
                if is_parquet
                else pd.read_csv(self.path, header=header, skipinitialspace=True)
            )
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"path = {str(self.path)!r}: cannot be read ({reason}); allowed is CSV or Parquet"
            ) from None
        if self.column not in frame:
            found = ", ".join(map(str, frame.columns[:_SHOWN]))
            without = header is not None and not is_parquet and all(number(str(name)) is not None for name in frame)
            hint = "; the file seems to have no header: write column: 0" if without else ""
            raise ValueError(f"column = {self.column!r}: allowed are {found}{hint}")
        return frame[self.column]

    def sampler(self, random: np.random.Generator) -> Sampler:
        """Return what draws from the law; each link begins at a place of its own."""
        values = self.values
        place = int(random.integers(len(values)))

        def draw(_: float) -> float:
            nonlocal place
            place += 1
            return values[(place - 1) % len(values)]

        return draw

    def expectation(self) -> float:
        """Return the mean of the file's values."""
        return math.fsum(self.values) / len(self.values)


class OwnLaw(Settings, ABC):
    """Base class of laws that are not the package's own.

    A law draws from the generator that ``draws`` is given, and from no other: each link and each agent has one of its
    own, which follows from the run's seed, so that a plan is the same whenever it is made.
    """

    @abstractmethod
    def draws(self, random: np.random.Generator) -> Sampler:
        """Return what draws one value after another, numbers in [0, 1e9]: seconds, or steps."""

    @abstractmethod
    def expectation(self) -> float:
        """Return the law's mean; ``math.inf`` where it has none."""

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
        ConstantLaw | UniformLaw | Exponential | ShiftedExponential | Pareto | LogNormal | Outage | MeasuredLaw,
        Field(discriminator="name"),
        Door("law", "ray_pcasgd.laws", (OwnLaw,), check_law),
    ],
    BeforeValidator(_from_short_form),
]
"""A law by its ``name``, or in one word such as ``pareto(2, 1)``; a bare number is a constant."""

LawOfSeconds = Annotated[Law, BeforeValidator(_in_seconds)]
"""A law of times in seconds: ``200ms`` is allowed, ``3 steps`` is not."""
