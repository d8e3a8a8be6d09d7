"""A transport within one process: a message's whole way without a cluster."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor

from ray_pcasgd.agents.mailbox import Header
from ray_pcasgd.engines.messages import Contents, LostError, Parcel, RejectedError
from ray_pcasgd.engines.transport import DType, Outbox, Sent, Transport, check_array


class Reader(Protocol):
    """Whom messages are sent to: it takes each in as it comes, and may reject it."""

    def receive(self, header: Header, contents: Contents | None, *pieces: Any) -> None:
        """Take in a message."""

    def take_mark(self, neighbor: int, cut: int, sent: int) -> None:
        """Take in how many messages a neighbor had sent before a cut."""

    def send_whole(self, reader: int) -> None:
        """Take in that a reader asks for a whole copy."""


class Ticket:
    """A parcel: stands for one published array, once for all that hold it."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self.array: np.ndarray[Any, Any] | None = array
        """``None`` once it is lost."""


class LoopBack(Transport):
    """Publishes for readers in the same process."""

    def __init__(self) -> None:
        self._published: WeakSet[Ticket] = WeakSet()

    def __len__(self) -> int:
        """Return how many of the arrays published here somebody still holds."""
        return len(self._published)

    def lose(self) -> None:
        """Lose all that was published here, as if the sender's process had ended."""
        for ticket in self._published:
            ticket.array = None

    def publish(self, weights: Tensor, buffers: Tensor, direction: Tensor | None = None) -> Contents:
        """Copy a version, for all its readers."""
        return Contents(
            self._ticket(weights), self._ticket(buffers), None if direction is None else self._ticket(direction)
        )

    def _ticket(self, tensor: Tensor) -> Ticket:
        ticket = Ticket(tensor.detach().cpu().clone().numpy())
        self._published.add(ticket)
        return ticket

    def outbox(self, neighbors: Mapping[int, Reader]) -> "LoopBackOutbox":
        """Return what calls readers at once, in the thread of the sender."""
        return LoopBackOutbox(self, neighbors)

    def arguments(self, contents: Contents | None) -> list[Any]:
        """Return the contents alone: nothing is cut into pieces."""
        return [contents]

    def joined(self, contents: Any, pieces: Sequence[Any]) -> Any:
        """Return the contents as they are."""
        if pieces:
            raise ValueError(f"there are more pieces than the contents name: {len(pieces)}")
        return contents

    def check(self, name: str, parcel: Any, size: int | None, dtype: DType = "float32") -> None:
        """Check that a parcel is a ticket, and its array unless that is lost."""
        if not isinstance(parcel, Ticket):
            raise RejectedError(f"its {name} are of type {type(parcel).__name__}; allowed is a ticket")
        if parcel.array is not None:
            check_array(name, parcel.array, size, dtype)

    def comes_later(self, parcel: Parcel) -> bool:
        """Return False: what is published is here."""
        return False

    def is_here(self, parcel: Parcel) -> bool:
        """Return True: nothing has to be waited for, and what is lost is known to be."""
        return True

    def when_here(self, parcel: Parcel, then: Callable[[], None]) -> None:
        """Call ``then`` at once."""
        then()

    def fetch(self, parcel: Parcel, seconds: float | None = None) -> np.ndarray[Any, Any]:
        """Return a ticket's array."""
        array: np.ndarray[Any, Any] | None = parcel.array
        if array is None:
            raise LostError("the process that published it has ended")
        return array

    def open(self, name: str, parcel: Parcel, size: int | None, dtype: DType, device: torch.device) -> Tensor:
        """Return a ticket's tensor, which was checked as it came."""
        return torch.from_numpy(self.fetch(parcel)).to(device)


class LoopBackOutbox(Outbox):
    """Calls each reader at once; no message is left out, and no reader is ever gone."""

    def __init__(self, transport: LoopBack, neighbors: Mapping[int, Reader]) -> None:
        self._transport = transport
        self._readers = dict(neighbors)
        self._sent = dict.fromkeys(neighbors, 0)

    def send(
        self,
        headers: Mapping[int, Header],
        contents: Contents | None,
        may_skip: bool,
        in_pairs: bool = False,
        may_wait: bool = True,
    ) -> Sent:
        """Send one message to each neighbor that has a header."""
        to = [k for k in headers if k in self._readers]
        for k in to:
            self._readers[k].receive(headers[k], *self._transport.arguments(contents))
            self._sent[k] += 1
        return Sent(frozenset(to), [])

    def ask(self, neighbor: int, reader: int) -> None:
        """Ask a neighbor for a whole copy."""
        self._readers[neighbor].send_whole(reader)

    def mark(self, sender: int, cut: int) -> None:
        """Tell every neighbor how many messages were sent to it before a cut."""
        for k, reader in self._readers.items():
            reader.take_mark(sender, cut, self._sent[k])

    def flush(self) -> None:
        """Return at once: every message has been taken in."""

    def bytes_in_flight(self) -> int:
        """Return 0: every message has been taken in."""
        return 0

    def welcome(self, neighbor: int, handle: Reader) -> None:
        """Send to a neighbor from now on."""
        self._readers[neighbor] = handle
        self._sent.setdefault(neighbor, 0)

    def drop(self, neighbor: int) -> None:
        """Send to a neighbor no more."""
        self._readers.pop(neighbor, None)

    def __contains__(self, neighbor: int) -> bool:
        return neighbor in self._readers
