"""Rows of a worker that was killed before it reported them, as they follow from its servers' rows."""

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from itertools import chain

from ray_pcasgd.records import Read, Row, RowKind

_Taken = dict[int, dict[int, tuple[Read, Row]]]
"""Of one worker, by version and server: the read by which a server has taken it, and the server's row."""


def with_unreported(
    rows: Sequence[Row], servers: Collection[int], cancels: bool, workers_step: bool = False
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
        cancels: Whether an update cancels work that was begun before it: what was taken was then begun at the
            server's version of the update, and is recorded so.
        workers_step: Whether workers have weights of their own.

    """
    taken: defaultdict[int, _Taken] = defaultdict(lambda: defaultdict(dict))
    known: defaultdict[int, dict[int, Row]] = defaultdict(dict)
    for row in rows:
        known[row.agent][row.step] = row
        for read in row.reads if row.agent in servers else ():
            taken[read.neighbor][read.version][row.agent] = (read, row)
    back: RowKind = "rejoined" if workers_step else "cancelled"
    added = (_missing(worker, known[worker], taken[worker], servers, cancels, back) for worker in sorted(taken))
    return [*rows, *chain.from_iterable(added)]


def _missing(
    worker: int, known: dict[int, Row], taken: _Taken, servers: Collection[int], cancels: bool, back: RowKind
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
                reads = reads | {server: Read(server, version, read.staleness if cancels else 0, 0)}
            if next_step < step:
                yield Row(worker, step - 1, end, end, end, _sorted(reads if back == "rejoined" else before), back)
            yield Row(worker, step, end, ended, ended, _sorted(reads))
            end = ended
        next_step = step + 1


def _sorted(reads: dict[int, Read]) -> tuple[Read, ...]:
    return tuple(reads[server] for server in sorted(reads))
