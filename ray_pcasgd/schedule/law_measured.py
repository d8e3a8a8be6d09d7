"""Measured times and delays, from a file."""

import math
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from ray_pcasgd.base.scalars import number
from ray_pcasgd.schedule.law_base import LARGEST, BaseLaw, InBlocks, Sampler, scipy_stats

if TYPE_CHECKING:
    import pandas as pd

_SHOWN = 20
"""Columns of a file that are named where another one was asked for."""

_PARTS = {"s": 1, "ms": 1e3, "us": 1e6, "steps": 1, None: 1}
"""How many of a unit of measured values make a second, or a step."""


class MeasuredLaw(BaseLaw):
    r"""Measured values from a file, one after another, from the start again after the last.

    For example, ``ping`` measures round-trip times to a host, in milliseconds; here in a file without a header::

        ping -c 1000 HOST | sed -n 's/.*time=\([0-9.]*\) ms.*/\1/p' > rtt.csv
        links: [{delay: {name: measured, path: rtt.csv, column: 0, unit: ms, round_trip: true}}]
    """

    name: Literal["measured"] = "measured"
    path: Path
    """A CSV or Parquet file."""
    column: str | Annotated[int, Field(ge=0)] = "delay"
    """The column that holds the values: its name, or in a CSV file without a header its number, from 0 on. Empty cells
    at its end do not count."""
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
        # Where columns differ in length, the shorter ones end in empty cells.
        last = column.last_valid_index()
        column = column.iloc[:0] if last is None else column.loc[:last]
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
        values = self._array
        place = int(random.integers(len(values)))

        def draw(size: int) -> np.ndarray:
            nonlocal place
            place += size
            return values[np.arange(place - size, place) % len(values)]

        return InBlocks(draw)

    @cached_property
    def _array(self) -> np.ndarray:
        return np.array(self.values)

    def expectation(self) -> float:
        """Return the mean of the file's values."""
        return math.fsum(self.values) / len(self.values)

    @property
    def only_value(self) -> float | None:
        """The file's value, where it holds one alone."""
        return self.values[0] if min(self.values) == max(self.values) else None

    def theory_distribution(self) -> Any:
        """Return SciPy's distribution."""
        return scipy_stats().rv_histogram(np.histogram(self.values, bins=min(1000, len(self.values))))
