"""Parquet files that may come from anybody: read in bounded memory, with the expected columns only, or refused."""

from collections.abc import Collection
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ray_pcasgd.base.foreign_files import open_regular
from ray_pcasgd.base.text import one_line

_MOST_ROWS = 10_000_000
_MOST_VALUES = 200_000_000
"""Of all columns together; a few bytes may stand for any number of equal ones."""
_BATCH_ROWS = 2**14
_LONGEST_REASON = 200
_UNREADABLE = (OSError, pa.ArrowException, ValueError, MemoryError, OverflowError, RecursionError, KeyError)
"""What Arrow raises of files that are damaged, or made up."""


def read_table(path: Path, texts: Collection[str] = ()) -> pa.Table:
    """Return a table's columns of numbers, of lists of numbers, and the named ones of texts as dictionaries.

    Others are left out before they are read.

    Raises:
        ValueError: the file cannot be read, or holds more than tables of runs do.

    """
    try:
        with open_regular(path) as file:
            schema = pq.read_schema(file)
            texts = [field.name for field in schema if field.name in texts and _is_text(field.type)]
            columns = [field.name for field in schema if _is_plain(field.type) or field.name in texts]
            if len(set(columns)) < len(columns):
                raise ValueError("it has columns of one name")
            # How many values there are stands in the footer, too; but where that is damaged, Arrow ends the process.
            parquet = pq.ParquetFile(file, read_dictionary=list(texts), page_checksum_verification=True)
            batches, values = [], 0
            for batch in parquet.iter_batches(_BATCH_ROWS, columns=columns):
                batches.append(batch)
                values += sum(_size(column) for column in batch.columns)
                if len(batches) * _BATCH_ROWS > _MOST_ROWS or values > _MOST_VALUES:
                    raise ValueError(f"it has more than {_MOST_ROWS:,} rows or {_MOST_VALUES:,} values")
            fields = [parquet.schema_arrow.field(name) for name in columns]
            return pa.Table.from_batches(batches, pa.schema(fields, parquet.schema_arrow.metadata))
    except _UNREADABLE as error:
        raise ValueError(one_line(error, _LONGEST_REASON) or type(error).__name__) from None


def _size(column: pa.Array) -> int:
    return len(column.flatten()) if pa.types.is_list(column.type) else len(column)


def _is_plain(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind):
        kind = kind.value_type
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind.value_type if pa.types.is_dictionary(kind) else kind))
