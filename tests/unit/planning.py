"""A slow planner, written from the semantics and sharing nothing with the real one but laws and records.

It keeps every version ever published and searches all of them at every read; in every round of every instant it looks
at every agent. Barriers are written out, but for the sampled one: that is asked once when the gradient is ready, and
then whenever a newer version has become known.
"""

import math
from itertools import count
from typing import NamedTuple

from ray_pcasgd.base.randomness import generator
from ray_pcasgd.records import Read, Row
from ray_pcasgd.schedule.barrier import AllBarrier, BoundedBarrier, Proceed, SampledBarrier
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


def slow_rows(plan: Planner) -> list[Row]:
    """Return all rows of a plan."""
    return _SlowPlanner(plan).rows()


class _SlowPlanner:
    def __init__(self, plan: Planner) -> None:
        self.plan = plan
        self.agents = range(len(plan.neighbors))
        self.seconds = [plan.compute.sampler(plan.seed, i) for i in self.agents]
        self.published: list[list[Moment]] = [[] for _ in self.agents]
        self.batches = [list(range(plan.num_steps)) for _ in self.agents]
        """Those that are not begun yet."""
        self.taken_at = [[0] for _ in self.agents]
        """By version, the mini-batches up to it."""
        self.lasts = [-(-plan.num_steps // self.local_steps(i)) for i in self.agents]
        self.start = [0 for _ in self.agents]
        self.ready = [0 if plan.combines_first else self.round_ends(i, 0) for i in self.agents]
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

    def round_ends(self, i: int, now: int) -> int:
        """Return when the mini-batches of the round that begins now are computed."""
        own, self.batches[i] = self.batches[i][: self.local_steps(i)], self.batches[i][self.local_steps(i) :]
        self.taken_at[i].append(self.taken_at[i][-1] + len(own))
        seconds = 0.0
        for _ in own:
            seconds += self.seconds[i](now / 1e9 + seconds)
        return now + self.nanoseconds(seconds)

    def rows(self) -> list[Row]:
        result: list[Row] = []
        moment = (-1, 0)
        while True:
            left = [i for i in self.agents if len(self.published[i]) < self.lasts[i]]
            if not left:
                return result
            arrivals = [message.arrival for messages in self.sent.values() for message in messages]
            now = min(time for time in arrivals + [self.ready[i] for i in left] if time > moment[0])
            for turn in count():
                moment = (now, turn)
                ended = [i for i in self.agents if self.may_end(i, moment)]
                if not ended:
                    break
                if self.plan.combines_first:
                    ended = self.combine(ended, moment)
                result += [self.row(i, moment) for i in ended]
                for i in ended:
                    self.published[i].append(moment)
                for i in ended:
                    self.publish(i, moment)
                if self.has_bytes:
                    self.ship()

    def ship(self) -> None:
        """Find anew when all that was sent arrives; what has arrived stays so, whatever is sent later."""
        when = arrivals(self.shipments, self.plan.hosts)
        for messages in self.sent.values():
            for place, message in enumerate(messages):
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
        """Return what i has from k: instantaneous messages from the next round on, late ones when they are due."""
        return [START] + [
            message
            for message in self.sent[k, i]
            if message.arrival <= moment[0] and (message.delayed or message.moment < moment)
        ]

    def may_end(self, i: int, moment: Moment) -> bool:
        step = len(self.published[i])
        if step == self.lasts[i] or self.ready[i] > moment[0]:
            return False
        if i in self.begun:
            return True
        asked = self.plan.neighbors[i]
        if self.plan.exchange.waits_for_partners:
            asked = self.plan.exchange.partners(self.plan.seed, i, step, asked)
        newest = {k: max(message.version for message in self.known(k, i, moment)) for k in asked}
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
        step, plan = len(self.published[i]), self.plan
        if i in self.begun:
            return Row(i, step, self.start[i] / 1e9, self.ready[i] / 1e9, moment[0] / 1e9, self.begun.pop(i))
        before = dict(self.last_read)
        asked = plan.exchange.partners(plan.seed, i, step, plan.neighbors[i])
        if plan.exchange.reading == "every":
            reads = [read for k in asked for read in self.read_every(k, i, moment)]
            times = (self.start[i] / 1e9, self.ready[i] / 1e9, moment[0] / 1e9)
            return Row(i, step, *times, tuple(reads), held=tuple(self.held.get((i, step), ())))
        reads = [self.read(k, i, moment) for k in asked]
        if plan.exchange.reading == "news":
            reads = [read for read in reads if self.last_read[read.neighbor, i] != before[read.neighbor, i]]
        return Row(i, step, self.start[i] / 1e9, self.ready[i] / 1e9, moment[0] / 1e9, tuple(reads))

    def read(self, k: int, i: int, moment: Moment) -> Read:
        step = len(self.published[i])
        cap = step if k in self.capped[i] else 10**9
        messages = self.known(k, i, moment)
        newest_known = min(cap, max(message.version for message in messages))
        if self.plan.exchange.reading == "news":
            # A version is released by its sender's progress: the next message may be long in coming.
            newest_known = len([m for m in self.published[k] if m < moment])
        readable = [message for message in messages if message.version + message.hold <= newest_known]
        chosen = self.last_read[k, i] = max(self.last_read[k, i], *readable)
        published = min(cap, len([m for m in self.published[k] if m < moment]))
        own_then = len([m for m in self.published[i] if m <= chosen.moment])
        return Read(k, chosen.version, max(0, published - chosen.version), step - own_then)

    def read_every(self, k: int, i: int, moment: Moment) -> list[Read]:
        """Return every version but the last one that i may read of k, and has not read."""
        step = len(self.published[i])
        cap = step if k in self.capped[i] else 10**9
        messages = self.known(k, i, moment)
        newest_known = min(cap, max(message.version for message in messages))
        published = min(cap, len([m for m in self.published[k] if m < moment]))
        reads = []
        for message in messages:
            key = (k, i, message.version)
            if message.version + message.hold <= newest_known and message.version < self.lasts[k]:
                if key not in self.taken:
                    own_then = len([m for m in self.published[i] if m <= message.moment])
                    reads.append(Read(k, message.version, max(0, published - message.version), step - own_then))
                self.taken.add(key)
        return reads

    def publish(self, i: int, moment: Moment) -> None:
        version, second = len(self.published[i]), moment[0] / 1e9
        for receiver in self.agents:
            readers = tuple(k for k in self.agents if i in self.plan.neighbors[k])
            if self.plan.exchange.reading == "every" and len(self.published[receiver]) == self.lasts[receiver]:
                if receiver in readers:
                    self.held.setdefault((i, version), []).append(receiver)
                continue
            told = self.plan.exchange.receivers(self.plan.seed, i, version, readers)
            if version == self.lasts[i] and self.plan.exchange.waits_for_partners:
                told = readers
            if receiver in readers and receiver in told:
                earlier = self.sent[i, receiver]
                times = self.times[i, receiver]
                taken = self.taken_at[i][version]
                latency = self.nanoseconds(times.latency_seconds(taken, second))
                due = moment[0] + latency
                arrival = max([due, *(message.arrival for message in earlier)])
                hold = math.ceil(times.hold_steps(taken, second) / self.local_steps(i))
                earlier.append(Sent(version, moment, arrival, arrival > moment[0], hold, len(self.shipments)))
                bandwidth = times.bandwidth(taken, second)
                self.shipments.append(Shipment(moment[0], i, receiver, self.plan.message_bytes, latency, bandwidth))
        if version < self.lasts[i] and not self.plan.combines_first:
            self.start[i] = moment[0]
            self.ready[i] = self.round_ends(i, moment[0])
