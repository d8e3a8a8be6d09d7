"""Schedules as data: rows in a Parquet file, their hash, their first difference."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ray_pcasgd.records import Read, Row

FORMAT = "ray_pcasgd schedule 1"

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
    ]
)


def write_rows(path: Path, rows: Iterable[Row], metadata: Mapping[str, str]) -> None:
    """Write a schedule, in the order of the rows, with the given metadata."""
    rows = list(rows)
    columns = [[getattr(row, name) for row in rows] for name in ("agent", "step", "start", "ready", "end")]
    columns += [[[read[place] for read in row.reads] for row in rows] for place in range(4)]
    schema = _SCHEMA.with_metadata({"format": FORMAT, **metadata})
    pq.write_table(pa.table(dict(zip(schema.names, columns, strict=True)), schema=schema), path)


def read_rows(path: Path) -> tuple[list[Row], dict[str, str]]:
    """Return a schedule's rows and its metadata.

    Raises:
        ValueError: there is no such file, or it holds no schedule that can be executed.

    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise ValueError(f"schedule = {str(path)!r}: cannot be read ({error}); allowed is a schedule file") from None
    metadata = {key.decode(): value.decode(errors="replace") for key, value in (table.schema.metadata or {}).items()}
    if metadata.get("format") != FORMAT or not table.schema.equals(_SCHEMA):
        raise ValueError(f"schedule = {str(path)!r}: is no schedule; allowed is a schedule.parquet of a run")
    if any(column.null_count for column in table.columns):
        raise ValueError(f"schedule = {str(path)!r}: has empty fields")
    rows = []
    for agent, step, start, ready, end, *reads in zip(*(column.to_pylist() for column in table.columns), strict=True):
        if len({len(column) for column in reads}) != 1 or any(value is None for column in reads for value in column):
            raise ValueError(f"schedule = {str(path)!r}: the reads of agent {agent} at step {step} are incomplete")
        rows.append(Row(agent, step, start, ready, end, tuple(map(Read._make, zip(*reads, strict=True)))))
    _check_rows(path, rows)
    return rows, {key: value for key, value in metadata.items() if key != "ARROW:schema"}


def _check_rows(path: Path, rows: Sequence[Row]) -> None:
    steps: dict[int, int] = {}
    for row in rows:
        at = f"schedule = {str(path)!r}: agent {row.agent} at step {row.step}"
        if row.agent < 0 or not row.start <= row.ready <= row.end:
            raise ValueError(f"{at} has the times {row.start}, {row.ready}, {row.end}; allowed are rising times")
        if row.step != steps.get(row.agent, 0):
            raise ValueError(f"{at} is out of turn; allowed is step {steps.get(row.agent, 0)}")
        steps[row.agent] = row.step + 1
        neighbors = [read.neighbor for read in row.reads]
        if neighbors != sorted(set(neighbors)):
            raise ValueError(f"{at} reads the agents {neighbors}; allowed are rising numbers")
        for read in row.reads:
            if min(read) < 0 or read.age > row.step:
                raise ValueError(f"{at} has the read {read}; allowed are numbers from 0 on, and an age up to the step")
    for row in rows:
        for read in row.reads:
            if read.version > steps.get(read.neighbor, 0):
                raise ValueError(
                    f"schedule = {str(path)!r}: agent {row.agent} reads version {read.version} of agent "
                    f"{read.neighbor}, which takes {steps.get(read.neighbor, 0)} steps"
                )


def check_fits(rows: Sequence[Row], neighbors: Sequence[Sequence[int]], num_steps: int) -> None:
    """Raise ``ValueError`` where a schedule does not fit a run with these neighbors and steps."""
    agents = {row.agent for row in rows}
    if agents != set(range(len(neighbors))):
        raise ValueError(f"num_agents = {len(neighbors)}: allowed beside the schedule is {max(agents, default=-1) + 1}")
    taken = min(sum(row.agent == agent for row in rows) for agent in agents)
    if taken < num_steps:
        raise ValueError(f"num_steps = {num_steps}: allowed beside the schedule are 1 to {taken}")
    for row in rows:
        for read in row.reads:
            if read.neighbor not in neighbors[row.agent]:
                raise ValueError(
                    f"topology: agents {row.agent} and {read.neighbor} are no neighbors; the schedule has the first "
                    f"read the second at step {row.step}"
                )


def trace_hash(rows: Iterable[Row]) -> str:
    """Return a hash of who read which version, with which staleness and age; times and the rows' order do not count."""
    digest = hashlib.blake2b(digest_size=8)
    for row in sorted(rows, key=lambda row: row[:2]):
        digest.update(repr((row.agent, row.step, *(tuple(read) for read in row.reads))).encode())
    return digest.hexdigest()


def first_difference(rows: Iterable[Row], others: Iterable[Row]) -> str | None:
    """Return where two schedules first part, in one line; nothing where they are the same."""
    left, right = ({row[:2]: row.reads for row in part} for part in (rows, others))
    for key in sorted(left.keys() | right.keys(), key=lambda key: (key[1], key[0])):
        if left.get(key) != right.get(key):
            return f"agent {key[0]} at step {key[1]}: {left.get(key, 'no row')} against {right.get(key, 'no row')}"
    return None


def in_causal_order(rows: Sequence[Row]) -> list[Row]:
    """Return the rows in an order in which each can be executed, by time as far as possible.

    A row needs its agent's row before it, the row that published each version it reads, and, where that version is
    stale, its neighbor's next row, since only that computes the direction at the version. The clocks of a live
    run's machines differ, and staleness is an estimate there: where it says that a neighbor had moved on and the
    rows say that it had not, it becomes 0.
    """
    waiting = sorted(rows, key=lambda row: (row.end, row.step, row.agent))
    done: dict[int, int] = {}
    ordered: list[Row] = []
    while waiting:
        left: list[Row] = []
        for row in waiting:
            if _may_run(row, done, directions=True):
                done[row.agent] = row.step + 1
                ordered.append(row)
            else:
                left.append(row)
        if len(left) == len(waiting):
            place = next((n for n, row in enumerate(left) if _may_run(row, done, directions=False)), None)
            if place is None:
                break  # what is left reads versions that no row publishes: the engine says which
            row = left.pop(place)
            reads = tuple(r if done.get(r.neighbor, 0) > r.version else r._replace(staleness=0) for r in row.reads)
            done[row.agent] = row.step + 1
            ordered.append(row._replace(reads=reads))
        waiting = left
    return ordered + waiting


def _may_run(row: Row, done: Mapping[int, int], directions: bool) -> bool:
    return done.get(row.agent, 0) == row.step and all(
        done.get(read.neighbor, 0) >= read.version + (1 if directions and read.staleness else 0) for read in row.reads
    )
