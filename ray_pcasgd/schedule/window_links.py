"""What links say of messages: of all of a window at once."""

from collections.abc import Callable, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np

from ray_pcasgd.base.rounds import Rounds
from ray_pcasgd.schedule.bandwidth import transmission_nanoseconds
from ray_pcasgd.schedule.delays import LinkTimes
from ray_pcasgd.schedule.segments import LIMIT, OutOfRangeError, bounds_of, spread
from ray_pcasgd.schedule.simulation import A_SECOND, Timing, in_nanoseconds, seconds_of


class Published(NamedTuple):
    """The versions that are published in a window, agent by agent, each one's in their order."""

    counts: np.ndarray
    """Versions of each agent, shape (agents,)."""
    bounds: np.ndarray
    """Where they lie, shape (agents + 1,)."""
    agent: np.ndarray
    """Shape (versions,)."""
    version: np.ndarray
    moment: np.ndarray
    now: np.ndarray
    """The nanosecond of the moment."""


class Sent(NamedTuple):
    """What is sent in a window, link by link, each one's messages in their order."""

    counts: np.ndarray
    """Messages of each link, shape (links,)."""
    bounds: np.ndarray
    """Where they lie, shape (links + 1,)."""
    source: np.ndarray
    """The place of the message's version in ``Published``, shape (messages,)."""
    version: np.ndarray
    moment: np.ndarray
    now: np.ndarray
    """The nanosecond of the moment."""


class _Kind(NamedTuple):
    """Links of which the same is said."""

    times: LinkTimes
    members: np.ndarray


class _Said(NamedTuple):
    """A whole number for each message."""

    values: np.ndarray
    """Of all messages of a link, shape (links,); 0 where they differ."""
    changing: list[_Kind]
    """The links whose messages differ."""

    @property
    def is_zero(self) -> bool:
        """Whether it is 0 for all messages."""
        return not self.changing and not self.values.any()


class Links:
    """All links, sorted by receiver and then by sender."""

    def __init__(self, timing: Timing, rounds: Rounds, neighbors: Sequence[tuple[int, ...]], num_bytes: int) -> None:
        self.degree = np.array([len(own) for own in neighbors], dtype=np.int64)
        """Links that lead to each agent, shape (agents,)."""
        self.bounds = bounds_of(self.degree)
        """Where they lie, shape (agents + 1,)."""
        self.receiver = np.repeat(np.arange(len(neighbors)), self.degree)
        self.sender = np.fromiter(chain.from_iterable(neighbors), dtype=np.int64, count=len(self.receiver))
        self.reverse = self._reverse()
        self.num_bytes = num_bytes
        """Of each message."""
        self._length = np.array([rounds.length(k) for k in range(len(neighbors))], dtype=np.int64)[self.sender]
        """Mini-batches of the sender's rounds."""
        self._num_steps = timing.num_steps
        kinds = _kinds(timing, self.sender, self.receiver)
        self._latency = self._said(kinds, _lasting_latency)
        self._service = self._said(kinds, self._lasting_service)
        self._hold = self._said(kinds, lambda times: times.lasting_hold)
        self.has_latencies = not self._latency.is_zero
        self.has_services = not self._service.is_zero
        """Whether any link takes time to transmit."""
        self.has_holds = not self._hold.is_zero
        self.may_overtake = bool(self._latency.changing)
        """Whether delays alone would let messages of a link overtake each other."""

    def _reverse(self) -> np.ndarray | None:
        """Return the place of the link from each one's receiver to its sender; ``None``: some have none."""
        order = np.argsort(self.sender * len(self.degree) + self.receiver)
        is_symmetric = np.array_equal(self.sender[order], self.receiver) and np.array_equal(
            self.receiver[order], self.sender
        )
        return order if is_symmetric else None

    def send(self, published: Published) -> Sent:
        """Return the messages of the versions that are published in a window."""
        counts = published.counts[self.sender]
        source = spread(published.bounds[self.sender], counts)
        version, moment, now = (one[source] for one in (published.version, published.moment, published.now))
        return Sent(counts, bounds_of(counts), source, version, moment, now)

    def services(self, sent: Sent) -> np.ndarray:
        """Return the nanoseconds that links transmit messages."""
        return self._of(sent, self._service, self._services, np.rint)

    def latencies(self, sent: Sent) -> np.ndarray:
        """Return the nanoseconds of delay."""
        return self._of(sent, self._latency, LinkTimes.many_latencies, _nanoseconds)

    def known_at(self, sent: Sent) -> np.ndarray:
        """Return the version of its sender that must be known before each message's is read."""
        holds = self._of(sent, self._hold, LinkTimes.many_holds, np.rint)
        known_at: np.ndarray = sent.version - -holds // np.repeat(self._length, sent.counts)
        return known_at

    def _said(self, kinds: list[_Kind], said: Callable[[LinkTimes], int | None]) -> _Said:
        values = np.zeros(len(self.sender), dtype=np.int64)
        changing = []
        for kind in kinds:
            value = said(kind.times)
            if value is None:
                changing.append(kind)
            elif value >= LIMIT // 4:
                raise OutOfRangeError
            else:
                values[kind.members] = value
        return _Said(values, changing)

    def _of(
        self,
        sent: Sent,
        said: _Said,
        many: Callable[[LinkTimes, np.ndarray, np.ndarray], np.ndarray],
        rounded: Callable[[np.ndarray], np.ndarray],
    ) -> np.ndarray:
        """Return a whole number for all messages that are sent in a window."""
        result = np.repeat(said.values, sent.counts)
        if not said.changing:
            return result
        taken = np.minimum(sent.version * np.repeat(self._length, sent.counts), self._num_steps)
        sent_at, bounds = seconds_of(sent.now), sent.bounds.tolist()
        found = np.zeros(len(result))
        for times, members in said.changing:
            own: slice | np.ndarray = slice(bounds[members[0]], bounds[members[0] + 1])
            if len(members) > 1:
                own = spread(sent.bounds[members], sent.counts[members])
            found[own] = many(times, taken[own], sent_at[own])
        result += rounded(found).astype(np.int64)
        return result

    def _lasting_service(self, times: LinkTimes) -> int | None:
        return self._transmission(times.bandwidth(0, 0.0)) if times.has_lasting_bandwidth else None

    def _services(self, times: LinkTimes, steps: np.ndarray, sent_at: np.ndarray) -> np.ndarray:
        said = [self._transmission(one) for one in times.many_bandwidths(steps, sent_at)]
        if max(said, default=0) > 2**53:  # the last one that is a floating-point number as all before it are
            raise OutOfRangeError
        return np.array(said, dtype=np.float64)

    def _transmission(self, bandwidth: str | None) -> int:
        return 0 if bandwidth is None else transmission_nanoseconds(self.num_bytes, bandwidth)


def _kinds(timing: Timing, senders: np.ndarray, receivers: np.ndarray) -> list[_Kind]:
    """Return all links by what is said of them; one whose times are drawn is alone, since its streams are its own."""
    some = [entry for entry in timing.links if not entry.covers_all]
    groups = [np.arange(len(senders))] if len(senders) else []
    if some:
        covered: dict[tuple[bool, ...], list[int]] = {}
        for place, (k, i) in enumerate(zip(senders.tolist(), receivers.tolist(), strict=True)):
            covered.setdefault(tuple([entry.covers(k, i, timing.clusters) for entry in some]), []).append(place)
        groups = [np.array(members) for members in covered.values()]
    kinds = []
    for members in groups:
        times = _times_of(timing, senders, receivers, members[0])
        kinds.append(_Kind(times, members))
        if times.draws:
            kinds[-1:] = [_Kind(_times_of(timing, senders, receivers, place), np.array([place])) for place in members]
    return kinds


def _times_of(timing: Timing, senders: np.ndarray, receivers: np.ndarray, place: np.integer) -> LinkTimes:
    return LinkTimes(timing.links, timing.clusters, timing.seed, int(senders[place]), int(receivers[place]))


def _lasting_latency(times: LinkTimes) -> int | None:
    return in_nanoseconds(times.latency_seconds(0, 0.0)) if times.has_lasting_latency else None


def _nanoseconds(seconds: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        nanoseconds: np.ndarray = np.rint(seconds * A_SECOND)
    if not np.all(nanoseconds < LIMIT // 4):
        raise OutOfRangeError
    return nanoseconds
