"""Images of Parquet files as streams of Ray Data, one an agent: for data larger than memory."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ray_pcasgd.base.randomness import generator, stream_seed, torch_generator
from ray_pcasgd.tasks.augmentation import Augmentation
from ray_pcasgd.tasks.images import decode
from ray_pcasgd.tasks.normalization import Normalization
from ray_pcasgd.tasks.samples import Indices, MapSamples

SHUFFLED_BATCHES = 32
"""Number of batches among which rows are shuffled, besides the order of the row groups."""


class RowGroup(NamedTuple):
    """A part of a Parquet file that is read at once."""

    path: str
    number: int
    rows: int


class StreamedImages(MapSamples):
    """Encoded images in Parquet files, whose row groups are dealt to the agents and read when they are needed.

    An agent's shard holds numbers of row groups, not of images.
    """

    def __init__(self, row_groups: Sequence[RowGroup], image_column: str, label_column: str, source: str) -> None:
        super().__init__(None)
        self.row_groups = tuple(row_groups)
        self.image_column = image_column
        self.label_column = label_column
        self.source = source

    def __len__(self) -> int:
        return sum(group.rows for group in self.row_groups)

    @property
    def are_pairs(self) -> bool:
        """Whether batches are pairs of tensors."""
        return True

    @property
    def num_units(self) -> int:
        """What a partition deals: row groups."""
        return len(self.row_groups)

    def batches_an_epoch(self, shard: Indices, batch_size: int, agent: int) -> int:
        """Return how many batches an agent's row groups make.

        Raises:
            ValueError: they do not make one.

        """
        rows = sum(self.row_groups[int(number)].rows for number in shard)
        if rows < batch_size:
            raise ValueError(f"batch_size = {batch_size}: allowed are up to {rows}, the images of agent {agent}")
        return rows // batch_size

    def take(self, indices: Indices) -> tuple[Tensor, Tensor]:
        """Return the images and labels at ``indices``, for a look at a few of them."""
        found = [self._place(int(index)) for index in indices]
        tables = {group: self.read(group) for group in {group for group, _ in found}}
        parts = [tuple(column[row] for column in tables[group]) for group, row in found]
        inputs, targets = zip(*parts, strict=True)
        return torch.from_numpy(np.stack(inputs)), torch.from_numpy(np.array(targets, np.int64))

    def _place(self, index: int) -> tuple[int, int]:
        for number, group in enumerate(self.row_groups):
            if index < group.rows:
                return number, index
            index -= group.rows
        raise IndexError(index)

    def subset(self, indices: Indices) -> "StreamedImages":
        """Return some of the row groups."""
        chosen = [self.row_groups[int(index)] for index in indices]
        return StreamedImages(chosen, self.image_column, self.label_column, self.source)

    def labels(self) -> np.ndarray | None:
        """Return ``None``: labels are read with their images."""
        return None

    def read(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the images of a row group, uint8 (n, channels, height, width), and their labels, int64 (n,)."""
        from pyarrow import fs, parquet

        path, group, rows = self.row_groups[number]
        system, inner = fs.FileSystem.from_uri(path) if "://" in path else (fs.LocalFileSystem(), path)
        with system.open_input_file(inner) as file:
            columns = [self.image_column, self.label_column]
            table = parquet.ParquetFile(file).read_row_group(group, columns=columns)
        images = table.column(self.image_column).combine_chunks()
        encoded = images.field("bytes") if images.type.num_fields else images
        decoded = decode(encoded.to_pylist(), rows, self.source).numpy()
        return decoded, table.column(self.label_column).to_numpy().astype(np.int64)


class StreamBatches:
    """An agent's endless mini-batches from its row groups, through Ray Data; the same interface as ``Batches``.

    Each epoch has an order of its own, of row groups and of rows among some batches, both from seeds: the number of
    batches taken is the whole state. The rows that do not fill an epoch's last batch are left out of it.
    """

    def __init__(
        self,
        images: StreamedImages,
        shard: np.ndarray,
        batch_size: int,
        seed: int,
        agent: int,
        purpose: str = "batches",
        augmentation: Augmentation | None = None,
        normalization: Normalization | None = None,
    ) -> None:
        self._images = images
        self._shard = np.asarray(shard, dtype=np.int64)
        self._batch_size = batch_size
        self._seed, self._agent, self._purpose = seed, agent, purpose
        self._augmentation = augmentation if augmentation is not None else Augmentation()
        self._normalization = normalization if normalization is not None else Normalization()
        self._batches_an_epoch = images.batches_an_epoch(self._shard, batch_size, agent)
        self._taken = 0
        self._open: Iterator[dict[str, np.ndarray]] | None = None

    def next(self) -> tuple[Tensor, Tensor]:
        """Return the next batch's inputs and targets."""
        epoch, place = divmod(self._taken, self._batches_an_epoch)
        if self._open is None or not place:
            self._open = self._epoch(epoch)
            for _ in range(place):
                next(self._open)
        batch = next(self._open)
        random = torch_generator(self._seed, f"{self._purpose}-augmentation", self._agent, self._taken)
        self._taken += 1
        # Copies: what Ray hands out may be its shared memory.
        inputs, targets = (torch.from_numpy(np.array(batch[name])) for name in ("inputs", "targets"))
        return self._normalization(self._augmentation.apply(inputs, random)), targets

    def state(self) -> int:
        """Return how many batches were taken."""
        return self._taken

    def restore(self, state: int) -> None:
        """Go on after ``state`` batches."""
        self._taken = state
        self._open = None

    def close(self) -> None:
        """End what makes batches in the background."""
        self._open = None

    def _epoch(self, epoch: int) -> Iterator[dict[str, np.ndarray]]:
        import ray

        context = ray.data.DataContext.get_current()
        context.execution_options.preserve_order = True  # else batches hold what came first
        context.enable_progress_bars = False
        order = generator(self._seed, self._purpose, self._agent, epoch).permutation(self._shard)
        images = self._images

        def read(rows: Any) -> Any:
            inputs, targets = images.read(int(rows["item"][0]))
            return {"inputs": inputs, "targets": targets}

        numbers = ray.data.from_items(order.tolist(), override_num_blocks=len(order))
        # The agents may have reserved all of the cluster's CPUs; the tasks that read for them run in addition.
        stream = numbers.map_batches(read, batch_size=1, num_cpus=0)
        batches: Any = stream.iter_batches(
            batch_size=self._batch_size,
            batch_format="numpy",
            drop_last=True,
            local_shuffle_buffer_size=SHUFFLED_BATCHES * self._batch_size,
            local_shuffle_seed=stream_seed(self._seed, f"{self._purpose}-rows", self._agent, epoch) % 2**32,
        )
        return iter(batches)
