"""Sorts rows topologically, so that each can be executed: no row comes before those whose results it needs."""

import heapq
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from itertools import chain, takewhile

import numpy as np

from ray_pcasgd.records import Row
from ray_pcasgd.schedule.row_block import RowBlock
from ray_pcasgd.schedule.row_log import RowLog

_Key = tuple[int, int]
"""An agent and its step."""


def in_causal_order(rows: Iterable[Row], with_directions: bool = True) -> list[Row]:
    """Return the rows in an order in which each can be executed, by time as far as possible.

    A row needs its agent's row before it, the row that published each version it reads, and, where that version is
    stale, its neighbor's next row, since only that computes the direction at the version. The clocks of a live
    run's machines differ, and staleness is an estimate there: where needs of the last kind form a cycle, or name a
    row that is not there because the neighbor has stopped, that read's staleness becomes 0. Rows that can never be
    executed, because no row publishes a version that they read, come last. Between workers and servers no directions
    travel (``with_directions``).
    """
    by_key = {row[:2]: row for row in rows}
    return list(causally_ordered(RowLog(by_key.values()), with_directions))


def causally_ordered(rows: RowLog, with_directions: bool = True) -> Iterator[Row]:
    """Yield the rows as ``in_causal_order`` returns them; of each agent a few of them are unpacked at a time."""
    ends = _never_executable(rows)
    yield from _Ordering(rows, ends, with_directions).ordered()
    if ends:
        yield from _by_time(row for row in rows if row.step >= ends.get(row.agent, math.inf))


def _by_time(rows: Iterable[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: (row.end, row.step, row.agent))


def _versions_needed(row: Row) -> Iterator[_Key]:
    return ((read.neighbor, read.version - 1) for read in row.reads if read.version)


def _directions_needed(row: Row) -> Iterator[_Key]:
    return ((read.neighbor, read.version) for read in row.reads if read.staleness)


def _without_direction(row: Row, neighbor: int) -> Row:
    return row._replace(reads=tuple(r._replace(staleness=0) if r.neighbor == neighbor else r for r in row.reads))


def _never_executable(rows: RowLog) -> dict[int, int]:
    """Return the agents of which rows can never be executed, and the first such step: all after it cannot either."""
    ends: dict[int, int] = {}
    begins = {agent: [begin for begin, _ in steps if begin] for agent, steps in rows.steps.items()}
    gaps = {agent: np.array(own) for agent, own in begins.items() if own}
    is_new = True
    while is_new:
        is_new = False
        for block in rows.blocks():
            lost = _lost(block, rows, gaps, ends)
            for agent, step in zip(block.agent[lost].tolist(), block.step[lost].tolist(), strict=True):
                if step < ends.get(agent, math.inf):
                    ends[agent], is_new = step, True
    return ends


def _lost(block: RowBlock, rows: RowLog, gaps: Mapping[int, np.ndarray], ends: Mapping[int, int]) -> np.ndarray:
    """Return which rows of a block follow a gap, or read what no row that can be executed publishes."""
    lost = np.zeros(len(block.agent), dtype=bool)
    for agent, begins in gaps.items():
        lost |= (block.agent == agent) & np.isin(block.step, begins) & ~block.comes_back
    missing = rows.lacks(block.neighbor, block.version)
    for agent, end in ends.items():
        missing |= (block.neighbor == agent) & (block.version > end)
    lost[block.reader[missing]] = True
    return lost


class _Ordering:
    """Topological sorting that gives up directions where they form cycles; all needed versions are there.

    Each agent's rows are executed in the order of their steps, so only the next row of each can be.
    """

    def __init__(self, rows: RowLog, ends: Mapping[int, int], with_directions: bool) -> None:
        self.rows = rows
        self.ends = ends
        """Which step of an agent is the first that cannot be executed, where there is one."""
        self.with_directions = with_directions
        self.steps = rows.steps
        self.coming = {agent: self.executable_of(agent) for agent in sorted(self.steps)}
        """Each agent's rows that are still to come, but for its next one."""
        self.next: dict[int, Row] = {}
        """Each agent's next row."""
        self.done = dict.fromkeys(self.steps, -1)
        """The last step of each agent that is ordered."""
        self.waiting: defaultdict[int, list[_Key]] = defaultdict(list)
        """By agent the steps of it that others' next rows wait for, and who these are, as heaps."""
        self.ready: list[tuple[float, int, int]] = []

    def executable_of(self, agent: int) -> Iterator[Row]:
        end = self.ends.get(agent, math.inf)
        executable = takewhile(lambda row: row.step < end, self.rows.of_agent(agent))
        return map(self.without_missing, executable)

    def without_missing(self, row: Row) -> Row:
        """Return a row without the directions that no row computes."""
        for neighbor, step in self.directions_needed(row):
            if not self.is_there(neighbor, step):
                row = _without_direction(row, neighbor)
        return row

    def ordered(self) -> Iterator[Row]:
        for agent in self.coming:
            self.draw(agent)
        while self.next:
            if self.ready:
                _, step, agent = heapq.heappop(self.ready)
                yield self.next.pop(agent)
                self.done[agent] = step
                self.draw(agent)
                others = self.waiting[agent]
                while others and others[0][0] <= step:
                    self.enter(heapq.heappop(others)[1])
            elif not self.break_cycle():
                yield from _by_time(chain(self.next.values(), *self.coming.values()))
                return

    def draw(self, agent: int) -> None:
        """Take an agent's next row, if there is one."""
        row = next(self.coming[agent], None)
        if row is not None:
            self.next[agent] = row
            self.enter(agent)

    def is_there(self, agent: int, step: int) -> bool:
        """Return whether there is a row of an agent's step, which can be executed."""
        return step < self.ends.get(agent, math.inf) and agent in self.steps and step in self.steps[agent]

    def enter(self, agent: int) -> None:
        """Note that an agent's next row is ready, or what it waits for."""
        row = self.next[agent]
        need = self.need(row)
        if need is None:
            heapq.heappush(self.ready, (row.end, row.step, agent))
        else:
            heapq.heappush(self.waiting[need[0]], (need[1], agent))

    def need(self, row: Row) -> _Key | None:
        """Return the first row that a row waits for."""
        needs = chain(_versions_needed(row), self.directions_needed(row))
        return next((need for need in needs if self.done[need[0]] < need[1]), None)

    def directions_needed(self, row: Row) -> Iterator[_Key]:
        return _directions_needed(row) if self.with_directions else iter(())

    def break_cycle(self) -> bool:
        """Give up the direction, in a cycle of needs, that comes latest for its reader; return whether there is one."""
        pairs = [(agent, need) for agent, need in self.cycle() if need in self.directions_needed(self.next[agent])]
        if not pairs:
            return False
        # The version itself is there, so the row that computes the direction at it is its agent's next one.
        agent, need = max(pairs, key=lambda pair: self.next[pair[1][0]].end - self.next[pair[0]].end)
        self.next[agent] = _without_direction(self.next[agent], need[0])
        self.waiting[need[0]].remove((need[1], agent))
        heapq.heapify(self.waiting[need[0]])
        self.enter(agent)
        return True

    def cycle(self) -> list[tuple[int, _Key]]:
        """Return the agents of a cycle, each with what its next row waits for; there is one, since all of them wait."""
        path: dict[int, _Key] = {}
        agent = self.earliest()
        while agent not in path:
            need = self.need(self.next[agent])
            assert need is not None
            path[agent] = need
            agent = need[0]
        return list(path.items())[list(path).index(agent) :]

    def earliest(self) -> int:
        """Return whose row has the earliest end of all that are left."""
        if self.is_steady:
            return min(self.next, key=lambda agent: (self.next[agent].end, agent))
        found = (math.inf, -1, -1)
        done, ends = (np.full(max(self.done) + 1, value) for value in (-1, 2**31))
        done[list(self.done)] = list(self.done.values())
        ends[list(self.ends)] = list(self.ends.values())
        for block in self.rows.blocks():
            left = np.flatnonzero((block.step > done[block.agent]) & (block.step < ends[block.agent]))
            if len(left):
                place = left[np.lexsort((block.step[left], block.agent[left], block.end[left]))[0]]
                found = min(found, (float(block.end[place]), int(block.agent[place]), int(block.step[place])))
        return found[1]

    @cached_property
    def is_steady(self) -> bool:
        """Whether no agent's row ends before one that it took before: then its next one is its earliest."""
        ended = dict.fromkeys(self.steps, -math.inf)
        for agent in self.steps:
            for row in self.rows.of_agent(agent):
                if row.end < ended[agent]:
                    return False
                ended[agent] = row.end
        return True
