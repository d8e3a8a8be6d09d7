"""What the planner of peers remembers: its agents, and what each of them knows of each neighbor."""

from collections import deque
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from ray_pcasgd.base.randomness import generator
from ray_pcasgd.base.rounds import Rounds
from ray_pcasgd.records import Read
from ray_pcasgd.schedule.simulation import Channel, Computing, Timing
from ray_pcasgd.schedule.transfers import Downlink

Message = tuple[int, int, int, int]
"""What is sent over a link: when it arrives, its version, the version of its sender that must be known before this
one's weights may be read, and the step that the reader was at when it was sent. There are so many that it is no
``NamedTuple``, which takes several times as long to make."""
_ARRIVES_AT, _VERSION, _KNOWN_AT = range(3)

START: Message = (-1, 0, 0, 0)
"""Version 0, which all have before the first step."""


class PlannedAgent:
    """One agent of a plan."""

    def __init__(self, timing: Timing, rounds: Rounds, number: int, downlink: Downlink | None) -> None:
        self.number = number
        self.downlink = downlink
        """What its host receives through."""
        self.gradients = Computing(timing, number)
        self.incoming: dict[int, Link] = {}
        """By sender."""
        self.outgoing: list[Link] = []
        self.readers: tuple[int, ...] = ()
        """Whom ``outgoing`` leads to."""
        self.last = rounds.last(number)
        """The version at which it has taken all its steps."""
        self.step = 0
        """The round that it is at, which is its newest version."""
        self.start = 0
        self.ready = 0
        self.waits = False
        """Whether the barrier has been tested in vain at this step."""
        self.awaited: dict[int, int] = {}
        """Where it waits, the versions that are not yet in transit to it, by neighbor."""
        self.wakes_at = 0
        """When the last one arrives of those that are in transit."""
        self.reads: tuple[Read, ...] | None = None
        """What it has read for the round that it computes, where agents combine first."""
        self.held: tuple[int, ...] = ()
        """Who was not sent the present version, where every version is read once."""
        self._seed = timing.seed

    @cached_property
    def barrier_draws(self) -> np.random.Generator:
        """What its barrier draws from."""
        return generator(self._seed, "barrier", self.number)

    def reach(self, outgoing: "Sequence[Link]") -> None:
        """Send to these readers from now on."""
        self.outgoing = list(outgoing)
        self.readers = tuple(link.receiver.number for link in outgoing)


class Link:
    """What one reader knows of one neighbor."""

    __slots__ = ("_held", "_last", "channel", "in_flight", "newest", "reads_every", "receiver", "rounds", "sender")

    def __init__(
        self, channel: Channel, rounds: Rounds, reads_every: bool, sender: PlannedAgent, receiver: PlannedAgent
    ) -> None:
        self.channel = channel
        self.rounds = rounds
        self.sender = sender
        self.receiver = receiver
        self.reads_every = reads_every
        """Whether each version is read once, instead of the newest one."""
        self.newest = 0
        """Newest version whose message has arrived."""
        self.in_flight: deque[Message] = deque()
        """What has been sent and is not known to have arrived; of a link with a downlink, what has passed that."""
        self._last = START
        """What was read last."""
        self._held: list[Message] = [START] if self.reads_every else []
        """What has arrived and may yet be read, by rising version and, unless every one is read, ``known_at``."""

    def known_at(self, version: int, taken: int, now: int) -> int:
        """Return the version of the sender that must be known before this one is read, sent now."""
        return version + self.rounds.versions_in(self.sender.number, self.channel.hold_steps(taken, now))

    def advance(self, now: int) -> None:
        """Let everything arrive that is due."""
        in_flight, held = self.in_flight, self._held
        while in_flight and in_flight[0][_ARRIVES_AT] <= now:
            message = in_flight.popleft()
            self.newest = message[_VERSION]
            # Versions that become readable no earlier than a newer one are never the newest readable.
            while held and held[-1][_KNOWN_AT] >= message[_KNOWN_AT] and not self.reads_every:
                held.pop()
            held.append(message)

    @property
    def reached(self) -> int:
        """The newest version that is known; of a sender that has taken all its steps, none is waited for any more."""
        return max(self.newest, self.receiver.step) if self.newest == self.sender.last else self.newest

    def read_newest(self, step: int, capped: bool, once: bool) -> Read | None:
        """Return what the receiver reads at its step, the newest version that it may read, and never an older one.

        With ``once``, no version is read where no new one has come, and what a delay in steps holds back is let go by
        the sender's steps: its next message may be long in coming.
        """
        sender, held, last = self.sender, self._held, self._last
        published = sender.step
        # Where not every version is sent, messages do not tell how far the sender has come.
        known = published if once else self.newest
        if capped:
            published = min(published, step)
            known = min(known, step)
        while held and held[0][_KNOWN_AT] <= known:
            self._last = held.pop(0)
        if once and self._last is last:
            return None
        _, version, _, reader_step = self._last
        # What an earlier, uncapped read has seen may be newer than the cap.
        return Read(sender.number, version, published - version if published > version else 0, step - reader_step)

    def read_every(self, step: int, capped: bool) -> list[Read]:
        """Return all versions that the receiver may read at its step, and has not.

        The last one is not passed on: its agent splits its mass no more.
        """
        published, known = self.sender.step, self.newest
        if capped:
            published, known = min(published, step), min(known, step)
        taken = [message for message in self._held if message[_KNOWN_AT] <= known]
        self._held = [message for message in self._held if message[_KNOWN_AT] > known]
        return [
            Read(self.sender.number, version, max(0, published - version), step - reader_step)
            for _, version, _, reader_step in taken
            if version < self.sender.last
        ]
