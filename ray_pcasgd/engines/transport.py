"""Transport: how a version gets from the agent that computed it to those that read it. Knows no Ray and no clock.

A message is a header, which is known to its reader before anything else, and contents, whose parcels only the transport
understands:

    publish (sender) -> outbox.send -> the reader's mail thread: check header and parcels -> mailbox -> is_here, open

Which version is read, whether the newest only, every one once, or exactly the one that a row names, is decided over
headers (``agents.mailbox``): a transport delivers headers in the order in which they were sent, and may leave out or
lose contents, but never change them.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ray_pcasgd.agents.mailbox import Header
from ray_pcasgd.engines.messages import Contents, Parcel, RejectedError


class Finite(np.ndarray[Any, Any]):
    """An array whose numbers are known to be finite: its sender, on this host, has found so as it copied them."""


DType = Literal["float32", "uint8"]
"""Of a parcel's array: numbers, or the bytes of a wire format."""


class Sent(NamedTuple):
    """What became of one version's messages."""

    to: frozenset[int]
    """Who was sent one."""
    gone: list[int]
    """Neighbors that were found to be gone."""
    late: int = 0
    """How many messages of versions before it have been sent since, which had to wait."""


class Outbox(ABC):
    """Sends one agent's messages, notices neighbors that are gone, and never waits for one but in ``flush``.

    The training thread sends; the mail thread takes in who has come back (``welcome``) and drops who is gone.
    """

    @abstractmethod
    def send(
        self,
        headers: Mapping[int, Header],
        contents: Contents | None,
        may_skip: bool,
        in_pairs: bool = False,
        may_wait: bool = True,
    ) -> Sent:
        """Send one message to each neighbor that has a header; all of them read the same contents.

        With ``may_skip``, a message to a neighbor that has left many unanswered waits until there is room for it; it is
        dropped once there is a newer one to that neighbor. Where messages are of use ``in_pairs`` (the second has the
        direction of the first), the second of a pair does not wait. What ``may_wait`` says no of is left out for good
        where there is no room for it.
        """

    def keep_back(self, neighbor: int) -> None:  # noqa: B027 - where nothing waits, there is nothing to do
        """Do not send to a neighbor what still waits for it: no message gets through to it any more."""

    @abstractmethod
    def ask(self, neighbor: int, reader: int) -> None:
        """Ask a neighbor for a whole copy, where ``reader`` has lost what its differences follow on."""

    @abstractmethod
    def mark(self, sender: int, cut: int) -> None:
        """Tell every neighbor how many messages were sent to it before a cut."""

    @abstractmethod
    def flush(self) -> None:
        """Wait until every neighbor that is alive has every message."""

    @abstractmethod
    def bytes_in_flight(self) -> int:
        """Return the bytes of all messages that were sent, and that their readers are not known to have."""

    @abstractmethod
    def welcome(self, neighbor: int, handle: Any) -> None:
        """Send to a neighbor that has come back, or come in, from now on."""

    @abstractmethod
    def drop(self, neighbor: int) -> None:
        """Send to a neighbor no more."""

    @abstractmethod
    def __contains__(self, neighbor: int) -> bool:
        """Return whether messages are sent to a neighbor."""


class Transport(ABC):
    """Publishes an agent's versions and opens those of others; one object in each process.

    What was published can be opened as long as somebody holds its contents, the sender or any reader: who drops them
    forgets them, and the memory is free once all have. A transport whose memory Python does not count gives its
    parcels a finalizer. Contents never change once they are published, so a reader may get a view; it must not write.
    """

    @abstractmethod
    def publish(self, weights: Tensor, buffers: Tensor, direction: Tensor | None = None) -> Contents:
        """Make a version readable, copied at most once for all its readers on one host.

        Args:
            weights: Float32, or uint8 where it is encoded, in one dimension, as all three; none of them may be written
                to afterwards.
            buffers: Those that are mixed; may be empty.
            direction: At the version before, where readers need it.

        """

    @abstractmethod
    def outbox(self, neighbors: Mapping[int, Any]) -> Outbox:
        """Return what sends messages to ``neighbors``: each one's number, and how this transport reaches it."""

    @abstractmethod
    def arguments(self, contents: Contents | None) -> list[Any]:
        """Return what stands for contents in a call, as positional arguments: the contents, then pieces of them."""

    @abstractmethod
    def joined(self, contents: Any, pieces: Sequence[Any]) -> Any:
        """Return contents as they were before ``arguments``; what is no contents at all, as it is.

        Raises:
            ValueError: the pieces do not fit together.

        """

    @abstractmethod
    def check(self, name: str, parcel: Any, size: int | None, dtype: DType = "float32") -> None:
        """Check all that can be known of a parcel without fetching it; what is fetched is checked by ``open``.

        Raises:
            RejectedError: it is not a parcel of ``size`` numbers (``None``: of any number) for the tensor ``name``.

        """

    @abstractmethod
    def comes_later(self, parcel: Parcel) -> bool:
        """Return whether a parcel is transferred apart from its message, once somebody asks whether it is here."""

    @abstractmethod
    def is_here(self, parcel: Parcel) -> bool:
        """Return whether a parcel can be opened without waiting; if not, its transfer is under way from now on."""

    @abstractmethod
    def when_here(self, parcel: Parcel, then: Callable[[], None]) -> None:
        """Call ``then``, from any thread, once a parcel can be opened without waiting, or is lost."""

    @abstractmethod
    def fetch(self, parcel: Parcel, seconds: float | None = None) -> np.ndarray[Any, Any]:
        """Return a parcel's array unchecked; wait for it for at most ``seconds``, where they are given.

        Raises:
            LostError: it is lost, or did not come in time.

        """

    @abstractmethod
    def open(self, name: str, parcel: Parcel, size: int | None, dtype: DType, device: torch.device) -> Tensor:
        """Return the tensor of a parcel that ``check`` has let pass; on the CPU a view that must not be written to.

        Raises:
            RejectedError: it is not of that type and of shape (size,), with finite numbers.
            LostError: it is lost.

        """


def check_array(name: str, array: Any, size: int | None, dtype: DType = "float32") -> None:
    """Raise ``RejectedError`` where an array is not of its type and of shape (size,), with finite numbers."""
    if not isinstance(array, np.ndarray) or array.dtype != np.dtype(dtype) or array.ndim != 1:
        kind = f"{array.dtype} of shape {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        raise RejectedError(f"its {name} are {kind}; allowed is {dtype} in one dimension")
    if size is not None and array.size != size and not (name == "buffers" and array.size == 0):
        raise RejectedError(f"its {name} have {array.size} numbers; allowed are {size}")
    if dtype == "uint8" or isinstance(array, Finite):
        return  # what bytes stand for is known once they are decoded
    # The sum costs one pass and no memory; where finite numbers overflow in it, each is looked at.
    with np.errstate(over="ignore", invalid="ignore"):
        if not np.isfinite(array.sum()) and not np.isfinite(array).all():
            raise RejectedError(f"its {name} have numbers that are not finite")
