"""Rows in packed form: columns of numbers, of which a block of rows takes a tenth of what as many records do."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, pairwise
from typing import NamedTuple, get_args

import numpy as np
import pyarrow as pa

from ray_pcasgd.records import Read, Row, RowKind

_KINDS: tuple[RowKind, ...] = get_args(RowKind)
_CODES = {kind: code for code, kind in enumerate(_KINDS)}
_CODEC = "zstd"
_MOST_NUMBERS = 30_000_000
"""Of one kind in a block that comes from a file; its bytes may stand for any number of equal ones."""
_TYPES = [np.dtype(kind) for kind in (*[np.int32] * 2, *[np.float64] * 3, np.uint8, *[np.int32] * 7)]
"""Of a block's columns."""


class Sizes(NamedTuple):
    """How many rows, reads and held shares a block has."""

    rows: int
    reads: int
    held: int


class RowBlock(NamedTuple):
    """Rows as columns, in their order; numbers of versions and steps are below 2^31, as in a schedule's file."""

    agent: np.ndarray
    """Of shape (rows,), int32, as the next one."""
    step: np.ndarray
    start: np.ndarray
    """Of shape (rows,), float64, as the next two."""
    ready: np.ndarray
    end: np.ndarray
    kind: np.ndarray
    """Of shape (rows,), uint8: places in ``RowKind``."""
    num_reads: np.ndarray
    """Of shape (rows,), int32, as the next one."""
    num_held: np.ndarray
    neighbor: np.ndarray
    """Of shape (reads,), int32, as the next three: the reads of all rows, one row after another."""
    version: np.ndarray
    staleness: np.ndarray
    age: np.ndarray
    held: np.ndarray
    """Of shape (held,), int32."""

    @property
    def sizes(self) -> Sizes:
        """How many rows, reads and held shares there are."""
        return Sizes(len(self.agent), len(self.neighbor), len(self.held))

    @property
    def reader(self) -> np.ndarray:
        """The place of the row of each read, of shape (reads,)."""
        return np.repeat(np.arange(len(self.agent)), self.num_reads)

    @property
    def comes_back(self) -> np.ndarray:
        """Which rows are of the kind ``rejoined``, of shape (rows,), bool."""
        return np.asarray(self.kind == _CODES["rejoined"])

    def rows(self) -> Iterator[Row]:
        """Yield the rows."""
        reads = map(Read, *(column.tolist() for column in self[8:12]))
        held = iter(self.held.tolist())
        columns = zip(*(column.tolist() for column in self[:8]), strict=True)
        for agent, step, start, ready, end, kind, num_reads, num_held in columns:
            own = tuple([next(reads) for _ in range(num_reads)])
            kept = tuple([next(held) for _ in range(num_held)]) if num_held else ()
            yield Row(agent, step, start, ready, end, own, _KINDS[kind], kept)

    def select(self, rows: np.ndarray) -> "RowBlock":
        """Return the rows at these places, in their order."""
        reads, held = (_members(lengths, rows) for lengths in (self.num_reads, self.num_held))
        own = [column[rows] for column in self[:8]]
        return RowBlock._make([*own, *(column[reads] for column in self[8:12]), self.held[held]])

    def with_reads(self, kept: np.ndarray) -> "RowBlock":
        """Return the rows with some of their reads: ``kept`` is of shape (reads,), bool."""
        num_reads = np.bincount(self.reader[kept], minlength=len(self.agent)).astype(np.int32)
        reads = dict(zip(self._fields[8:12], (column[kept] for column in self[8:12]), strict=True))
        return self._replace(num_reads=num_reads, **reads)

    def encoded(self) -> bytes:
        """Return the columns one after another, compressed."""
        return bytes(pa.compress(b"".join(column.tobytes() for column in self), codec=_CODEC, asbytes=True))

    def columns(self) -> list[pa.Array]:
        """Return the columns of a schedule's file: ``agent`` to ``kind``, and ``held``."""
        reads = pa.array(_offsets(self.num_reads))
        lists = [pa.ListArray.from_arrays(reads, pa.array(column)) for column in self[8:12]]
        kinds = pa.DictionaryArray.from_arrays(pa.array(self.kind), pa.array(_KINDS)).cast(pa.string())
        held = pa.ListArray.from_arrays(pa.array(_offsets(self.num_held)), pa.array(self.held))
        return [*(pa.array(column) for column in self[:5]), *lists, kinds, held]

    def check(self, num_agents: int) -> None:
        """Raise ``ValueError`` where these are no rows of ``num_agents`` agents."""
        agents, numbers = (self.agent, self.neighbor, self.held), (self.step, self.version, self.staleness, self.age)
        is_whole = all((column >= 0).all() for column in (*agents, *numbers))
        if not is_whole or any((column >= num_agents).any() for column in agents):
            raise ValueError(f"rows have numbers that are none of a run of {num_agents} agents")
        if not all(np.isfinite(column).all() for column in self[2:5]):
            raise ValueError("rows have times that are not finite")


def packed(rows: Sequence[Row]) -> RowBlock:
    """Return rows as a block.

    Raises:
        OverflowError: a number is too large for a schedule.

    """
    reads = list(chain.from_iterable(row.reads for row in rows))
    columns = zip(*(row[:5] for row in rows), strict=True) if rows else ((),) * 5
    agent, step, start, ready, end = columns
    of_reads = zip(*reads, strict=True) if reads else ((),) * 4
    kinds = [_CODES[row.kind] for row in rows]
    num_reads, num_held = [len(row.reads) for row in rows], [len(row.held) for row in rows]
    held = list(chain.from_iterable(row.held for row in rows))
    values = [agent, step, start, ready, end, kinds, num_reads, num_held, *of_reads, held]
    return RowBlock._make(np.array(column, dtype=kind) for column, kind in zip(values, _TYPES, strict=True))


def joined(blocks: Iterable[RowBlock]) -> RowBlock:
    """Return the rows of several blocks as one."""
    return RowBlock(*(np.concatenate(columns) for columns in zip(packed(()), *blocks, strict=True)))


def decoded(sizes: Sizes, data: object) -> RowBlock:
    """Return the block that ``RowBlock.encoded`` made these bytes of.

    Raises:
        ValueError: they are not those of a block of these sizes.

    """
    if not all(type(size) is int and 0 <= size <= _MOST_NUMBERS for size in sizes):
        raise ValueError(f"a block of rows has the sizes {sizes!r:.80}")
    rows, reads, held = sizes
    lengths = [rows] * 8 + [reads] * 4 + [held]
    places = [0, *np.cumsum([size * kind.itemsize for size, kind in zip(lengths, _TYPES, strict=True)]).tolist()]
    try:
        whole = pa.decompress(data, decompressed_size=places[-1], codec=_CODEC)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"a block of rows is damaged: {error}") from None
    parts = [memoryview(whole)[begin:end] for begin, end in pairwise(places)]
    block = RowBlock(*(np.frombuffer(part, dtype=kind) for part, kind in zip(parts, _TYPES, strict=True)))
    for own, total in ((block.num_reads, reads), (block.num_held, held)):
        if (own < 0).any() or own.sum(dtype=np.int64) != total:
            raise ValueError("a block of rows has other numbers of reads than it says")
    if (block.kind >= len(_KINDS)).any():
        raise ValueError("a block of rows has rows of an unknown kind")
    return block


def _offsets(lengths: np.ndarray) -> np.ndarray:
    """Return where the list of each row begins, and where the last one ends."""
    offsets = np.zeros(len(lengths) + 1, dtype=np.int32)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def _members(lengths: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the places of what belongs to these rows, in lists of such lengths that follow each other."""
    own = lengths[rows].astype(np.int64)
    begins = np.cumsum(lengths, dtype=np.int64)[rows] - own
    before = np.cumsum(own) - own
    places: np.ndarray = np.arange(own.sum()) + np.repeat(begins - before, own)
    return places
