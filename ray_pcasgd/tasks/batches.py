"""An agent's endless sequence of mini-batches, any of which can be made from its number alone."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ray_pcasgd.base.randomness import generator, stream_seed, torch_generator
from ray_pcasgd.tasks.augmentation import Augmentation
from ray_pcasgd.tasks.drawing import seeded
from ray_pcasgd.tasks.normalization import Normalization
from ray_pcasgd.tasks.samples import AnySamples, MapSamples, Samples
from ray_pcasgd.tasks.trees import Batch, is_pair


class Batches:
    """Mini-batches of one size from one shard, shuffled anew for each epoch, running on over the ends of epochs.

    Batch ``b`` holds places ``b * batch_size`` up to ``(b + 1) * batch_size`` of all epochs laid end to end. Each
    epoch's order, each batch's augmentation and what is random about items that are made anew come from their own named
    streams, so the number of batches taken is the whole state.
    """

    def __init__(
        self,
        samples: AnySamples,
        indices: np.ndarray,
        batch_size: int,
        seed: int,
        agent: int,
        purpose: str = "batches",
        augmentation: Augmentation | None = None,
        normalization: Normalization | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size = {batch_size}: allowed are sizes from 1 on")
        if len(indices) == 0:
            raise ValueError(f"agent {agent} has no samples: allowed is at least 1")
        self._samples = samples
        self._indices = np.asarray(indices, dtype=np.int64)
        self._batch_size = batch_size
        self._seed = seed
        self._agent = agent
        self._purpose = purpose
        self._augmentation = augmentation if augmentation is not None else Augmentation()
        self._normalization = normalization if normalization is not None else Normalization()
        self._taken = 0
        self._order: tuple[int, np.ndarray] = (-1, self._indices)

    def at(self, number: int) -> Batch:
        """Return batch ``number``, counted from 0: inputs and targets, or what else the items make."""
        return self._made(self.indices_at(number), number)

    def whole(self, passes: int) -> Iterator[tuple[int, Batch]]:
        """Yield every sample of the shard once, in batches of which the last may be smaller, each with its number.

        After ``passes`` others: whatever is random about samples is drawn anew in each.
        """
        first = passes * -(-len(self._indices) // self._batch_size)
        for k, start in enumerate(range(0, len(self._indices), self._batch_size)):
            yield first + k, self._made(self._indices[start : start + self._batch_size], first + k)

    def _made(self, indices: np.ndarray, number: int) -> Batch:
        batch = self._drawn(indices, number)
        if not is_pair(batch):
            return batch
        inputs, targets = batch
        if self._augmentation.is_any:
            random = torch_generator(self._seed, f"{self._purpose}-augmentation", self._agent, number)
            inputs = self._augmentation.apply(inputs, random)
        return self._normalization(inputs), targets

    def _drawn(self, indices: np.ndarray, number: int) -> Batch:
        """Return the items of a batch; where they are made anew, whatever is random about them is the batch's own."""
        if not isinstance(self._samples, MapSamples):
            return self._samples.take(indices)
        with seeded(stream_seed(self._seed, f"{self._purpose}-items", self._agent, number)):
            return self._samples.take(indices)

    def indices_at(self, number: int) -> np.ndarray:
        """Return the sample indices of batch ``number``, int64 of shape (batch_size,); not to be written to."""
        parts = []
        place, left = number * self._batch_size, self._batch_size
        epoch, offset = divmod(place, len(self._indices))
        if offset + left <= len(self._indices):
            return self._epoch(epoch)[offset : offset + left]
        while left:
            epoch, offset = divmod(place, len(self._indices))
            part = self._epoch(epoch)[offset : offset + left]
            parts.append(part)
            place, left = place + len(part), left - len(part)
        return np.concatenate(parts)

    def next(self) -> Batch:
        """Return the next batch."""
        batch = self.at(self._taken)
        self._taken += 1
        return batch

    def is_taken_with(self, other: object) -> bool:
        """Return whether one indexing makes batches of both: of one size, of the same tensors, not augmented."""
        return (
            isinstance(other, Batches)
            and type(self._samples) is Samples
            and self._samples is other._samples
            and not (self._augmentation.is_any or other._augmentation.is_any)
            and (self._batch_size, self._normalization) == (other._batch_size, other._normalization)
        )

    def state(self) -> int:
        """Return how many batches were taken."""
        return self._taken

    def restore(self, state: int) -> None:
        """Go on after ``state`` batches."""
        self._taken = state

    def close(self) -> None:
        """End what makes batches in the background: nothing does."""

    def _epoch(self, epoch: int) -> np.ndarray:
        # Only the last epoch's order is kept: batches are nearly always asked for in order.
        if self._order[0] != epoch:
            random = generator(self._seed, self._purpose, self._agent, epoch)
            self._order = (epoch, random.permutation(self._indices))
        return self._order[1]


def next_of_each(streams: Sequence[Batches]) -> tuple[Tensor, Tensor]:
    """Return the next batch of each of several streams, stacked: inputs and targets, of shape (B, batch_size, ...).

    The streams are such as ``is_taken_with`` says of all of them.
    """
    first = streams[0]
    rows = np.empty((len(streams), first._batch_size), np.int64)
    for row, one in zip(rows, streams, strict=True):
        row[:] = one.indices_at(one._taken)
        one._taken += 1
    indices = torch.from_numpy(rows)
    inputs, targets = first._samples.take(indices.flatten())
    inputs = first._normalization(inputs)
    return inputs.view(*indices.shape, *inputs.shape[1:]), targets.view(*indices.shape, *targets.shape[1:])
