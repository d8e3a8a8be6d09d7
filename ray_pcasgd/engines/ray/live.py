"""The agent actor of live mode: it reads whatever has come, and what it read is recorded."""

import math
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ray.actor import ActorHandle

from ray_pcasgd.agents.mailbox import Header
from ray_pcasgd.agents.peer import AgentSpec, Received
from ray_pcasgd.base.randomness import generator
from ray_pcasgd.engines.base import InterruptionError
from ray_pcasgd.engines.live.injection import InjectedDelays
from ray_pcasgd.engines.live.reading import NeighborTracker, OwnTimes, choose_all, choose_read, is_lagging
from ray_pcasgd.engines.ray.agent_actor import Found
from ray_pcasgd.engines.ray.cuts import AgentState, Restored, portable_state
from ray_pcasgd.engines.ray.lost import LOST
from ray_pcasgd.engines.ray.returning import ReturningAgentActor
from ray_pcasgd.engines.ray.shell import Driving
from ray_pcasgd.records import Event, Read, Row
from ray_pcasgd.schedule.barrier import AllBarrier, NoBarrier, Proceed, SampledBarrier, WaitFor
from ray_pcasgd.tasks.task import TaskData

RECENT_STEPS = 16
"""Steps over which an agent's pace is a mean."""

LONGEST_RATIO = 4.0
"""A step that takes this many times the mean is not just slow: the process was stopped."""

LASTING_STEPS = 50
"""Steps without a neighbor that is too far behind, after which an event says so."""

HELD_UP_SECONDS = 0.1
"""Together with ``LONGEST_RATIO``: a step of at least these seconds shows that the agent's process was held up."""

SILENT_SECONDS = 1.0
"""A shorter time does not count as silence, however short steps are: machines pause their processes for as long."""

AT_ONCE_SECONDS = 0.05
"""Steps that come so far apart are reported one by one; that of shorter ones would cost too much of their time."""


class LiveAgentActor(ReturningAgentActor):
    """Waits for its barrier only, never for a single message or neighbor."""

    def __init__(
        self,
        spec: AgentSpec,
        data: TaskData,
        driving: Driving,
        scheduler: ActorHandle[Any],
        injection: InjectedDelays,
        restored: Restored | None = None,
        first_call: int = 0,
    ) -> None:
        super().__init__(spec, data, driving, scheduler, restored, first_call)
        self.barrier = injection.barrier
        self.extra_seconds = injection.compute.extra_sampler(injection.seed, spec.agent)
        self.barrier_draws = generator(injection.seed, "barrier", spec.agent)
        self.set_links(injection)
        self.last_read = dict.fromkeys(spec.neighbors, 0)
        """The newest version of each neighbor that was read."""
        self.reads_news = spec.recipe.rule.reading == "news"
        self.own_times = OwnTimes(1, [])
        # A barrier that asks for old versions needs them; without one, a newer message replaces an unread older one.
        self.replaces = not isinstance(self.barrier, AllBarrier | SampledBarrier) and not self.agent.pushes
        self.may_skip = True
        self.silent: set[int] = set()
        """Neighbors that are not known to be gone, and from which no message has come for too long."""
        self.silences: Counter[int] = Counter()
        """How often each neighbor was found silent."""
        self.trackers = {k: NeighborTracker(spec.recipe.num_steps) for k in spec.neighbors}
        """How far each neighbor has come, as its messages tell."""
        self.left_out: Counter[int] = Counter()
        """For how many steps each neighbor was too far behind to be read, up to the present one."""
        self.episodes: Counter[int] = Counter()
        """How often that lasted."""
        self.held_up = False
        """Whether the present step took so long that the agent's process must have been stopped meanwhile."""
        self.kept_at = time.monotonic()
        self.agent.warm_up()

    def take_steps(self) -> None:
        """Take all steps as fast as the barrier allows."""
        if self.is_restored and not self.is_back:
            self.rejoin([], self.version + 1)
        while self.agent.version < self.spec.recipe.num_steps and not self.is_isolated:
            if not self.take_step():
                return
            self.keep_part()

    def keep_part(self) -> None:
        """Give the driver the agent's part of the run's state, if it is time."""
        every, now = self.driving.state_seconds, time.monotonic()
        if every is None or now - self.kept_at < every:
            return
        state = portable_state(self.kept_state())
        self.unsent.append(AgentState(self.spec.agent, self.version, 0, state, is_isolated=self.is_isolated))
        self.kept_at = now

    def take_step(self) -> bool:
        """Take one step; return whether the agent is still in the run."""
        step, start = self.agent.version, time.time()
        loss = self.compute()
        if loss is None:
            return False
        self.held_up = self.is_long(time.time() - start)
        self.wait_longer(start)
        ready = time.time()
        found = self.await_barrier(step)
        read_at = time.time()
        received = self.open_all(found)
        held = self.held
        measures = self.apply(received, len(held))
        if measures is None:
            return False
        self.own_times.sent_at.append(time.time())
        self.step_seconds = self.own_times.pace(RECENT_STEPS)
        began, computed, ended = (moment - self.started_at for moment in (start, ready, read_at))
        reads = tuple(item.read for item in received)
        row = Row(self.spec.agent, step, began, computed, ended, reads, held=held)
        if self.spec.recipe.evaluates_at(self.agent.progress):
            self.publish()  # an evaluation is not waited for
            self.finish_step(row, loss, measures)
        else:
            self.finish_step(row, loss, measures)
            self.publish()
        return True

    @property
    def reports_at_once(self) -> bool:
        """Whether each row is reported before its version is sent, so that no version is read without a record."""
        return self.step_seconds >= AT_ONCE_SECONDS

    def is_long(self, seconds: float) -> bool:
        """Return whether a gradient took so long that the process must have been stopped meanwhile."""
        return seconds > max(LONGEST_RATIO * self.step_seconds, HELD_UP_SECONDS) and self.step_seconds > 0

    def wait_longer(self, start: float) -> None:
        """Wait for the seconds that a straggler's step takes longer."""
        extra = self.extra_seconds(start - self.started_at)
        deadline = time.monotonic() + extra
        with self.changed:
            while extra > 0 and not self.stopped and (left := deadline - time.monotonic()) > 0:
                self.changed.wait(left)

    def await_barrier(self, step: int) -> list[Found]:
        """Wait until the barrier lets the step end, and return the versions that are read then."""
        decided: list[Proceed] = []
        tested: list[dict[int, int]] = []
        waits_for: list[WaitFor] = []

        def may_end() -> bool:
            newest = self.newest()
            if tested and tested[-1] == newest:
                return False  # a barrier that draws is tested again once something has come, not whenever we wake up
            tested.append(newest)
            decision = self.barrier.decide(step, newest, self.barrier_draws)
            (decided if isinstance(decision, Proceed) else waits_for).append(decision)  # type: ignore[arg-type]
            return bool(decided)

        def missing() -> str:
            return " and ".join(f"version {v} of agent {k}" for k, v in waits_for[-1].versions.items())

        with self.changed:
            while True:
                try:
                    self.wait_until(may_end, missing)
                    break
                except InterruptionError as error:
                    late = waits_for[-1].versions
                    self.silent |= set(late)
                    tested.clear()
                    detail = f"{error}; it goes on without the message"
                    self.unsent.append(Event("neighbor_silent", self.spec.agent, step, detail))
            here = [self.find(read) for read in self.choose_reads(decided[0].capped, step)]
            found = [item for item in here if item is not None]
            if self.agent.pushes:
                for item in found:
                    self.forget(item.read)
            return found

    def newest(self) -> dict[int, int]:
        """Return each neighbor's newest known version; those that have finished or left are not waited for."""
        result = {}
        for k in self.spec.neighbors:
            header = self.mailbox.newest(k)
            over = header is None or header.final or self.mailbox.left(k) or k in self.lost or k in self.silent
            result[k] = self.spec.recipe.num_steps if over or header is None else header.version
        return result

    def choose_reads(self, capped: frozenset[int], step: int) -> list[Read]:
        """Return the versions to read of each neighbor now; called with the lock held."""
        now = time.time()
        reads = []
        for k in self.agent.partners():
            cap = step if k in capped else None
            self.notice_silence(k, now)
            if self.mailbox.left(k) or k in self.lost or k in self.silent:
                continue
            tracker = self.trackers[k]
            if self.agent.pushes:
                reads += choose_all(self.mailbox, k, cap, now, tracker, self.own_times, self.may_read)
                continue
            if cap is None and (self.is_behind(k, now) or self.lags(k, step, now)):
                continue
            read = choose_read(self.mailbox, k, cap, now, tracker, self.own_times, self.may_read)
            only_news = self.reads_news or (cap is None and tracker.has_finished())
            if read is None or (only_news and read.version <= self.last_read[k]):
                continue
            self.last_read[k] = read.version
            reads.append(read)
            self.mailbox.forget(k, read.version)
        return reads

    def is_behind(self, neighbor: int, now: float) -> bool:
        """Return whether the last message of a neighbor is older than a pause of the agent itself.

        The messages that came meanwhile are still to be taken in: until then the neighbor's step is not known.
        """
        newest = self.trackers[neighbor].newest
        if not self.held_up or newest is None or newest.final:
            return False
        return self.trackers[neighbor].lateness(now) > 2 * max(newest.step_seconds, self.step_seconds)

    def lags(self, neighbor: int, step: int, now: float) -> bool:
        """Return whether a neighbor is too far behind to be read; where that lasts, say so."""
        lag = self.trackers[neighbor].lag(step, now)
        if not is_lagging(lag, step, self.driving.max_lag):
            self.left_out[neighbor] = 0
            return False
        self.left_out[neighbor] += 1
        if self.left_out[neighbor] == LASTING_STEPS:
            self.episodes[neighbor] += 1
            if math.log10(self.episodes[neighbor]).is_integer():
                detail = (
                    f"agent {neighbor} is {lag} steps behind; it is not read until it has caught up (engine.max_lag)"
                )
                self.unsent.append(Event("neighbor_behind", self.spec.agent, self.version, detail))
        return True

    def notice_silence(self, neighbor: int, now: float) -> None:
        """Note that no new message of a neighbor has come for many of its steps: it is not read until one comes.

        A version that grows older and older soon does harm, whether a rule predicts from it or not. Messages count by
        when they were sent: those that have waited for an agent that was stopped itself are not new.
        """
        steps, newest = self.driving.silent_steps, self.trackers[neighbor].newest
        waits = not isinstance(self.barrier, NoBarrier)
        if steps is None or waits or self.agent.pushes or neighbor in self.lost:
            return
        if newest is None or newest.final or not newest.step_seconds:
            self.silent.discard(neighbor)
            return
        quiet = self.trackers[neighbor].lateness(now)
        if quiet <= max(steps * max(newest.step_seconds, self.step_seconds), SILENT_SECONDS):
            self.silent.discard(neighbor)
        elif neighbor not in self.silent:
            self.silent.add(neighbor)
            self.silences[neighbor] += 1
            if math.log10(self.silences[neighbor]).is_integer():
                detail = f"no message of agent {neighbor} has come for {quiet:.3g} s; it is not read until one comes"
                times = f" (silent so far: {self.silences[neighbor]} times)" if self.silences[neighbor] > 1 else ""
                self.unsent.append(Event("neighbor_silent", self.spec.agent, self.version, detail + times))

    def may_read(self, read: Read) -> bool:
        """Return whether all parts of a version that the rule needs are here, without waiting for the network."""
        # The last version is not passed on: its agent splits its mass no more.
        if self.agent.pushes and read.version == self.spec.recipe.num_steps:
            return False
        if not self.is_here(read.neighbor, read.version):
            return False
        if not self.spec.recipe.needs_direction(self.spec.agent, read):
            return True
        direction = self.direction_of(read.neighbor, read.version)
        return direction is not None and self.transport.is_here(direction)

    def is_here(self, neighbor: int, version: int) -> bool:
        """Return whether a version's weights can be read without waiting for the network."""
        message = self.mailbox.get(neighbor, version)
        return (
            message is not None
            and message.contents is not None
            and self.transport.is_here(message.contents.weights)
            and self.transport.is_here(message.contents.buffers)
        )

    def on_message(self, header: Header) -> None:
        """Drop what the newest message replaces."""
        neighbor = header.sender
        if self.agent.pushes or not isinstance(self.barrier, NoBarrier):
            self.silent.discard(neighbor)
        self.trackers[neighbor].take(header, time.time())
        if self.replaces:
            readable = self.mailbox.readable(neighbor, None)
            if readable is not None:
                self.mailbox.forget(neighbor, self.newest_here(neighbor, readable))

    def newest_here(self, neighbor: int, readable: int) -> int:
        """Return the newest readable version whose transfer is done; older ones are not needed any more."""
        versions = sorted((v for v in self.mailbox.versions(neighbor) if v <= readable), reverse=True)
        return next((v for v in versions if self.is_here(neighbor, v)), 0)

    def open_all(self, found: Sequence[Found]) -> list[Received]:
        """Return the versions found, fetched, except those that were rejected, or lost with their sender meanwhile."""
        received: list[Received] = []
        for item in found:
            try:
                received += super().open_all([item])
            except LOST as error:
                k, version = item.read[:2]
                detail = f"version {version} of agent {k} was lost ({type(error).__name__})"
                self.unsent.append(Event("message_lost", self.spec.agent, self.version, detail))
        return received

    def set_links(self, injection: InjectedDelays) -> None:
        """Take in what an injection says of links."""
        self.changes = injection.changes
        self.links = injection.links_from(self.spec.agent, self.spec.receivers)

    def can_reach(self, neighbor: int) -> bool:
        """Return whether messages get through to a neighbor, and a share that is pushed to it is not lost."""
        gone = self.lost | self.silent | self.done
        if self.agent.pushes and (neighbor in gone or self.has_finished(neighbor) or self.is_finishing(neighbor)):
            return False
        return not self.changes.cuts(self.spec.agent, neighbor)

    def is_finishing(self, neighbor: int) -> bool:
        """Return whether a neighbor is ahead, and at its last step: it takes no share any more that is sent now."""
        newest = self.trackers[neighbor].newest if neighbor in self.trackers else None
        return newest is not None and newest.version >= self.spec.recipe.num_steps - 1 and newest.version > self.version

    def has_finished(self, neighbor: int) -> bool:
        """Return whether a neighbor is known to take no more steps."""
        return neighbor in self.trackers and self.trackers[neighbor].has_finished()

    def begin(self) -> None:
        """Put the version that all start from into the mailbox; who is not there has no share of it."""
        super().begin()
        if self.agent.pushes:
            self.held = tuple(k for k in self.agent.receivers() if k not in self.outbox)

    def address(self, header: Header, neighbor: int) -> Header:
        """Return the header for one neighbor, with the delays that are injected on the link to it."""
        link, sent_at = self.links[neighbor], header.sent_at - self.started_at
        latency = link.latency_seconds(header.version, sent_at)
        hold = link.hold_steps(header.version, sent_at)
        return header._replace(latency_seconds=latency, hold_steps=hold)
