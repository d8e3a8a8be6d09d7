"""One server's arrivals: which gradients its next update takes, and how far it has come.

Plain objects that the planner and a live server share.
"""

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ray_pcasgd.rules.balance import Balance
from ray_pcasgd.rules.gathering_base import Gathering

if TYPE_CHECKING:
    from ray_pcasgd.base.state import State


class Arrival(NamedTuple):
    """A gradient that has come to the server."""

    worker: int
    version: int
    """The worker's version: this is its gradient number ``version``."""
    computed_at: int
    """The server's version that the gradient was computed at."""
    round: int
    """The newest server version that the worker knew when it started."""


def has_expired(gathering: Gathering, begun: int, version: int) -> bool:
    """Return whether a server at ``version`` takes no more what was begun when its newest version was ``begun``."""
    if gathering.oldest_read(begun) != gathering.oldest_read(version):
        return True
    return gathering.expires is not None and version - begun >= gathering.expires


class Gatherer:
    """One server's arrivals: gradients go in, updates come out."""

    def __init__(self, gathering: Gathering, num_workers: int, version: int = 0) -> None:
        self.gathering = gathering
        self._num_workers = num_workers
        self._gone: set[int] = set()
        """Workers that are known not to be there."""
        self._wanted = gathering.num_gradients(num_workers)
        self.version = version
        """The server's version."""
        self.waiting: list[Arrival] = []
        """Gradients that the next update will take."""
        self._newcomer: int | None = None
        """The worker whose gradient has come since the last update was asked for."""
        self._balance = Balance(gathering) if gathering.averages != "gradients" else None
        self._grace_is_over = False
        every = gathering.adapts_every
        self._adaptive = None if every is None else _AdaptiveK(gathering, num_workers, every)

    @property
    def num_workers(self) -> int:
        """The workers whose gradients the next update may wait for: of those that are gone, who have delivered for it.

        **Choice**: a gradient that waits for an update stays when its worker goes, and the update still waits for as
        many others as it would have: synchronous SGD takes a gradient of each worker that is there, and that one.
        """
        return self._num_workers - len(self._gone.difference(one.worker for one in self.waiting))

    @property
    def k(self) -> int:
        """The gradients of the next update: no more than there are workers, where these wait for it."""
        wanted = self._num_workers if self.gathering.begins_epoch(self.version) else self._wanted
        return max(1, min(wanted, self.num_workers) if self.gathering.waits else wanted)

    def arrive(self, arrival: Arrival) -> bool:
        """Take in a gradient; return whether it counts, or comes too late."""
        if has_expired(self.gathering, arrival.round, self.version):
            if self._adaptive is not None:
                self._adaptive.ignore(arrival)
            return False
        self.waiting.append(arrival)
        self._newcomer = arrival.worker
        if self._adaptive is not None:
            self._adaptive.expect(arrival)
        return True

    def renews(self, taken: Sequence[Arrival]) -> bool:
        """Return whether those that are answered after an update, or without one, get the newest weights.

        Else they go on at those that they have: in rounds, unless it is their turn.
        """
        return bool(taken) or self.gathering.averages != "rounds"

    @property
    def is_in_grace(self) -> bool:
        """Whether the next update has its K gradients, and waits for more: until ``end_grace`` says so, or all came."""
        is_full = self.k <= len(self.waiting) < self.num_workers
        return is_full and self.gathering.grace > 0 and not self._grace_is_over

    def end_grace(self) -> None:
        """Note that the next update waits for no more than it has."""
        self._grace_is_over = True

    def take(self) -> tuple[Arrival, ...]:
        """Return the gradients of the next update, in the order of their arrival, once it is due; else an empty tuple.

        What is returned is taken: the server's version rises by one.
        """
        if self._balance is not None:
            there = set(range(self._num_workers)) - self._gone
            number = self._balance.number_due(self.waiting, self._newcomer, there)
            place = len(self.waiting) - number
            taken, left = self.waiting[place:], self.waiting[:place]
        elif len(self.waiting) < self.k or self.is_in_grace:
            return ()
        else:
            number = len(self.waiting) if self.gathering.grace > 0 else self.k
            taken, left = self.waiting[:number], self.waiting[number:]
        self._newcomer = None
        if not taken:
            return ()
        self._grace_is_over = False
        self.version += 1
        self.waiting = [one for one in left if not has_expired(self.gathering, one.round, self.version)]
        return tuple(taken)

    def state(self) -> "State":
        """Return the state from which K follows; gradients that wait for an update are not part of it."""
        return {"wanted": self._wanted, "adaptive": self._adaptive.state() if self._adaptive else None}

    def restore(self, state: "State") -> None:
        """Go on from a state, without gradients that wait."""
        self._wanted = state["wanted"]
        if self._adaptive is not None:
            self._adaptive.restore(state["adaptive"])

    def lose(self, worker: int) -> None:
        """Note that a worker is gone, which is no longer waited for."""
        self._gone.add(worker)

    def gain(self, worker: int) -> None:
        """Note that a lost worker is back; where workers wait, what it has delivered before is given up.

        It begins anew, and no update takes two gradients of one worker there.
        """
        self._gone.discard(worker)
        if self._balance is not None:
            self._balance.renew(worker)
        if self.gathering.waits:
            self.waiting = [one for one in self.waiting if one.worker != worker]

    def tell(self, worker: int, version: int, loss: float) -> None:
        """Take in the mini-batch loss of a gradient; needed only where K is adapted."""
        if self._adaptive is not None:
            self._adaptive.tell(worker, version, loss)

    def adapt(self, now: float) -> bool:
        """Set K anew where that is due by second ``now``; return whether all losses were there that it needs."""
        while self._adaptive is not None and self._adaptive.is_due(now):
            if self._adaptive.is_owed_losses():
                return False
            self._wanted = self._adaptive.next_k(self.k)
            self._adaptive.skip_to(now)
        return True


_MOST_INTERVALS = 10_000
"""Intervals that are passed over one by one."""


class _AdaptiveK:
    """The memory of losses from which a policy such as AdaSync sets K anew."""

    def __init__(self, gathering: Gathering, num_workers: int, every_seconds: float) -> None:
        self._gathering = gathering
        self._num_workers = num_workers
        self._every = every_seconds
        self._due = every_seconds
        self._first: dict[int, float] = {}
        """The first loss of each worker."""
        self._owed: set[tuple[int, int]] = set()
        """Gradients of this interval whose losses are not known yet, by worker and version."""
        self._early: dict[tuple[int, int], float] = {}
        """Losses that are known before their gradients have arrived."""
        self._losses: dict[tuple[int, int], float] = {}
        """The losses of this interval."""

    def expect(self, arrival: Arrival) -> None:
        key = (arrival.worker, arrival.version)
        if key in self._early:
            self._add(key, self._early.pop(key))
        else:
            self._owed.add(key)

    def ignore(self, arrival: Arrival) -> None:
        self._early.pop((arrival.worker, arrival.version), None)

    def tell(self, worker: int, version: int, loss: float) -> None:
        if (worker, version) in self._owed:
            self._owed.remove((worker, version))
            self._add((worker, version), loss)
        else:
            self._early[worker, version] = loss

    def is_due(self, now: float) -> bool:
        return now >= self._due

    def is_owed_losses(self) -> bool:
        return bool(self._owed)

    def next_k(self, k: int) -> int:
        self._due += self._every
        if not self._losses:
            return k
        before = math.fsum(self._first.values()) / len(self._first)
        now = math.fsum(self._losses.values()) / len(self._losses)
        self._losses = {}
        return self._gathering.adapted(self._num_workers, k, before / now if now > 0 else math.inf)

    def skip_to(self, now: float) -> None:
        """Pass over intervals that have no losses, in which K stays, up to the next one."""
        for _ in range(_MOST_INTERVALS):
            if not self.is_due(now):
                return
            self._due += self._every
        # So many that adding them up one by one would take long, or not change a late time at all.
        self._due = max(now + self._every, math.nextafter(now, math.inf))

    def state(self) -> "State":
        return {"due": self._due, "first": dict(self._first), "losses": dict(self._losses)}

    def restore(self, state: "State") -> None:
        self._due, self._first, self._losses = state["due"], dict(state["first"]), dict(state["losses"])

    def _add(self, key: tuple[int, int], loss: float) -> None:
        self._first.setdefault(key[0], loss)
        self._losses[key] = loss


class Position:
    """How far a server has come, in steps of a peer: mini-batches that it has taken over the number of workers."""

    def __init__(self, local_steps: Sequence[int]) -> None:
        self._local_steps = local_steps
        """Mini-batches of each worker's message."""
        self._batches = 0
        self._at_version = [0]

    @property
    def steps(self) -> int:
        """The present position, rounded down."""
        return self._at_version[-1]

    def advance(self, workers: Iterable[int]) -> None:
        """Note an update that takes a message of each of ``workers``, one as often as it is named."""
        self._batches += sum(self._local_steps[worker] for worker in workers)
        self._at_version.append(self._batches // len(self._local_steps))

    def state(self) -> list[int]:
        """Return what ``restore`` needs: the mini-batches so far, and the position at each version."""
        return [self._batches, *self._at_version]

    def restore(self, state: Sequence[int]) -> None:
        """Be where a state was taken."""
        self._batches, *self._at_version = state

    def version_before(self, steps: int) -> int:
        """Return the newest version that was reached at least ``steps`` steps ago, or version 0."""
        if steps <= 0:
            return len(self._at_version) - 1
        return max(0, bisect_right(self._at_version, self.steps - steps) - 1)
