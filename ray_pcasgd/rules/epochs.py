"""A gathering policy in epochs: one synchronous update of all workers, then asynchronous ones."""

from typing import ClassVar, Literal

from pydantic import Field

from ray_pcasgd.rules.gathering_base import Gathering


class Epochs(Gathering):
    """Epochs of a synchronous snapshot, for which all workers deliver, and asynchronous updates of one gradient each.

    An epoch's snapshot is made of a full gradient of every worker, all at the weights where the epoch begins; they are
    waited for, and what was begun before is ignored. Workers that are known to be gone are not waited for. After it
    each gradient is an update, as with ``asgd``.
    """

    name: Literal["epochs"] = "epochs"
    updates: int | None = Field(None, ge=1)
    """m: updates of an epoch after its snapshot, from 1 on. Not given: twice the mini-batches of all shards together,
    2 n / b, so that about two passes over the data follow one full gradient (Johnson, Zhang, NIPS 2013)."""

    waits: ClassVar[bool] = True

    @property
    def epoch(self) -> int:
        """``1 + m``, with the snapshot."""
        return 1 + (self.updates or 1)

    def num_gradients(self, num_workers: int) -> int:
        """Return 1, of the updates after a snapshot."""
        return 1
