"""Many agents' mini-batches as one: drawn by one indexing where they are rows of the same tensors."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ray_pcasgd.agents.learner import AnyBatches
from ray_pcasgd.engines.local.history import Integers
from ray_pcasgd.tasks.batches import Batches, next_of_each


class Streams:
    """One stream of mini-batches of each agent."""

    def __init__(self, streams: Sequence[AnyBatches]) -> None:
        self._streams = streams
        self._alike = [one for one in streams if isinstance(one, Batches) and one.is_taken_with(streams[0])]

    def next_of(self, agents: Integers) -> tuple[Tensor, Tensor]:
        """Return the next batches of some agents, stacked: inputs and targets, both of shape (B, n, ...)."""
        if len(self._alike) == len(self._streams):
            return next_of_each([self._alike[agent] for agent in agents])
        inputs, targets = zip(*(self._streams[agent].next() for agent in agents), strict=True)
        return torch.stack(inputs), torch.stack(targets)

    def at(self, agents: Integers, numbers: Integers) -> tuple[Tensor, Tensor]:
        """Return the batches of some agents that have these numbers, and go on after them."""
        for agent, number in zip(agents.tolist(), numbers.tolist(), strict=True):
            self._streams[agent].restore(number)
        return self.next_of(agents)
