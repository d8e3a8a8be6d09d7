"""Peers that send differences, compressed: by how much they are away from a public copy, which their readers have, too.

What rules see of an agent is its public copy, so that whatever reads it sees the same: on the local engine, where a
version that is published is the copy itself; and on actors, where the difference travels, and each reader adds up what
comes. A difference means something only to who has the version before. So a reader takes in all messages of a
neighbor, in order, also those that no step of its own reads, and refuses one that does not follow on what it has; and a
sender sends its whole copy, as float32, to whom it has not sent the version before, who was cut off, or comes back, and
to who has lost a message and asks for it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ray_pcasgd.agents.combining import CombiningPeer, CombiningSpec
from ray_pcasgd.agents.copies import HeldCopies, PublicCopy
from ray_pcasgd.agents.participant import Incoming, Outcome, Published, Received
from ray_pcasgd.base.state import State
from ray_pcasgd.records import Read, Row, Snapshot
from ray_pcasgd.tasks.task import TaskData


@dataclass(frozen=True, kw_only=True)
class DifferingSpec(CombiningSpec):
    """What a peer that sends differences is built from."""

    def build(self, data: TaskData) -> "DifferingPeer":
        """Return the agent."""
        return DifferingPeer(self, data)


class DifferingPeer(CombiningPeer):
    """One peer of a run that sends differences, in the format of ``wire.weights``."""

    copies: HeldCopies

    def __init__(self, spec: DifferingSpec, data: TaskData) -> None:
        super().__init__(spec, data)
        form = spec.recipe.wire.weights
        self.public = PublicCopy(form, self.weights)
        self.copies = HeldCopies(form)

    @property
    def public_copy(self) -> tuple[Tensor, ...]:
        """What the agent's readers know of it, shape (D,)."""
        return (self.public.weights,)

    @property
    def difference(self) -> Tensor | None:
        """What leads from the copy before to that of the present version; ``None`` where the whole copy travels."""
        return self.public.difference

    def advanced(self, before: tuple[Tensor, Tensor], loss: float, measures: dict[str, float]) -> Outcome:
        """Come to the next version, and let the public copy follow."""
        outcome = super().advanced(before, loss, measures)
        self.public.follow(self.weights, (self.spec.recipe.seed, "weights", self.spec.agent, self.version))
        return outcome

    def rejoin(self, received: Sequence[Received], version: int) -> None:
        """Come back into the run; the weights that the agent begins with are its public copy."""
        super().rejoin(received, version)
        self.public.begin(self.weights)

    def place(self, version: int, snapshot: Snapshot) -> None:
        """Put the agent where it was at a version; its weights there are its public copy."""
        super().place(version, snapshot)
        self.public.begin(self.weights)

    def _published(self, sender: int) -> Published:
        """Return the public copy at the present version."""
        return Published(self.public.weights, self.buffers)

    def starts(self) -> dict[int, Published]:
        """Return version 0 of each neighbor, which all know: the copy of the agent itself."""
        return dict.fromkeys(self.spec.neighbors, self.message(None))

    def opened(self, read: Read, published: Published) -> Received:
        """Return a neighbor's public copy as this agent reads it."""
        return Received(read, published.weights, published.buffers)

    def incoming(self) -> Incoming:
        """Return what the messages to the agent hold: whole copies, or differences in their format."""
        form = self.spec.recipe.wire.weights
        encoded = {} if form.is_plain else {"difference": form.num_bytes(self.weights.numel())}
        return super().incoming()._replace(encoded=encoded, are_differences=True)

    def outgoing(self) -> Mapping[str, int | None]:
        """Return nothing: what is published in this process are whole copies."""
        return {}

    def bytes_sent(self, row: Row, receivers: int | None = None) -> int:
        """Return the bytes that are sent of the present version: who has come back sends it whole."""
        number = len(self.receivers()) if receivers is None else receivers
        each = self.message_bytes + (self.bytes_saved if row.kind == "rejoined" else 0)
        return number * each

    @property
    def bytes_saved(self) -> int:
        """By how many bytes a difference is shorter than the whole copy, which is sent as float32."""
        numbers = self.weights.numel()
        return 4 * numbers - self.spec.recipe.wire.weights.num_bytes(numbers)

    def state(self) -> State:
        """Return all that the steps to come depend on; its tensors are the agent's own."""
        return super().state() | {"public": self.public.weights, "copies": self.copies.state()}

    def restore(self, state: State) -> None:
        """Go on from a state of an agent with the same settings, numbers excepted."""
        super().restore(state)
        device = self.replica.device
        self.public.begin(state["public"].to(device))
        self.copies.restore(state["copies"], device)
