"""What a live run reported, as a schedule that replays: agents die, clocks differ, live staleness is an estimate.

Rows that killed workers took and did not report follow from what their servers have read of them; what nobody can
execute is left out; the rest is sorted.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import chain

import numpy as np

from ray_pcasgd.records import Event, Read, Row, RowKind
from ray_pcasgd.schedule.ordering import causally_ordered
from ray_pcasgd.schedule.row_log import RowLog


def replayable(
    rows: RowLog,
    *,
    is_live: bool,
    servers: Collection[int] = (),
    expires: bool = False,
    workers_step: bool = False,
    with_directions: bool = True,
    flows: bool = False,
) -> tuple[RowLog, list[Event]]:
    """Return a run's rows as they can be executed, and remarks on what was changed.

    They are looked through a block at a time.

    Args:
        rows: All rows that were reported, each agent's in order.
        is_live: Whether agents read what had come; the rows of a planned run are in order as they are.
        servers: The agents that are servers.
        expires: Whether gradients can come too late for an update.
        workers_step: Whether workers have weights of their own.
        with_directions: Whether a read of a stale version needs its neighbor's direction there (``in_causal_order``).
        flows: Whether what an agent answers depends on when it is asked: pairs with A2CiD2.

    """
    events: list[Event] = []
    if is_live and servers:
        added = list(_unreported(rows, servers, expires, workers_step))
        rows = _with(rows, added)
        events += _restored(added)
    if is_live:
        rows, after_gaps = _without_rows_after_gaps(rows)
        events += after_gaps
    rows, left_out = _without_unreported_reads(rows)
    if is_live and flows:
        left_out += _unreported_answers(rows)
    if is_live:
        rows = RowLog(causally_ordered(rows, with_directions))
    return rows, [*events, *left_out]


def _with(rows: RowLog, added: Sequence[Row]) -> RowLog:
    """Return a log of more rows."""
    if not added:
        return rows
    known = RowLog()
    for block in rows.blocks():
        known.extend(block)
    for row in added:
        known.append(row)
    return known


def _unreported(rows: RowLog, servers: Collection[int], expires: bool, workers_step: bool) -> Iterator[Row]:
    """Yield the rows that ``with_unreported`` adds; those of workers of which none is missing are not looked at."""
    lost: set[int] = set()
    for block in rows.blocks():
        taken = np.isin(block.agent, [*servers])[block.reader] & rows.lacks(block.neighbor, block.version)
        lost |= {*block.neighbor[taken].tolist()}
    if not lost:
        return
    known = [
        row._replace(reads=tuple(read for read in row.reads if read.neighbor in lost)) if row.agent in servers else row
        for row in rows
        if row.agent in servers or row.agent in lost
    ]
    yield from with_unreported(known, servers, expires, workers_step)[len(known) :]


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


def _without_rows_after_gaps(rows: RowLog) -> tuple[RowLog, list[Event]]:
    """Return the rows without those of an agent that follow one which it was killed before reporting.

    So it is where others average with an agent that is in the middle of an evaluation. From where it has come back,
    its rows count again.
    """
    gone = _after_gaps(rows)
    if not gone:
        return rows, []
    kept, dropped = RowLog(), list[tuple[int, int]]()
    for block in rows.blocks():
        is_gone = np.zeros(len(block.agent), dtype=bool)
        for agent, begin, end in gone:
            is_gone |= (block.agent == agent) & (block.step >= begin) & (block.step < end)
        kept.extend(block.select(np.flatnonzero(~is_gone)))
        dropped += zip(block.agent[is_gone].tolist(), block.step[is_gone].tolist(), strict=True)
    names = _names(agent for agent, _ in dropped)
    detail = f"{len(dropped)} steps of {names}, after a step that was not reported, are left out of the schedule"
    return kept, [Event("reads_unrecorded", *min(dropped, key=lambda key: key[1]), detail)]


def _after_gaps(rows: RowLog) -> list[tuple[int, int, int]]:
    """Return which steps follow a gap: agents, and the first step and one above the last of each stretch."""
    gaps = {agent for agent, steps in rows.steps.items() if [begin for begin, _ in steps] != [0]}
    if not gaps:
        return []
    back = {agent: sorted(own) for agent, own in _returns(rows, gaps).items()}
    gone = []
    for agent in sorted(gaps):
        next_step = 0
        for begin, end in rows.steps[agent]:
            first = next((step for step in back[agent] if begin <= step < end), end)
            if begin > next_step and first > begin:
                gone.append((agent, begin, first))
            if begin <= next_step or first < end:
                next_step = end
    return gone


def _returns(rows: RowLog, agents: Collection[int]) -> dict[int, list[int]]:
    """Return the steps by which each of these agents has come back."""
    found: dict[int, list[int]] = {agent: [] for agent in agents}
    for block in rows.blocks():
        back = block.comes_back & np.isin(block.agent, [*agents])
        for agent, step in zip(block.agent[back].tolist(), block.step[back].tolist(), strict=True):
            found[agent].append(step)
    return found


def _without_unreported_reads(rows: RowLog) -> tuple[RowLog, list[Event]]:
    """Return the rows without reads of versions whose steps were never reported."""
    unknown: list[tuple[int, int]] = []
    for block in rows.blocks():
        lacking = rows.lacks(block.neighbor, block.version)
        unknown += zip(block.neighbor[lacking].tolist(), block.version[lacking].tolist(), strict=True)
    if not unknown:
        return rows, []
    kept = RowLog()
    for block in rows.blocks():
        kept.extend(block.with_reads(~rows.lacks(block.neighbor, block.version)))
    names = _names(neighbor for neighbor, _ in unknown)
    detail = f"{len(unknown)} reads of unreported versions of {names} are left out of the schedule"
    return kept, [Event("reads_unrecorded", *unknown[0], detail)]


def _unreported_answers(rows: RowLog) -> list[Event]:
    """Return the remark on answers whose agent was lost before it reported when it gave them."""
    given = {row[:2] for row in rows if row.kind == "passive"}
    missing = [read for row in rows if row.kind == "step" for read in row.reads if read[:2] not in given]
    if not missing:
        return []
    detail = (
        f"{len(missing)} answers of {_names(read.neighbor for read in missing)} replay as they were before the agent "
        "was asked, since it was lost before it reported when that was: a replay's weights differ from there on"
    )
    return [Event("reads_unrecorded", *missing[0][:2], detail)]


def _names(agents: Iterable[int]) -> str:
    return ", ".join(f"agent {agent}" for agent in sorted(set(agents)))
