"""A slow planner, written from the semantics and sharing nothing with the real one but laws and records.

It keeps every version ever published and searches all of them at every read; in every round of every instant it looks
at every agent. Barriers are written out, but for the sampled one: that is asked once when the gradient is ready, and
then whenever a newer version has become known. Of agents that leave and come back it keeps all that was ever sent, too,
and asks of each message whether its sender and its reader have been there ever since.
"""

import math
from collections.abc import Iterator
from itertools import count
from typing import NamedTuple

from ray_pcasgd.base.randomness import generator
from ray_pcasgd.records import Read, Row
from ray_pcasgd.schedule.barrier import AllBarrier, BoundedBarrier, Proceed, SampledBarrier
from ray_pcasgd.schedule.churn import ChurningPlanner
from ray_pcasgd.schedule.delays import LinkTimes
from ray_pcasgd.schedule.plan_peers import Planner
from tests.unit.schedule.slow_network import Shipment, arrivals

Moment = tuple[int, int]
"""Nanosecond, and round within it."""


class Sent(NamedTuple):
    version: int
    moment: Moment
    arrival: int
    delayed: bool
    hold: int
    order: int = -1
    """Its place among all that were sent."""


START = Sent(0, (-1, 0), -1, True, 0)
FAREWELL = -1
"""In place of a version: the sender leaves."""


def slow_rows(plan: Planner) -> list[Row]:
    """Return all rows of a plan."""
    return _SlowPlanner(plan).rows()


class _SlowPlanner:
    def __init__(self, plan: Planner) -> None:
        self.plan = plan
        self.agents = range(len(plan.neighbors))
        self.seconds = [plan.compute.sampler(plan.seed, i) for i in self.agents]
        self.away = plan.away if isinstance(plan, ChurningPlanner) else ()
        self.there = [all(one.agent != i or one.leaves > 0 for one in self.away) for i in self.agents]
        self.back: list[Moment] = [(-1, 0) if there else (-1, 1) for there in self.there]
        """When each agent was there again last; the start's version is known from before that."""
        self.asked = [0.0 for _ in self.agents]
        self.published: list[list[tuple[Moment, int]]] = [[((-1, 0), 0)] for _ in self.agents]
        """All versions, rising."""
        self.lasts = [-(-plan.num_steps // self.local_steps(i)) for i in self.agents]
        self.start = [0 for _ in self.agents]
        self.ready = [
            math.inf if not self.there[i] else 0 if plan.combines_first else self.round_ends(i, 0) for i in self.agents
        ]
        self.begun: dict[int, tuple[Read, ...]] = {}
        """What those read that have combined, and compute now."""
        self.times = {
            (k, i): LinkTimes(plan.links, plan.clusters, plan.seed, k, i)
            for i in self.agents
            for k in plan.neighbors[i]
        }
        self.sent: dict[tuple[int, int], list[Sent]] = {link: [] for link in self.times}
        self.last_read = dict.fromkeys(self.times, START)
        self.taken: set[tuple[int, int, int]] = set()
        self.draws = [generator(plan.seed, "barrier", i) for i in self.agents]
        self.tested: dict[int, object] = {}
        self.capped: dict[int, frozenset[int]] = {}
        self.held: dict[tuple[int, int], list[int]] = {}
        self.shipments: list[Shipment] = []
        self.has_bytes = bool(plan.hosts) or any(link.bandwidth for link in plan.links)

    def nanoseconds(self, seconds: float) -> int:
        return round(seconds * 1e9)

    def local_steps(self, i: int) -> int:
        return self.plan.local_steps[i] if self.plan.local_steps else 1

    def version(self, i: int, before: Moment = (10**30, 0)) -> int:
        """Return the newest version of an agent that was published before a moment."""
        return [version for moment, version in self.published[i] if moment < before][-1]

    def progress(self, i: int, version: int) -> int:
        return min(version * self.local_steps(i), self.plan.num_steps)

    def round_ends(self, i: int, now: int) -> int:
        """Return when the mini-batches of the round that begins now are computed."""
        version, seconds = self.version(i), 0.0
        for _ in range(self.progress(i, version + 1) - self.progress(i, version)):
            self.asked[i] = max(self.asked[i], now / 1e9 + seconds)
            seconds += self.seconds[i](self.asked[i])
        return now + self.nanoseconds(seconds)

    def changes(self, is_back: bool) -> list[tuple[int, int]]:
        """Return all moments at which agents leave or come back, and which."""
        seconds = [(one.returns if is_back else one.leaves, one.agent) for one in self.away]
        return sorted((self.nanoseconds(when), i) for when, i in seconds if 0 < when < math.inf)

    def rows(self) -> list[Row]:
        result: list[Row] = []
        moment = (-1, 0)
        while True:
            left = [i for i in self.agents if self.there[i] and self.version(i) < self.lasts[i]]
            changes = [when for is_back in (False, True) for when, _ in self.changes(is_back) if when > moment[0]]
            if not left and not changes:
                return result
            arrivals = [message.arrival for messages in self.sent.values() for message in messages]
            now = min(time for time in arrivals + changes + [self.ready[i] for i in left] if time > moment[0])
            assert isinstance(now, int)
            rounds = count()
            result += self.instant(now, rounds)
            if now in changes:
                result += self.change((now, next(rounds)))
                result += self.instant(now, rounds)
            moment = (now, next(rounds))

    def instant(self, now: int, rounds: Iterator[int]) -> list[Row]:
        """Return the rows of the next rounds of an instant."""
        result: list[Row] = []
        for turn in rounds:
            moment = (now, turn)
            ended = [i for i in self.agents if self.may_end(i, moment)]
            if not ended:
                break
            if self.plan.combines_first:
                ended = self.combine(ended, moment)
            result += [self.row(i, moment) for i in ended]
            for i in ended:
                self.published[i].append((moment, self.version(i) + 1))
            for i in ended:
                self.publish(i, moment)
            if self.has_bytes:
                self.ship()
        return result

    def change(self, moment: Moment) -> list[Row]:
        """Let agents leave and come back, and return the latter's rows."""
        leaving = [i for when, i in self.changes(False) if when == moment[0] and self.version(i) < self.lasts[i]]
        for i in leaving:
            self.there[i], self.ready[i] = False, math.inf
            self.begun.pop(i, None)
        for i in leaving:
            for receiver in self.readers(i):
                if self.there[receiver]:
                    self.send(i, receiver, moment, FAREWELL)
        returning = [i for when, i in self.changes(True) if when == moment[0] and not self.there[i]]
        offered = [{k: self.version(k) for k in self.plan.neighbors[i] if self.there[k]} for i in returning]
        rows = []
        for i, here in zip(returning, offered, strict=True):
            taken = [self.progress(k, version) for k, version in here.items()]
            mean = int(sum(taken) / (len(taken) * self.local_steps(i))) if taken else 0
            version = min(max(mean, self.version(i) + 1), self.lasts[i])
            second = moment[0] / 1e9
            reads = tuple(Read(k, here[k], 0, 0) for k in sorted(here))
            rows.append(Row(i, version - 1, second, second, second, reads, "rejoined"))
        for row in rows:
            self.there[row.agent], self.back[row.agent] = True, moment
            self.published[row.agent].append((moment, row.step + 1))
            self.ready[row.agent] = moment[0]
        for row in rows:
            for read in row.reads:
                self.sent[read.neighbor, row.agent].append(Sent(read.version, moment, moment[0], True, 0))
        for row in rows:
            self.publish(row.agent, moment)
        if self.has_bytes:
            self.ship()
        return rows

    def readers(self, i: int) -> tuple[int, ...]:
        return tuple(k for k in self.agents if i in self.plan.neighbors[k])

    def ship(self) -> None:
        """Find anew when all that was sent arrives; what has arrived stays so, whatever is sent later."""
        when = arrivals(self.shipments, self.plan.hosts)
        for messages in self.sent.values():
            for place, message in enumerate(messages):
                if message.order < 0:
                    continue  # what an agent has come back with
                arrival = when[message.order]
                messages[place] = message._replace(arrival=arrival, delayed=arrival > message.moment[0])

    def combine(self, going: list[int], moment: Moment) -> list[int]:
        """Let those read and begin who have not, and return the others, whose rounds end."""
        ended = [i for i in going if i in self.begun]
        for i in going:
            if i not in self.begun:
                self.begun[i] = self.row(i, moment).reads
                self.start[i], self.ready[i] = moment[0], self.round_ends(i, moment[0])
        return ended

    def known(self, k: int, i: int, moment: Moment) -> list[Sent]:
        """Return what i has from k: instantaneous messages from the next round on, late ones when they are due.

        Of what was sent before either of them was there again it has nothing; nor anything at all where it knows that k
        has left.
        """
        since = max(self.back[k], self.back[i])
        arrived = [
            message
            for message in [START, *self.sent[k, i]]
            if since <= message.moment and message.arrival <= moment[0] and (message.delayed or message.moment < moment)
        ]
        return [] if any(message.version == FAREWELL for message in arrived) else arrived

    def may_end(self, i: int, moment: Moment) -> bool:
        step = self.version(i)
        if step == self.lasts[i] or self.ready[i] > moment[0]:
            return False
        if i in self.begun:
            return True
        asked = self.plan.neighbors[i]
        if self.plan.exchange.waits_for_partners:
            asked = self.plan.exchange.partners(self.plan.seed, i, step, asked)
        # Who is away is not waited for.
        newest = {k: max((message.version for message in self.known(k, i, moment)), default=step) for k in asked}
        # Who has taken all its steps is not waited for.
        newest = {k: max(version, step) if version == self.lasts[k] else version for k, version in newest.items()}
        self.capped[i] = frozenset()
        match self.plan.barrier:
            case AllBarrier():
                self.capped[i] = frozenset(newest)
                return all(version >= step for version in newest.values())
            case BoundedBarrier(staleness=staleness):
                return all(version >= step - staleness for version in newest.values())
            case SampledBarrier():
                if self.tested.get(i) == (step, newest):
                    return False
                self.tested[i] = (step, newest)
                decision = self.plan.barrier.decide(step, newest, self.draws[i])
                self.capped[i] = decision.capped if isinstance(decision, Proceed) else frozenset()
                return isinstance(decision, Proceed)
        return True

    def row(self, i: int, moment: Moment) -> Row:
        step, plan = self.version(i), self.plan
        if i in self.begun:
            return Row(i, step, self.start[i] / 1e9, self.ready[i] / 1e9, moment[0] / 1e9, self.begun.pop(i))
        before = dict(self.last_read)
        asked = plan.exchange.partners(plan.seed, i, step, plan.neighbors[i])
        if plan.exchange.reading == "every":
            reads = [read for k in asked for read in self.read_every(k, i, moment)]
            times = (self.start[i] / 1e9, self.ready[i] / 1e9, moment[0] / 1e9)
            return Row(i, step, *times, tuple(reads), held=tuple(self.held.get((i, step), ())))
        reads = [read for k in asked if (read := self.read(k, i, moment)) is not None]
        if plan.exchange.reading == "news":
            reads = [read for read in reads if self.last_read[read.neighbor, i] != before[read.neighbor, i]]
        return Row(i, step, self.start[i] / 1e9, self.ready[i] / 1e9, moment[0] / 1e9, tuple(reads))

    def read(self, k: int, i: int, moment: Moment) -> Read | None:
        step = self.version(i)
        cap = step if k in self.capped[i] else 10**9
        messages = self.known(k, i, moment)
        if not messages:
            return None
        newest_known = min(cap, max(message.version for message in messages))
        if self.plan.exchange.reading == "news":
            # A version is released by its sender's progress: the next message may be long in coming.
            newest_known = self.version(k, moment)
        readable = [message for message in messages if message.version + message.hold <= newest_known]
        if self.last_read[k, i].moment >= messages[0].moment:
            readable.append(self.last_read[k, i])
        if not readable:
            return None
        chosen = self.last_read[k, i] = max(readable)
        published = min(cap, self.version(k, moment))
        own_then = self.version(i, (chosen.moment[0], chosen.moment[1] + 1))
        return Read(k, chosen.version, max(0, published - chosen.version), step - own_then)

    def read_every(self, k: int, i: int, moment: Moment) -> list[Read]:
        """Return every version but the last one that i may read of k, and has not read."""
        step = self.version(i)
        cap = step if k in self.capped[i] else 10**9
        messages = self.known(k, i, moment)
        newest_known = min(cap, max(message.version for message in messages))
        published = min(cap, self.version(k, moment))
        reads = []
        for message in messages:
            key = (k, i, message.version)
            if message.version + message.hold <= newest_known and message.version < self.lasts[k]:
                if key not in self.taken:
                    own_then = self.version(i, (message.moment[0], message.moment[1] + 1))
                    reads.append(Read(k, message.version, max(0, published - message.version), step - own_then))
                self.taken.add(key)
        return reads

    def publish(self, i: int, moment: Moment) -> None:
        version, readers = self.version(i), self.readers(i)
        for receiver in self.agents:
            if not self.there[receiver]:
                continue
            if self.plan.exchange.reading == "every" and self.version(receiver) == self.lasts[receiver]:
                if receiver in readers:
                    self.held.setdefault((i, version), []).append(receiver)
                continue
            told = self.plan.exchange.receivers(self.plan.seed, i, version, readers)
            if version == self.lasts[i] and self.plan.exchange.waits_for_partners:
                told = readers
            if receiver in readers and receiver in told:
                self.send(i, receiver, moment, version)
        if version < self.lasts[i] and not self.plan.combines_first:
            self.start[i] = moment[0]
            self.ready[i] = self.round_ends(i, moment[0])

    def send(self, i: int, receiver: int, moment: Moment, version: int) -> None:
        earlier, times = self.sent[i, receiver], self.times[i, receiver]
        taken, second = self.progress(i, self.version(i)), moment[0] / 1e9
        latency = self.nanoseconds(times.latency_seconds(taken, second))
        due = moment[0] + latency
        arrival = max([due, *(message.arrival for message in earlier)])
        hold = 0 if version == FAREWELL else math.ceil(times.hold_steps(taken, second) / self.local_steps(i))
        earlier.append(Sent(version, moment, arrival, arrival > moment[0], hold, len(self.shipments)))
        bandwidth = times.bandwidth(taken, second)
        self.shipments.append(Shipment(moment[0], i, receiver, self.plan.message_bytes, latency, bandwidth))
