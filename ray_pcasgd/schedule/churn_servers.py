"""Plans runs around servers whose workers leave and come back: the planner of ``plan_servers``, with membership."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from ray_pcasgd.records import Read, Row
from ray_pcasgd.schedule.attendance import Attendance
from ray_pcasgd.schedule.membership import Away, Departure
from ray_pcasgd.schedule.plan_servers import GRADIENT, Notice, Server, ServerPlanner, ServerRows, Simulation, Worker
from ray_pcasgd.schedule.simulation import Channel, row_times


@dataclass(frozen=True, kw_only=True)
class ChurningServerPlanner(ServerPlanner):
    """The timing of a run whose workers leave and come back; its servers stay.

    A worker that leaves gives up the gradient that it computes, stays at its version and takes no row until it returns;
    no message reaches it. What it has sent arrives, and counts. On its return it has a row of the kind ``rejoined``, an
    instant: it reads the newest version of each server that workers are told to read, whatever the delay of their link,
    comes to its own next version, and begins to compute.

    A server does not wait for a worker from when it knows that it has left: then it may update with what it has.

    **Choice**: work that ends, and messages that come, at the very instant of leaving count, since all other events of
    an instant come first; then workers leave, then others come back. That it leaves, servers know by a last message,
    which takes as long as a gradient. A gradient that waits for an update stays there when its worker leaves
    (``Gatherer``); on its return, what of it is still under way is lost. That it is back, servers know at once. What
    would be sent to one that is not there takes no bandwidth.
    """

    away: tuple[Away, ...] = ()
    """Who is not there when, by worker and time; times of one worker do not touch."""

    def __iter__(self) -> "ChurningServerRows":
        return ChurningServerRows(self)

    @cached_property
    def departures(self) -> tuple[Departure, ...]:
        """All departures that the plan's workers come to, by their moments; it is planned as far as the last change."""
        course = _Churn(self)
        return course.attendance.all_departures(course.rows())


class ChurningServerRows(ServerRows):
    """The rows of a plan with churn, and who is away at the place that they have been drawn to."""

    def __init__(self, plan: ChurningServerPlanner) -> None:
        self._course = _Churn(plan)
        super().__init__(plan, self._course)
        self._drawn = [0] * (plan.num_workers + plan.num_servers)
        """The version of each agent by the rows that were drawn."""

    def __next__(self) -> Row | None:
        row = super().__next__()
        if row is not None:
            self._drawn[row.agent] = row.step + 1
        return row

    @property
    def away(self) -> Mapping[int, int]:
        """The workers that are away, and their versions."""
        return self._course.away

    def is_over(self, agent: int) -> bool:
        """Return whether the agent is known to have no more rows: it has left for good."""
        is_gone = self._course.attendance.has_left_for_good(agent)
        return is_gone and self._drawn[agent] == self._course.away[agent]


class _Farewell(NamedTuple):
    """A worker's word that it leaves."""

    worker: int


class _Sent(NamedTuple):
    """A message of a worker, or to one."""

    life: int
    """How often the worker had come back when it was sent."""
    content: object


class _Churn(Simulation):
    """The course of a plan with churn."""

    def __init__(self, plan: ChurningServerPlanner) -> None:
        super().__init__(plan)
        self.attendance = Attendance(plan.away)
        self.away = self.attendance.away
        """The workers that are away, and their versions."""
        self.lives = [0] * plan.num_workers
        """How often each worker has come back."""
        for server in self.servers:
            for worker in self.away:
                server.gatherer.lose(worker)

    def rows(self) -> Iterator[Row | None]:
        """Yield all rows; they end early where every worker has left for good."""
        for worker in self.workers:
            if worker.number not in self.away:
                self.begin(worker, 0)
        while not all(map(self.is_over, self.servers)):
            change = self.attendance.next_change
            event = self.calendar.pop(math.inf if change is None else change)
            if event is not None:
                now, (number, place, content) = event
                yield from self.happen(self.workers[number], self.servers[place], content, now)
            elif change is not None:
                yield from self.change(change)
            else:
                return

    def happen(self, worker: Worker, server: Server, content: object, now: int) -> Iterator[Row | None]:
        """Let an event happen, unless it is a message to a worker that is not there, or of before its return."""
        if isinstance(content, _Sent):
            life, content = content
            is_lost = isinstance(content, Notice) and worker.number in self.away
            if is_lost or life != self.lives[worker.number]:
                return
        if isinstance(content, _Farewell):
            yield from self.lose(server, worker, now)
        else:
            yield from super().happen(worker, server, content, now)

    def send(
        self, channel: Channel, version: int, now: int, rank: int, worker: int, server: int, content: object
    ) -> None:
        """Enter what happens when a message arrives that is sent now."""
        super().send(channel, version, now, rank, worker, server, _Sent(self.lives[worker], content))

    def answer(self, server: Server, worker: int, version: int, now: int, is_renewed: bool = True) -> None:
        """Answer a worker that is there."""
        if worker not in self.away:
            super().answer(server, worker, version, now, is_renewed)

    def change(self, now: int) -> list[Row]:
        """Let workers leave and come back; return the latter's rows."""
        changes = self.attendance.due(now)
        for change in changes:
            if not change.is_back:
                self.leave(self.workers[change.agent], now)
        returning = [self.workers[change.agent] for change in changes if change.is_back]
        return [self.come_back(worker, now) for worker in returning]

    def leave(self, worker: Worker, now: int) -> None:
        """Let a worker leave, and its servers know in time."""
        self.attendance.leave(worker.number, worker.version)
        worker.computing = False
        for channel, server in zip(worker.to_server, self.servers, strict=True):
            farewell = _Farewell(worker.number)
            self.send(channel, worker.version, now, GRADIENT, worker.number, server.number, farewell)

    def lose(self, server: Server, worker: Worker, now: int) -> Iterator[Row]:
        """Let a server know that a worker has left; it updates if that is all that it has waited for."""
        server.gatherer.lose(worker.number)
        taken = () if self.is_over(server) else server.gatherer.take()
        if not taken:
            return
        yield self.update(server, taken, now)
        answered = {one.worker: one.version for one in taken if self.plan.gathering.waits}
        for number, version in self.with_cancelled(server, answered).items():
            self.answer(server, number, version, now)

    def come_back(self, worker: Worker, now: int) -> Row:
        """Let a worker be there again and begin to compute; return the row by which it comes back."""
        version = self.away[worker.number] + 1
        self.attendance.come_back(worker.number, version)
        self.lives[worker.number] += 1
        worker.version = version
        for server in self.servers:
            server.gatherer.gain(worker.number)
            newest = server.gatherer.version
            given = server.given[worker.number] = max(0, newest - self.plan.reads_before)
            server.told[worker.number] = newest
            worker.known[server.number] = Notice(newest, given, version)
        reads = tuple(
            Read(self.plan.num_workers + place, notice.reads, notice.newest - notice.reads, 0)
            for place, notice in enumerate(worker.known)
        )
        self.begin(worker, now)
        return Row(worker.number, version - 1, *row_times(now, now, now), reads, "rejoined")
