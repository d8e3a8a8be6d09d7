"""Starts transfers out of the object store: of a neighbor's versions the newest first, and few at a time."""

from collections.abc import Callable, Sequence
from functools import partial
from threading import Condition

from ray_pcasgd.agents.mailbox import Mailbox
from ray_pcasgd.engines.messages import Contents, Parcel
from ray_pcasgd.engines.transport import Transport

MOST_TRANSFERS = 2
"""Versions of one neighbor that are transferred at a time: while one comes, the next one is asked for."""


class _Neighbor:
    """One neighbor's versions as they are transferred."""

    def __init__(self) -> None:
        self.started = {0}
        """Versions of the mailbox whose transfer has begun, or is done; all agents have the start themselves."""
        self.under_way: set[int] = set()

    def may_start(self, version: int) -> bool:
        """Return whether the transfer of a version may begin: there is room, and it is the newest."""
        return len(self.under_way) < MOST_TRANSFERS and version > max(self.started)


class Transfers:
    """The transfers of neighbors' versions of which only the newest is read.

    A slow link so carries fresh versions: those that a newer one replaces before there is room are never transferred.
    All methods are called with the lock held, and none waits for the network.

    Args:
        transport: Opens parcels.
        mailbox: The messages that have come.
        lock: Of the mailbox.
        on_room: Called with a neighbor, and with the lock held, once a transfer of its has ended: it asks for the next.

    """

    def __init__(
        self, transport: Transport, mailbox: Mailbox[Contents], lock: Condition, on_room: Callable[[int], None]
    ) -> None:
        self._transport = transport
        self._mailbox = mailbox
        self._lock = lock
        self._on_room = on_room
        self._neighbors: dict[int, _Neighbor] = {}

    def is_here(self, neighbor: int, version: int, parcels: Sequence[Parcel]) -> bool:
        """Return whether a version can be read without waiting; if not, its transfer begins where it may.

        Args:
            neighbor: The neighbor.
            version: Its version, of a message in the mailbox. Callers ask for newer ones first.
            parcels: What is needed of it. What is needed later than the rest is transferred as soon as it is asked for.

        """
        if not any(map(self._transport.comes_later, parcels)):
            return True
        own = self._neighbors.setdefault(neighbor, _Neighbor())
        if version in own.started:
            return not self._missing(parcels)
        may_start = own.may_start(version)
        if may_start:
            own.started = {0, version, *own.started.intersection(self._mailbox.versions(neighbor))}
        self._drop_older(neighbor, own, version)
        if not may_start:
            return False
        if missing := self._missing(parcels):
            own.under_way.add(version)
            self._await(neighbor, own, version, missing)
        return not missing

    def _drop_older(self, neighbor: int, own: _Neighbor, version: int) -> None:
        """Drop from the mailbox what is older than a version and will not be transferred: it takes memory of others.

        What follows a version that is, or is to be, here may hold its direction.
        """
        for older in self._mailbox.versions(neighbor):
            if older < version and not {older - 1, older} & own.started:
                self._mailbox.discard(neighbor, older)

    def forget(self, neighbor: int) -> None:
        """Take in that a neighbor begins anew; what it was before is not read."""
        self._neighbors.pop(neighbor, None)

    def _missing(self, parcels: Sequence[Parcel]) -> list[Parcel]:
        """Return what is not here yet, and is transferred from now on."""
        return [parcel for parcel in parcels if not self._transport.is_here(parcel)]

    def _await(self, neighbor: int, own: _Neighbor, version: int, missing: Sequence[Parcel]) -> None:
        self._transport.when_here(missing[0], partial(self._come, neighbor, own, version, missing))

    def _come(self, neighbor: int, own: _Neighbor, version: int, parcels: Sequence[Parcel]) -> None:
        """Take in that the first of some parcels has come; called from another thread, without the lock."""
        with self._lock:
            if self._neighbors.get(neighbor) is not own:
                return
            if missing := self._missing(parcels):
                self._await(neighbor, own, version, missing)
                return
            own.under_way.discard(version)
            self._on_room(neighbor)
