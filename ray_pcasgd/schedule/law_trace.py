"""Times and delays that change in the course of a run, as a trace in a file has them."""

import math
from bisect import bisect_right
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from ray_pcasgd.schedule.law_base import LARGEST, BaseLaw, Sampler
from ray_pcasgd.schedule.trace_files import read_columns


class TraceLaw(BaseLaw):
    """Values over time, from a file: each holds from its second to that of the next one, the last one for ever.

    Before the first second the first value holds. For example, a device whose steps take twice as long at night::

        second,factor
        0,1
        30000,2
        60000,1

        compute: {agents: {3: {name: trace, path: phone.csv, column: factor, times: 0.8}}}
    """

    name: Literal["trace"] = "trace"
    path: Path
    """A CSV or Parquet file with the column ``second``, rising, and one with values. For delays in steps, ``second``
    counts the sender's steps."""
    column: str = "value"
    """The column that holds the values: seconds of a step, or of a delay; for a link's delays in steps, steps."""
    times: float = Field(1.0, gt=0, le=LARGEST)
    """What the values are multiplied by: where they are factors, the seconds of a step at factor 1."""

    @model_validator(mode="after")
    def _readable(self) -> "TraceLaw":
        assert self.values
        return self

    @cached_property
    def values(self) -> tuple[tuple[float, float], ...]:
        """Return the seconds and the values from then on.

        Raises:
            ValueError: there is no such file or column, or it holds what is no time, or seconds that do not rise.

        """
        seconds, values = read_columns(self.path, ("second", self.column), setting="path")
        values = values * self.times
        rises = np.diff(seconds, prepend=-1.0) > 0
        for row in np.flatnonzero(~((seconds >= 0) & rises & (values >= 0) & (values <= LARGEST)))[:1]:
            raise ValueError(
                f"path = {str(self.path)!r}: row {row + 1} is {seconds[row]:g}, {values[row]:g}; allowed are seconds "
                f"from 0 on, rising, and values from 0 to {LARGEST:g}"
            )
        return tuple(zip(seconds.tolist(), values.tolist(), strict=True))

    def sampler(self, random: np.random.Generator) -> Sampler:
        """Return what looks up the value that holds."""
        seconds, values = zip(*self.values, strict=True)
        return lambda moment: float(values[max(0, bisect_right(seconds, moment) - 1)])

    def expectation(self) -> float:
        """Return the mean over the time from the first second to the last; of one second alone, its value."""
        (first, value), (last, _) = self.values[0], self.values[-1]
        if first == last:
            return value
        return math.fsum(one * (end - start) for (start, one), (end, _) in pairwise(self.values)) / (last - first)

    @property
    def only_value(self) -> float | None:
        """The value, where it never changes."""
        values = {value for _, value in self.values}
        return values.pop() if len(values) == 1 else None
