"""Laws of compute times and of link delays."""

import bisect
import math
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from pydantic import BeforeValidator, Field, model_validator

from ray_pcasgd.settings import Settings, from_name

Sampler = Callable[[float], float]
"""Draws the next value; the argument is when it is drawn for: a time, or a version where the unit is steps."""


class Constant(Settings):
    """Always the same."""

    name: Literal["constant"] = "constant"
    value: float = Field(ge=0)
    """Seconds, or steps."""

    def sampler(self, random: np.random.Generator) -> Sampler:
        """Return what draws from the law."""
        return lambda _: self.value

    def expectation(self) -> float:
        """Return the law's mean."""
        return self.value


class Uniform(Settings):
    """Uniform between two bounds."""

    name: Literal["uniform"] = "uniform"
    low: float = Field(ge=0)
    """Smallest value."""
    high: float = Field(ge=0)
    """Largest value."""

    @model_validator(mode="after")
    def _ordered(self) -> "Uniform":
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
    mean: float = Field(gt=0)
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
    shift: float = Field(ge=0)
    """The fixed part."""
    mean: float = Field(gt=0)
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
    scale: float = Field(gt=0)
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
    median: float = Field(gt=0)
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
    """A link that is up and down by turns (a two-state Markov chain): what is sent while it is down waits."""

    name: Literal["outage"] = "outage"
    mean_up: float = Field(gt=0)
    """Mean length of the times that the link is up; exponential."""
    mean_down: float = Field(gt=0)
    """Mean length of the times that it is down; exponential."""
    delay: float = Field(0.0, ge=0)
    """Delay while it is up."""

    def sampler(self, random: np.random.Generator) -> Sampler:
        """Return what draws from the law; the chain starts up at 0."""
        turns = [0.0]  # the link goes down at odd places, and up again at even ones

        def delay(moment: float) -> float:
            while turns[-1] <= moment:
                mean = self.mean_up if len(turns) % 2 else self.mean_down
                turns.append(turns[-1] + float(random.exponential(mean)))
            following = bisect.bisect_right(turns, moment)
            is_down = following % 2 == 0
            return self.delay + (turns[following] - moment if is_down else 0.0)

        return delay

    def expectation(self) -> float:
        """Return the mean delay of a message that is sent at a random time."""
        return self.delay + self.mean_down**2 / (self.mean_up + self.mean_down)


class Measured(Settings):
    """Measured values from a file, one after another, from the start again after the last."""

    name: Literal["measured"] = "measured"
    path: Path
    """A CSV or Parquet file."""
    column: str = "delay"
    """The column that holds the values."""

    @model_validator(mode="after")
    def _readable(self) -> "Measured":
        assert self.values
        return self

    @cached_property
    def values(self) -> tuple[float, ...]:
        """Return the file's values.

        Raises:
            ValueError: there is no such file or column, or it holds values that are no delays.

        """
        if self.path.exists() and not self.path.is_file():  # a pipe would be waited for, a device never ends
            raise ValueError(f"path = {str(self.path)!r}: is no file; allowed is CSV or Parquet")
        try:
            frame = pd.read_parquet(self.path) if self.path.suffix == ".parquet" else pd.read_csv(self.path)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"path = {str(self.path)!r}: cannot be read ({error}); allowed is CSV or Parquet"
            ) from None
        if self.column not in frame:
            raise ValueError(f"column = {self.column!r}: allowed are {', '.join(map(str, frame.columns))}")
        values = pd.to_numeric(frame[self.column], errors="coerce").to_numpy(dtype=np.float64)
        if not len(values) or not np.isfinite(values).all() or (values < 0).any():
            raise ValueError(
                f"column = {self.column!r}: holds values that are no delays; allowed are numbers from 0 on"
            )
        return tuple(values.tolist())

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


def _from_number(value: Any) -> Any:
    return {"name": "constant", "value": value} if isinstance(value, int | float) else from_name(value)


Law = Annotated[
    Annotated[
        Constant | Uniform | Exponential | ShiftedExponential | Pareto | LogNormal | Outage | Measured,
        Field(discriminator="name"),
    ],
    BeforeValidator(_from_number),
]
"""A law by its ``name``; a bare number is a constant."""
