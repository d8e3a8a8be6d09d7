"""Plans the adversary of asynchronous shared memory: one gradient is held back while others are taken one by one."""

from collections.abc import Iterator
from dataclasses import dataclass

from ray_pcasgd.records import Read, Row
from ray_pcasgd.schedule.simulation import Computing, Timing, row_times


@dataclass(frozen=True, kw_only=True)
class AdversaryPlanner(Timing):
    """A run of workers 0 to P - 1 and of one server, agent P, in periods of ``delay + 1`` updates.

    The last worker reads the server's version at a period's start; the others, in turn, read the newest one, compute
    and deliver, ``delay`` times; then the last worker delivers, at the same moment as the one before it.
    """

    num_workers: int
    delay: int
    """Updates over which the last worker's gradient is held back."""

    def __iter__(self) -> Iterator[Row]:
        computing = [Computing(self, worker) for worker in range(self.num_workers - 1)]
        sent = [0] * self.num_workers
        held, now = (0, 0), 0
        for version in range(self.num_steps * self.num_workers):
            place = version % (self.delay + 1)
            if place == 0:
                held = now, version
            if place < self.delay:
                worker = (version - version // (self.delay + 1)) % (self.num_workers - 1)
                start, read = now, version
                now = computing[worker].ready_at(now)
            else:
                worker, (start, read) = self.num_workers - 1, held
            # A worker learns of no newer version before it has delivered.
            yield Row(worker, sent[worker], *row_times(start, now, now), (Read(self.num_workers, read, 0, 0),), "step")
            sent[worker] += 1
            late = version - read
            reads = (Read(worker, sent[worker], late, late),)
            yield Row(self.num_workers, version, *row_times(now, now, now), reads)
