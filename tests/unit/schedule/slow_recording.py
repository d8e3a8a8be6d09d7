"""Slow references: rows sorted by a graph of all that they need, and gaps found row by row; all of them in memory."""

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain

from ray_pcasgd.records import Row

_Key = tuple[int, int]


def slow_replayable(rows: Sequence[Row], with_directions: bool) -> list[Row]:
    """Return a live run's rows as they can be executed, of peers."""
    next_steps: dict[int, int] = {}
    dropped = set()
    for row in sorted(rows, key=lambda row: row.step):
        if row.step > next_steps.get(row.agent, 0) and row.kind != "rejoined":
            dropped.add(row[:2])
        else:
            next_steps[row.agent] = row.step + 1
    kept = [row for row in rows if row[:2] not in dropped]
    known = {(read.neighbor, 0) for row in kept for read in row.reads} | {(row.agent, row.step + 1) for row in kept}
    kept = [row._replace(reads=tuple(read for read in row.reads if read[:2] in known)) for row in kept]
    return slow_order(kept, with_directions)


def slow_order(rows: Iterable[Row], with_directions: bool = True) -> list[Row]:
    """Return the rows in an order in which each can be executed; see ``in_causal_order``."""
    by_key = {(row.agent, row.step): row for row in rows}
    lost = _never_executable(by_key)
    executable = {key: row for key, row in by_key.items() if key not in lost}
    return _Ordering(executable, with_directions).ordered() + _by_time(lost.values())


def _versions_needed(row: Row, before: Mapping[_Key, _Key]) -> Iterator[_Key]:
    if (row.agent, row.step) in before:
        yield before[row.agent, row.step]
    elif row.step and row.kind != "rejoined":
        yield row.agent, row.step - 1
    yield from ((read.neighbor, read.version - 1) for read in row.reads if read.version)


def _rows_before(rows: Iterable[Row]) -> dict[_Key, _Key]:
    """Return the row before each that an agent came back with: the last one that it took before it was lost."""
    steps: defaultdict[int, list[int]] = defaultdict(list)
    for row in rows:
        steps[row.agent].append(row.step)
    before: dict[_Key, _Key] = {}
    for row in rows:
        earlier = [step for step in steps[row.agent] if step < row.step] if row.kind == "rejoined" else []
        if earlier:
            before[row.agent, row.step] = (row.agent, max(earlier))
    return before


def _directions_needed(row: Row) -> Iterator[_Key]:
    return ((read.neighbor, read.version) for read in row.reads if read.staleness)


def _without_direction(row: Row, neighbor: int) -> Row:
    return row._replace(reads=tuple(r._replace(staleness=0) if r.neighbor == neighbor else r for r in row.reads))


def _by_time(rows: Iterable[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: (row.end, row.step, row.agent))


def _never_executable(by_key: Mapping[_Key, Row]) -> dict[_Key, Row]:
    dependents: defaultdict[_Key, list[_Key]] = defaultdict(list)
    before = _rows_before(by_key.values())
    for key, row in by_key.items():
        for need in _versions_needed(row, before):
            dependents[need].append(key)
    lost: dict[_Key, Row] = {}
    missing = [need for need in dependents if need not in by_key]
    while missing:
        for key in dependents[missing.pop()]:
            if key not in lost:
                lost[key] = by_key[key]
                missing.append(key)
    return lost


class _Ordering:
    """Topological sorting that gives up directions where they form cycles; all needed versions are there."""

    def __init__(self, rows: dict[_Key, Row], with_directions: bool) -> None:
        self.left = rows
        self.with_directions = with_directions
        self.before = _rows_before(rows.values())
        self.num_needs: Counter[_Key] = Counter()
        self.dependents: defaultdict[_Key, list[_Key]] = defaultdict(list)
        self.ready: list[tuple[float, int, int]] = []
        for key in rows:
            for agent, step in self.directions_needed(key):
                if (agent, step) not in rows:
                    rows[key] = _without_direction(rows[key], agent)
            for need in self.needs(key):
                self.num_needs[key] += 1
                self.dependents[need].append(key)
        for key in rows:
            self.enter_if_ready(key)

    def ordered(self) -> list[Row]:
        result: list[Row] = []
        while self.left:
            while not self.ready:
                if not self.break_cycle():
                    return result + _by_time(self.left.values())
            _, step, agent = heapq.heappop(self.ready)
            result.append(self.left.pop((agent, step)))
            for key in self.dependents[agent, step]:
                self.num_needs[key] -= 1
                self.enter_if_ready(key)
        return result

    def needs(self, key: _Key) -> Iterator[_Key]:
        return chain(_versions_needed(self.left[key], self.before), self.directions_needed(key))

    def directions_needed(self, key: _Key) -> Iterator[_Key]:
        return _directions_needed(self.left[key]) if self.with_directions else iter(())

    def enter_if_ready(self, key: _Key) -> None:
        if not self.num_needs[key]:
            heapq.heappush(self.ready, (self.left[key].end, key[1], key[0]))

    def break_cycle(self) -> bool:
        """Give up the direction, in a cycle of needs, that comes latest for its reader; return whether there is one."""
        pairs = [(key, need) for key, need in self.cycle() if need in self.directions_needed(key)]
        if not pairs:
            return False
        key, need = max(pairs, key=lambda pair: self.left[pair[1]].end - self.left[pair[0]].end)
        self.left[key] = _without_direction(self.left[key], need[0])
        self.dependents[need].remove(key)
        self.num_needs[key] -= 1
        self.enter_if_ready(key)
        return True

    def cycle(self) -> list[tuple[_Key, _Key]]:
        """Return a cycle's rows, each with the one that it needs; there is one, since all that are left need one."""
        path: dict[_Key, _Key] = {}
        key = min(self.left, key=lambda key: (self.left[key].end, key))
        while key not in path:
            path[key] = next(need for need in self.needs(key) if need in self.left)
            key = path[key]
        pairs = list(path.items())
        return pairs[list(path).index(key) :]
