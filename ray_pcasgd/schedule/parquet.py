"""Schedules as data: rows in a Parquet file and back, checked; their hash and their first difference."""

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as compute
import pyarrow.parquet as pq

from ray_pcasgd.base.foreign_tables import read_table
from ray_pcasgd.base.rounds import Rounds
from ray_pcasgd.base.text import one_line
from ray_pcasgd.records import Read, Row, RowKind
from ray_pcasgd.schedule.info import ScheduleInfo
from ray_pcasgd.schedule.row_block import RowBlock, joined
from ray_pcasgd.schedule.row_log import RowLog

FORMAT = "ray_pcasgd schedule 2"
FORMAT_WITH_HELD = "ray_pcasgd schedule 3"
"""The same with a column more, where agents have kept shares of push-sum that others could not take."""
_MOST_READS = 30_000_000
_BATCH_ROWS = 2**12
"""Rows that are unpacked at once as they are read."""
_GROUP_ROWS = 2**16
_GROUP_READS = 2**19
"""Rows or reads of a row group as it is written."""

_SCHEMA = pa.schema(
    [
        ("agent", pa.int32()),
        ("step", pa.int32()),
        ("start", pa.float64()),
        ("ready", pa.float64()),
        ("end", pa.float64()),
        ("neighbors", pa.list_(pa.int32())),
        ("versions", pa.list_(pa.int32())),
        ("staleness", pa.list_(pa.int32())),
        ("ages", pa.list_(pa.int32())),
        ("kind", pa.string()),
    ]
)
_SCHEMA_WITH_HELD = _SCHEMA.append(pa.field("held", pa.list_(pa.int32())))
_SCHEMAS = {FORMAT: _SCHEMA, FORMAT_WITH_HELD: _SCHEMA_WITH_HELD}

_READ_SCHEMA = _SCHEMA.set(9, pa.field("kind", pa.dictionary(pa.int32(), pa.string())))
"""As it is read: a text may stand in a million rows, so it is looked at before it does."""


def write_rows(path: Path, rows: Iterable[Row], metadata: Mapping[str, str]) -> None:
    """Write a schedule, in the order of the rows, with the given metadata (``format`` is taken)."""
    log = rows if isinstance(rows, RowLog) else RowLog(rows)
    kind = FORMAT_WITH_HELD if log.has_held else FORMAT
    schema = _SCHEMAS[kind].with_metadata({**metadata, "format": kind})
    # A path with a colon would be taken for a location elsewhere.
    with path.open("wb") as file, pq.ParquetWriter(file, schema, write_page_checksum=True) as writer:
        for block in _row_groups(log.blocks()):
            columns = block.columns()[: len(schema)]
            writer.write_table(pa.table(dict(zip(schema.names, columns, strict=True)), schema=schema))


def _row_groups(blocks: Iterable[RowBlock]) -> Iterator[RowBlock]:
    """Yield rows in larger blocks, of about the size of a row group."""
    gathered: list[RowBlock] = []
    for block in blocks:
        gathered.append(block)
        rows, reads, _ = (sum(sizes) for sizes in zip(*(one.sizes for one in gathered), strict=True))
        if rows >= _GROUP_ROWS or reads >= _GROUP_READS:
            yield joined(gathered)
            gathered = []
    if gathered:
        yield joined(gathered)


def read_rows(path: Path, location: str | None = None) -> tuple[list[Row], dict[str, str]]:
    """Return a schedule's rows and its metadata; see ``read_log``."""
    rows, metadata = read_log(path, location)
    return list(rows), metadata


def read_log(path: Path, location: str | None = None) -> tuple[RowLog, dict[str, str]]:
    """Return a schedule's rows and its metadata; ``location`` is what errors call it where the file is a copy.

    Raises:
        ValueError: there is no such file, or it holds no schedule that can be executed.

    """
    named = f"schedule = {(location or str(path))!r}"
    if not path.is_file():
        raise ValueError(f"{named}: no such file; allowed is the schedule.parquet of a run")
    try:
        table = read_table(path, texts=["kind"])
    except ValueError as error:
        raise ValueError(f"{named}: cannot be read ({error}); allowed is a schedule file") from None
    found = (table.schema.metadata or {}).items()
    metadata = {key.decode(errors="replace"): value.decode(errors="replace") for key, value in found}
    has_held = metadata.get("format") == FORMAT_WITH_HELD
    schema = _READ_SCHEMA.append(_SCHEMA_WITH_HELD.field("held")) if has_held else _READ_SCHEMA
    if metadata.get("format") not in _SCHEMAS or not table.schema.equals(schema):
        raise ValueError(f"{named}: is no schedule; allowed is a schedule.parquet of a run")
    try:
        ScheduleInfo.from_metadata(metadata)
    except ValueError as error:
        raise ValueError(f"{named}: {error}") from None
    if any(column.null_count for column in table.columns):
        raise ValueError(f"{named}: has empty fields")
    _check_sizes(named, table)
    table = table.set_column(9, "kind", table["kind"].cast(pa.string()))
    rows = RowLog(_checked(path, _rows_of(named, table, has_held)))
    _check_reads(path, rows)
    return rows, {key: value for key, value in metadata.items() if key not in ("format", "ARROW:schema")}


def _rows_of(named: str, table: pa.Table, has_held: bool) -> Iterator[Row]:
    for batch in table.to_batches(_BATCH_ROWS):
        columns = [column.to_pylist() for column in batch.columns]
        helds = columns.pop() if has_held else [()] * batch.num_rows
        for (agent, step, start, ready, end, *reads, kind), held in zip(zip(*columns, strict=True), helds, strict=True):
            if len({len(column) for column in reads}) != 1 or any(value is None for own in reads for value in own):
                raise ValueError(f"{named}: the reads of agent {agent} at step {step} are incomplete")
            read = tuple(map(Read._make, zip(*reads, strict=True)))
            yield Row(agent, step, start, ready, end, read, kind, tuple(held))


def _check_sizes(named: str, table: pa.Table) -> None:
    """Raise ``ValueError`` where a table would take more memory as rows than any machine has, or has other kinds."""
    for name in {"neighbors", "versions", "staleness", "ages", "held"} & {*table.column_names}:
        reads = compute.sum(compute.list_value_length(table[name])).as_py() or 0
        if reads > _MOST_READS:
            raise ValueError(f"{named}: has {reads:,} reads; allowed are {_MOST_READS:,}")
    kinds = {kind for chunk in table["kind"].chunks for kind in chunk.dictionary.to_pylist()}
    for kind in kinds - {*get_args(RowKind)}:
        raise ValueError(
            f"{named}: has rows of the kind {one_line(kind, 40)!r}; allowed are {', '.join(get_args(RowKind))}"
        )


def _checked(path: Path, rows: Iterable[Row]) -> Iterator[Row]:
    """Yield rows that do not contradict themselves."""
    steps: dict[int, int] = {}
    for row in rows:
        at = f"schedule = {str(path)!r}: agent {row.agent} at step {row.step}"
        if row.agent < 0 or not _are_times(row):
            raise ValueError(f"{at} has the times {row.start}, {row.ready}, {row.end}; allowed are rising times")
        next_step = steps.get(row.agent, 0)
        if row.step != next_step and not (row.kind == "rejoined" and row.step > next_step):
            raise ValueError(f"{at} is out of turn; allowed is step {next_step}")
        steps[row.agent] = row.step + 1
        read_from = [read[:2] for read in row.reads]
        if read_from != sorted(set(read_from)) or any(agent == row.agent for agent, _ in read_from):
            neighbors = [agent for agent, _ in read_from]
            raise ValueError(f"{at} reads the agents {neighbors}; allowed are rising numbers other than its own")
        if list(row.held) != sorted({k for k in row.held if k is not None and k >= 0} - {row.agent}):
            raise ValueError(f"{at} has held back the agents {list(row.held)}; allowed are rising numbers but its own")
        for read in row.reads:
            if min(read) < 0 or read.age > row.step:
                raise ValueError(f"{at} has the read {read}; allowed are numbers from 0 on, and an age up to the step")
        yield row


def _are_times(row: Row) -> bool:
    """Return whether a row's times are such; those of an averaging may be of two clocks."""
    ended = row.end if row.kind == "passive" else max(row.ready, row.end)
    return -math.inf < row.start <= row.ready < math.inf and -math.inf < row.end == ended < math.inf


def _check_reads(path: Path, rows: RowLog) -> None:
    """Raise ``ValueError`` where a row reads a version that no row has come to."""
    for block in rows.blocks():
        lacking = rows.lacks(block.neighbor, block.version)
        for place in np.flatnonzero(lacking)[:1]:
            neighbor, agent = int(block.neighbor[place]), int(block.agent[block.reader[place]])
            taken = rows.steps[neighbor].end if neighbor in rows.steps else 0
            raise ValueError(
                f"schedule = {str(path)!r}: agent {agent} reads version {block.version[place]} of agent "
                f"{neighbor}, which takes {taken} steps"
            )


def check_fits(
    rows: RowLog | Sequence[Row], neighbors: Sequence[Sequence[int]], rounds: Rounds, left: Set[int] = frozenset()
) -> None:
    """Raise ``ValueError`` where a schedule does not fit a run with these neighbors and rounds.

    Agents that have left the recorded run (``left``) may take fewer steps.
    """
    counts: Counter[int] = Counter()
    for row in rows:
        counts[row.agent] = max(counts[row.agent], row.step + 1)
    num_agents = max([*counts, *left], default=-1) + 1
    if num_agents != len(neighbors):
        raise ValueError(f"num_agents = {len(neighbors)}: allowed with the schedule is {num_agents}")
    if left >= set(range(num_agents)):
        raise ValueError("schedule: all of its agents have left the run; allowed is one in which some came to its end")
    num_steps = rounds.num_steps
    # In mini-batches; each agent's last round may be one in part.
    room = [(counts[agent] * rounds.length(agent), agent) for agent in range(num_agents) if agent not in left]
    taken, shortest = min(room)
    if taken < num_steps:
        raise ValueError(
            f"num_steps = {num_steps}: allowed with the schedule is up to {taken}, what agent {shortest} takes in it"
            + _in_rounds(rounds, shortest)
        )
    linked = [frozenset(of_agent) for of_agent in neighbors]
    back_at: dict[int, int] = {}
    """The versions at which agents came back, that were lost: what they did before, they do not remember."""
    for row in rows:
        oldest = max((read.age for read in row.reads), default=0)
        if row.kind == "rejoined":
            back_at[row.agent] = row.step + 1
        elif oldest > row.step - back_at.get(row.agent, 0):
            raise ValueError(
                f"schedule: agent {row.agent} at step {row.step} has a read of the age {oldest}; allowed are the steps "
                f"since it came back at {back_at.get(row.agent, 0)}"
            )
        for read in row.reads if row.step < rounds.last(row.agent) else ():
            if read.neighbor not in linked[row.agent]:
                raise ValueError(
                    f"topology: agents {row.agent} and {read.neighbor} are no neighbors; the schedule has the first "
                    f"read the second at step {row.step}"
                )
            if read.version > rounds.last(read.neighbor):
                allowed = f"allowed is {taken}" if rounds.are_single else "allowed are the rounds that it was made with"
                raise ValueError(
                    f"num_steps = {num_steps}: too few for the schedule, whose agent {row.agent} reads version "
                    f"{read.version} of agent {read.neighbor} at step {row.step}{_in_rounds(rounds, read.neighbor)}; "
                    f"{allowed}"
                )


def _in_rounds(rounds: Rounds, agent: int) -> str:
    """Return which rounds a number of steps was counted in, where they are of several."""
    return "" if rounds.are_single else f" in rounds of local_steps = {rounds.length(agent)}"


def newest_reads(rows: Iterable[Row]) -> Iterator[Row]:
    """Yield the rows with one read of each neighbor, the newest version, as rules read that push no shares."""
    for row in rows:
        newest = {read.neighbor: read for read in row.reads}
        yield row._replace(reads=tuple(newest.values()), held=())


def rows_up_to(rows: RowLog, versions: Sequence[int]) -> tuple[RowLog, int]:
    """Return the rows by which agents came to these versions, and how many of their reads were of later ones.

    Those reads are left out.
    """
    last = np.array(versions)
    kept, left_out = RowLog(), 0
    for block in rows.blocks():
        own = block.select(np.flatnonzero(block.step < last[block.agent]))
        is_known = own.version <= last[own.neighbor]
        left_out += int(np.count_nonzero(~is_known))
        kept.extend(own.with_reads(is_known))
    return kept, left_out


def trace_hash(rows: Iterable[Row]) -> str:
    """Return a hash of who read which version, with which staleness and age; times and the rows' order do not count."""
    digest = hashlib.blake2b(digest_size=8)
    for row in rows.by_agent() if isinstance(rows, RowLog) else sorted(rows, key=lambda row: row[:2]):
        marks: tuple[Any, ...] = () if row.kind == "step" else (row.kind,)
        marks += (("held", *row.held),) if row.held else ()
        digest.update(repr((row.agent, row.step, *marks, *(tuple(read) for read in row.reads))).encode())
    return digest.hexdigest()


def first_difference(rows: Iterable[Row], others: Iterable[Row]) -> str | None:
    """Return where two schedules first part, in one line; ``None`` where they are the same."""
    left, right = ({row[:2]: (row.reads, row.kind, row.held) for row in part} for part in (rows, others))
    for key in sorted(left.keys() | right.keys(), key=lambda key: (key[1], key[0])):
        if left.get(key) != right.get(key):
            return f"agent {key[0]} at step {key[1]}: {_told(left.get(key))} against {_told(right.get(key))}"
    return None


def _told(found: tuple[tuple[Read, ...], RowKind, tuple[int, ...]] | None) -> str:
    if found is None:
        return "no row"
    reads, kind, held = found
    told = str(reads) if kind == "step" else f"{kind} {reads}"
    return f"{told}, shares of {list(held)} held" if held else told
