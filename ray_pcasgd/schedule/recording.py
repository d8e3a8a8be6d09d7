"""What a live run reported, as a schedule that replays: agents die, clocks differ, live staleness is an estimate.

Rows that killed workers took and did not report follow from what their servers have read of them; what nobody can
execute is left out; the rest is sorted.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from itertools import chain

import numpy as np

from ray_pcasgd.records import Event, Read, Row, RowKind
from ray_pcasgd.schedule.ordering import in_causal_order
from ray_pcasgd.schedule.row_block import RowBlock
from ray_pcasgd.schedule.row_log import RowLog


def replayable(
    rows: RowLog,
    *,
    is_live: bool,
    servers: Collection[int] = (),
    expires: bool = False,
    workers_step: bool = False,
    with_directions: bool = True,
) -> tuple[RowLog, list[Event]]:
    """Return a run's rows as they can be executed, and remarks on what was changed.

    Those of a planned run are looked through a block at a time. To be sorted, those of a live run are all unpacked.

    Args:
        rows: All rows that were reported, each agent's in order.
        is_live: Whether agents read what had come; the rows of a planned run are in order as they are.
        servers: The agents that are servers.
        expires: Whether gradients can come too late for an update.
        workers_step: Whether workers have weights of their own.
        with_directions: Whether a read of a stale version needs its neighbor's direction there (``in_causal_order``).

    """
    if not is_live:
        return _without_unreported_reads(rows)
    reported, events = list(rows), list[Event]()
    known = with_unreported(reported, servers, expires, workers_step) if servers else reported
    events += _restored(known[len(reported) :])
    known, after_gaps = _without_rows_after_gaps(known)
    readable, left_out = _without_unreported_reads(RowLog(known))
    return RowLog(in_causal_order(readable, with_directions)), [*events, *after_gaps, *left_out]


def _restored(added: Sequence[Row]) -> list[Event]:
    """Return the remark on rows that were added."""
    if not added:
        return []
    names = _names(row.agent for row in added)
    detail = f"{len(added)} unreported steps of {names} were restored from the gradients that servers took"
    return [Event("rows_completed", added[0].agent, added[0].step, detail)]


_Taken = dict[int, dict[int, tuple[Read, Row]]]
"""Of one worker, by version and server: the read by which a server has taken it, and the server's row."""


def with_unreported(
    rows: Sequence[Row], servers: Collection[int], expires: bool, workers_step: bool = False
) -> list[Row]:
    """Return the rows together with those that their workers took and never reported.

    A server that has taken a gradient knows at which of its versions that was computed, and so what the worker's row
    has read. Versions in between that no server has taken are never read; they become ``cancelled`` rows.
    Where workers have weights of their own, the last of those is the row by which the worker came back: every version
    that a worker delivers is taken, unless it dies, and then it goes on from what its servers answer.
    Where one of several servers has not taken a version, the row names what the worker read of it before.

    Args:
        rows: All rows that are known, workers' and servers', each agent's in order.
        servers: The agents that are servers.
        expires: Whether gradients can come too late for an update: what was taken did not, and is recorded as begun
            at the server's version of that update.
        workers_step: Whether workers have weights of their own.

    """
    taken: defaultdict[int, _Taken] = defaultdict(lambda: defaultdict(dict))
    known: defaultdict[int, dict[int, Row]] = defaultdict(dict)
    for row in rows:
        known[row.agent][row.step] = row
        for read in row.reads if row.agent in servers else ():
            taken[read.neighbor][read.version][row.agent] = (read, row)
    back: RowKind = "rejoined" if workers_step else "cancelled"
    added = (_missing(worker, known[worker], taken[worker], servers, expires, back) for worker in sorted(taken))
    return [*rows, *chain.from_iterable(added)]


def _missing(
    worker: int, known: dict[int, Row], taken: _Taken, servers: Collection[int], expires: bool, back: RowKind
) -> Iterator[Row]:
    """Yield a worker's rows that are not known, in order; ``back`` is the kind of the one before a gap ends."""
    reads = {server: Read(server, 0, 0, 0) for server in servers}
    end, next_step = 0.0, 0
    for step in sorted({*known, *(version - 1 for version in taken)}):
        if step in known:
            end = known[step].end
            reads |= {read.neighbor: read for read in known[step].reads}
        else:
            for between in range(next_step, step - 1):
                yield Row(worker, between, end, end, end, _sorted(reads), "cancelled")
            before = reads
            ended = max(end, *(row.end for _, row in taken[step + 1].values()))
            for server, (read, row) in taken[step + 1].items():
                version = row.step - read.staleness
                reads = reads | {server: Read(server, version, read.staleness if expires else 0, 0)}
            if next_step < step:
                yield Row(worker, step - 1, end, end, end, _sorted(reads if back == "rejoined" else before), back)
            yield Row(worker, step, end, ended, ended, _sorted(reads))
            end = ended
        next_step = step + 1


def _sorted(reads: dict[int, Read]) -> tuple[Read, ...]:
    return tuple(reads[server] for server in sorted(reads))


def _without_rows_after_gaps(rows: Sequence[Row]) -> tuple[list[Row], list[Event]]:
    """Return the rows without those of an agent that follow one which it was killed before reporting.

    So it is where others average with an agent that is in the middle of an evaluation. From where it has come back,
    its rows count again.
    """
    next_steps: dict[int, int] = {}
    dropped = []
    for row in sorted(rows, key=lambda row: row.step):
        if row.step > next_steps.get(row.agent, 0) and row.kind != "rejoined":
            dropped.append(row)
        else:
            next_steps[row.agent] = row.step + 1
    if not dropped:
        return list(rows), []
    gone = {row[:2] for row in dropped}
    names = _names(row.agent for row in dropped)
    detail = f"{len(dropped)} steps of {names}, after a step that was not reported, are left out of the schedule"
    return [row for row in rows if row[:2] not in gone], [
        Event("reads_unrecorded", dropped[0].agent, dropped[0].step, detail)
    ]


def _without_unreported_reads(rows: RowLog) -> tuple[RowLog, list[Event]]:
    """Return the rows without reads of versions whose steps were never reported."""
    unknown = [read for block in rows.blocks() for read in _unreported(block, rows)]
    if not unknown:
        return rows, []
    kept = RowLog()
    for block in rows.blocks():
        kept.extend(block.with_reads(~_is_unreported(block, rows)))
    names = _names(neighbor for neighbor, _ in unknown)
    detail = f"{len(unknown)} reads of unreported versions of {names} are left out of the schedule"
    return kept, [Event("reads_unrecorded", *unknown[0], detail)]


def _unreported(block: RowBlock, rows: RowLog) -> Iterator[tuple[int, int]]:
    """Yield the agents and versions that a block's rows have read, and no row has come to."""
    unknown = _is_unreported(block, rows)
    return zip(block.neighbor[unknown].tolist(), block.version[unknown].tolist(), strict=True)


def _is_unreported(block: RowBlock, rows: RowLog) -> np.ndarray:
    """Return which reads of a block are of versions that no row has come to, of shape (reads,), bool."""
    unknown = block.version > 0
    for neighbor, steps in rows.steps.items():
        own = block.neighbor == neighbor
        unknown[own] &= ~steps.contain(block.version[own] - 1)
    return unknown


def _names(agents: Iterator[int]) -> str:
    return ", ".join(f"agent {agent}" for agent in sorted(set(agents)))
