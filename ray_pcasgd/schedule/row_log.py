"""The rows of a run as they come: packed in blocks, which lie in a temporary file, so that memory does not grow."""

import errno
import mmap
import os
import tempfile
import weakref
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from ray_pcasgd.base.ranges import Ranges
from ray_pcasgd.records import Row
from ray_pcasgd.schedule.row_block import RowBlock, Sizes, decoded, joined, packed

BLOCK_ROWS = 4096
"""Rows that are packed at once."""
BLOCK_READS = 2**15
"""Or rows of that many reads."""
_SORTED_ROWS = 2**17
"""Rows that are unpacked at a time to be sorted."""
_MOST_PASSES = 16
_RECENT_BLOCKS = 8


class _Kept(NamedTuple):
    """A block that is packed."""

    sizes: Sizes
    place: int
    """Where its bytes begin in the file."""
    length: int
    data: bytes | None
    """Its bytes where the file could not be written, else ``None``."""


class RowLog:
    """Append-only log of rows, in the order in which they came.

    In memory are the last rows, which of all agents' steps there are, and a few bytes for each block of rows. The file
    has no name, so that it is gone with the process. What it cannot be given stays in memory.
    """

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        self._tail: list[Row] = []
        self._tail_reads = 0
        self._blocks: list[_Kept] = []
        self._blocks_of: defaultdict[int, array[int]] = defaultdict(lambda: array("q"))
        """The numbers of the blocks that have rows of an agent."""
        self._recent: dict[int, RowBlock] = {}
        """Blocks that were unpacked last, by their numbers."""
        self._num_packed = 0
        self._steps: defaultdict[int, Ranges] = defaultdict(Ranges)
        self._unsorted: set[int] = set()
        """Agents whose rows did not come in the order of their steps."""
        self._file: int | None = None
        self._size = 0
        """Of the file, in bytes."""
        self.has_held = False
        """Whether some row has held shares."""
        for row in rows:
            self.append(row)

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, ([(sizes, data.tobytes()) for sizes, data in self.encoded()],)

    def __len__(self) -> int:
        return self._num_packed + len(self._tail)

    def __iter__(self) -> Iterator[Row]:
        # Both at once: as rows are added meanwhile, the last ones become a block.
        blocks, tail = list(self._blocks), list(self._tail)
        for kept in blocks:
            yield from self._read(kept).rows()
        yield from tail

    @property
    def steps(self) -> dict[int, Ranges]:
        """Which steps of each agent there are rows of."""
        return dict(self._steps)

    def has(self, agent: int, step: int) -> bool:
        """Return whether there is a row of an agent's step."""
        return agent in self._steps and step in self._steps[agent]

    def append(self, row: Row) -> None:
        """Add a row."""
        self._note(row.agent, row.step)
        self._tail.append(row)
        self._tail_reads += len(row.reads)
        self.has_held |= bool(row.held)
        if len(self._tail) >= BLOCK_ROWS or self._tail_reads >= BLOCK_READS:
            block = packed(self._tail)
            self._tail, self._tail_reads = [], 0
            self._keep(block)

    def extend(self, block: RowBlock) -> None:
        """Add the rows of a block, as a block of their own; to a log whose rows have all come so."""
        assert not self._tail
        if not block.sizes.rows:
            return
        for agent, step in zip(block.agent.tolist(), block.step.tolist(), strict=True):
            self._note(agent, step)
        self.has_held |= block.sizes.held > 0
        self._keep(block)

    def blocks(self) -> Iterator[RowBlock]:
        """Yield all rows, as blocks."""
        blocks, tail = list(self._blocks), list(self._tail)
        for kept in blocks:
            yield self._read(kept)
        if tail:
            yield packed(tail)

    def encoded(self) -> list[tuple[Sizes, np.ndarray]]:
        """Return all rows as ``restored`` takes them: blocks' sizes and bytes, which are read where they are used."""
        mapped = self._mapped()
        found = [
            (kept.sizes, mapped[kept.place : kept.place + kept.length] if kept.data is None else _writable(kept.data))
            for kept in self._blocks
        ]
        if self._tail:
            block = packed(self._tail)
            found.append((block.sizes, _writable(block.encoded())))
        return found

    def of_agent(self, agent: int) -> Iterator[Row]:
        """Yield an agent's rows, sorted by step; several agents' may be asked for in turn."""
        if agent in self._unsorted:
            yield from sorted(self._of_agent(agent), key=lambda row: row.step)
        else:
            yield from self._of_agent(agent)

    def lacks(self, agents: np.ndarray, versions: np.ndarray) -> np.ndarray:
        """Return which of the versions of these agents no row has come to, as an array of bools."""
        lacking = versions > 0
        for agent in np.unique(agents).tolist():
            own = agents == agent
            lacking[own] &= ~self._steps[agent].contain(versions[own] - 1) if agent in self._steps else True
        return lacking

    def by_agent(self) -> Iterator[Row]:
        """Yield all rows, sorted by agent and step; a part of them is unpacked at a time."""
        most = max(_SORTED_ROWS, -(-len(self) // _MOST_PASSES))
        for first, last in self._parts(most):
            inside = []
            for block in self.blocks():
                key = _keys(block)
                inside.append(block.select(np.flatnonzero((key >= first) & (key < last))))
            part = joined(inside)
            places = np.argsort(_keys(part), kind="stable")
            for begin in range(0, len(places), BLOCK_ROWS):
                yield from part.select(places[begin : begin + BLOCK_ROWS]).rows()

    def _parts(self, most: int) -> Iterator[tuple[int, int]]:
        """Yield ranges of keys, rising, which hold at most so many rows each, and together all."""
        begin, number = 0, 0
        for agent in sorted(self._steps):
            for first, end in self._steps[agent]:
                while number + end - first > most:
                    first += most - number
                    key = _key(agent, first)
                    yield begin, key
                    begin, number = key, 0
                number += end - first
        yield begin, 2**63 - 1

    def _note(self, agent: int, step: int) -> None:
        steps = self._steps[agent]
        if step < steps.end:
            self._unsorted.add(agent)
        steps.add(step)

    def _of_agent(self, agent: int) -> Iterator[Row]:
        for number in self._blocks_of.get(agent, ()):
            if number not in self._recent:
                self._recent[number] = self._read(self._blocks[number])
                for oldest in list(self._recent)[:-_RECENT_BLOCKS]:
                    del self._recent[oldest]
            block = self._recent[number]
            yield from block.select(np.flatnonzero(block.agent == agent)).rows()
        yield from [row for row in self._tail if row.agent == agent]

    def _keep(self, block: RowBlock) -> None:
        data = block.encoded()
        for agent in np.unique(block.agent).tolist():
            self._blocks_of[agent].append(len(self._blocks))
        self._num_packed += block.sizes.rows
        try:
            self._write(data)
        except OSError:
            self._blocks.append(_Kept(block.sizes, 0, len(data), data))
        else:
            self._blocks.append(_Kept(block.sizes, self._size, len(data), None))
            self._size += len(data)

    def _write(self, data: bytes) -> None:
        if self._file is None:
            with tempfile.TemporaryFile(prefix="ray_pcasgd_") as file:
                self._file = os.dup(file.fileno())
            weakref.finalize(self, os.close, self._file)
        if os.pwrite(self._file, data, self._size) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _mapped(self) -> np.ndarray:
        """Return what is in the file, as memory that it is read into where it is used."""
        if self._file is None or not self._size:
            return np.zeros(0, dtype=np.uint8)
        return np.frombuffer(mmap.mmap(self._file, self._size, access=mmap.ACCESS_COPY), dtype=np.uint8)

    def _read(self, kept: _Kept) -> RowBlock:
        if kept.data is not None:
            return decoded(kept.sizes, kept.data)
        assert self._file is not None
        return decoded(kept.sizes, os.pread(self._file, kept.length, kept.place))


def restored(encoded: Iterable[tuple[Sizes, np.ndarray]], num_agents: int) -> RowLog:
    """Return the log that ``RowLog.encoded`` was of.

    Raises:
        ValueError: it is none of ``num_agents`` agents.

    """
    log = RowLog()
    for sizes, data in encoded:
        block = decoded(sizes, data)
        block.check(num_agents)
        log.extend(block)
    return log


def _unpickled(encoded: Iterable[tuple[Sizes, bytes]]) -> RowLog:
    log = RowLog()
    for sizes, data in encoded:
        log.extend(decoded(sizes, data))
    return log


def _writable(data: bytes) -> np.ndarray:
    return np.frombuffer(bytearray(data), dtype=np.uint8)


def _key(agent: int, step: int) -> int:
    return agent * 2**32 + step


def _keys(block: RowBlock) -> np.ndarray:
    """Return a number for each row, by which rows are sorted by agent and step."""
    keys: np.ndarray = block.agent.astype(np.int64) * 2**32 + block.step
    return keys
