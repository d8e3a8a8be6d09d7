"""Agents that take along, when they come back, what an optimizer has remembered: their neighbors' or their own."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from ray_pcasgd.agents.participant import Published, Received
from ray_pcasgd.agents.peer import AgentSpec, Peer
from ray_pcasgd.records import Read, Row
from ray_pcasgd.tasks.task import TaskData

WAYS = {
    "anew": "the optimizer begins anew",
    "donor": "the optimizer's state of the first neighbor that it reads",
    "mean": "the mean of the states of all that it reads",
    "own": "its own state, of when it left",
}
"""What an agent that comes back may go on with, besides the mean of its neighbors' weights."""


@dataclass(frozen=True, kw_only=True)
class ReturningSpec(AgentSpec):
    """A peer's, with the way in which its optimizer comes back."""

    way: str

    def build(self, data: TaskData) -> "ReturningPeer":
        """Return the agent."""
        return ReturningPeer(self, data)


@dataclass(eq=False)
class WithMemory(Published):
    """A version, with what the optimizer remembers there; the states of own optimizers are never changed in place."""

    memory: Any = None


class ReturningPeer(Peer):
    """A peer that publishes its optimizer's states."""

    spec: ReturningSpec

    def __init__(self, spec: ReturningSpec, data: TaskData) -> None:
        super().__init__(spec, data)
        self.offered: dict[int, Any] = {}

    def message(self, row: Row | None) -> Published:
        """Return the present version, with the optimizer's state."""
        published = super().message(row)
        return WithMemory(published.weights, published.buffers, mass=published.mass, memory=self.optimizer_state)

    def opened(self, read: Read, published: Published) -> Received:
        """Return a neighbor's version, and note the state that came with it."""
        assert isinstance(published, WithMemory)
        self.offered[read.neighbor] = published.memory
        return super().opened(read, published)

    def rejoin(self, received: Sequence[Received], version: int) -> None:
        """Come back as any peer does, but for the optimizer."""
        own = self.optimizer_state
        super().rejoin(received, version)
        offers = [self.offered[one.read.neighbor] for one in received]
        if self.spec.way == "donor":
            self.optimizer_state = offers[0]
        elif self.spec.way == "mean":
            self.optimizer_state = mean_of(offers)
        elif self.spec.way == "own":
            self.optimizer_state = own


def mean_of(states: Sequence[Any]) -> Any:
    """Return the mean of optimizers' states, tensor by tensor."""

    def mean(*tensors: Tensor) -> Tensor:
        return torch.stack(tensors).mean(0)

    return tree_map(mean, *states)


def with_return(rows: Iterable[Row], agent: int, leaves_at: int, returns_at: int) -> list[Row]:
    """Return a plan's rows, in which an agent is away between two of its steps, and then comes back.

    It comes back as the mean of its neighbors at ``returns_at``; nobody reads what it would have published meanwhile.
    The plan's agents take their steps at once.
    """
    found = []
    for row in rows:
        if row.agent != agent:
            kept = [read for read in row.reads if read.neighbor != agent or not leaves_at < read.version < returns_at]
            found.append(row._replace(reads=tuple(kept)))
        elif row.step == returns_at - 1:
            newest = tuple(Read(read.neighbor, returns_at, 0, 0) for read in row.reads)
            found.append(row._replace(reads=newest, kind="rejoined"))
        elif row.step >= returns_at:
            # Of its own steps, those since it came back are all that it knows of.
            since = row.step - returns_at
            found.append(row._replace(reads=tuple(read._replace(age=min(read.age, since)) for read in row.reads)))
        elif row.step < leaves_at:
            found.append(row)
    return sorted(found, key=lambda row: (row.end, row.kind == "rejoined", row.agent))
