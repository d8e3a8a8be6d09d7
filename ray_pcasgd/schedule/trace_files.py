"""Traces in files: columns of numbers, CSV or Parquet."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

_SHOWN = 20
"""Columns of a file that are named where another one was asked for."""


def read_columns(
    path: Path, columns: Sequence[str], may_be_empty: Collection[str] = (), setting: str = "trace"
) -> list[np.ndarray]:
    """Return columns of a file, each of shape (rows,), float64; an empty field is not a number.

    Args:
        path: The file.
        columns: Names of columns.
        may_be_empty: Those that may have empty fields.
        setting: What errors call the path.

    Raises:
        ValueError: there is no such file, no such column, or no row, or a field is no number.

    """
    import pandas as pd  # here, since it takes 60 MB and few runs need it

    named = f"{setting} = {str(path)!r}"
    if path.exists() and not path.is_file():  # a pipe would be waited for, a device never ends
        raise ValueError(f"{named}: is no file; allowed is CSV or Parquet")
    try:
        is_parquet = path.suffix == ".parquet"
        frame = pd.read_parquet(path) if is_parquet else pd.read_csv(path, skipinitialspace=True)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{named}: cannot be read ({' '.join(str(error).split())}); allowed is CSV or Parquet"
        ) from None
    for column in columns:
        if column not in frame:
            found = ", ".join(map(str, frame.columns[:_SHOWN]))
            raise ValueError(f"{named}: has the columns {found}; allowed are {', '.join(columns)}")
    if frame.empty:
        raise ValueError(f"{named}: has no rows; allowed is one or more")
    return [_numbers(named, frame[column], column in may_be_empty) for column in columns]


def _numbers(named: str, column: "pd.Series", may_be_empty: bool) -> np.ndarray:
    import pandas as pd

    values = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64)
    wrong = np.isnan(values) & ~(column.isna().to_numpy() & may_be_empty)
    for row in np.flatnonzero(wrong)[:1]:
        raise ValueError(
            f"{named}: row {row + 1} has {str(column.iloc[row])!r} in the column {column.name}; allowed are numbers"
        )
    return values
