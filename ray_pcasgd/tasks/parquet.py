"""Images in Parquet files as the Hugging Face hub keeps them: encoded, one a row, with their label."""

import glob
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field

from ray_pcasgd.tasks.images import Standardized, decode
from ray_pcasgd.tasks.ray_stream import RowGroup, StreamedImages
from ray_pcasgd.tasks.samples import AnySamples, Samples, TaskData


class ImageParquet(Standardized):
    """Parquet files with a column of encoded images (``struct{bytes, path}`` or binary) and one of integer labels."""

    name: Literal["image-parquet"] = "image-parquet"
    train: str
    """The file with the training images, or a pattern such as ``data/train-*.parquet``."""
    test: str
    """The same for the images that are tested on."""
    image_column: str = "img"
    """Name of the column of images."""
    label_column: str = "label"
    """Name of the column of labels, integers from 0 on."""
    limit: int | None = Field(None, ge=1)
    """Number of training images to take, the first ones; not given: all."""
    test_limit: int | None = Field(None, ge=1)
    """Number of test images to take, the first ones; not given: all."""

    streamed: bool = False
    """Read the training images through Ray Data when they are needed, instead of decoding all of them at the start: for
    data larger than memory, on the ray engine. Whole row groups are dealt to the agents, by ``iid``."""

    def load(self) -> TaskData:
        """Return the data set, decoded.

        Raises:
            ValueError: A file or column is missing, an image cannot be decoded, or image sizes differ.

        """
        train: AnySamples = self._stream() if self.streamed else self._samples("train", self.limit)
        test = self._samples("test", self.test_limit)
        shape = train.take([0])[0].shape[1:]
        if shape != test.inputs.shape[1:]:
            raise ValueError(
                f"task.data.test = {self.test!r}: its images have shape {tuple(test.inputs.shape[1:])}; "
                f"allowed is {tuple(shape)}, as the training images have"
            )
        largest = train.targets.max() if isinstance(train, Samples) else 0
        num_classes = int(max(largest, test.targets.max())) + 1
        return self.task_data(train, test, num_classes)

    def _paths(self, setting: str) -> list[str]:
        pattern = getattr(self, setting)
        found = sorted(glob.glob(pattern))  # noqa: PTH207 - Path.glob takes no absolute pattern
        paths = [path for path in found if Path(path).is_file()]  # a pipe would be waited for
        if not paths:
            raise ValueError(f"task.data.{setting} = {pattern!r}: no such file; allowed are Parquet files of images")
        return paths

    def _stream(self) -> StreamedImages:
        """Return the training images as they are on the disk."""
        import pyarrow as pa
        from pyarrow import parquet

        source = f"task.data.train = {self.train!r}"
        groups: list[RowGroup] = []
        for path in self._paths("train"):
            try:
                with parquet.ParquetFile(path) as file:
                    self._check_columns(file.schema_arrow.names, source)
                    rows = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
            except (pa.ArrowException, OSError) as error:
                raise ValueError(f"{source}: {path} is no Parquet file ({error})") from error
            whole = str(Path(path).resolve())
            groups += [RowGroup(whole, number, count) for number, count in enumerate(rows) if count]
        if self.limit is not None:
            before = np.cumsum([0, *(group.rows for group in groups)])[:-1]
            groups = [group for group, first in zip(groups, before, strict=True) if first < self.limit]
        if not groups:
            raise ValueError(f"{source}: it is empty; allowed is at least one image")
        return StreamedImages(groups, self.image_column, self.label_column, source)

    def _samples(self, setting: str, limit: int | None) -> Samples:
        paths = self._paths(setting)
        # With their times, since files may change while a session that has read them goes on.
        return _decoded(self, setting, limit, tuple((path, Path(path).stat().st_mtime_ns) for path in paths))

    def decoded(self, setting: str, limit: int | None, paths: Sequence[str]) -> Samples:
        """Return the images of the files, or the first ``limit`` of them."""
        source = f"task.data.{setting} = {getattr(self, setting)!r}"
        encoded: list[bytes] = []
        labels: list[np.ndarray] = []
        for images, part in self._batches(paths, source):
            encoded += images
            labels.append(part)
            if limit is not None and len(encoded) >= limit:
                break
        number = min(len(encoded), limit or len(encoded))
        if number == 0:
            raise ValueError(f"{source}: it is empty; allowed is at least one image")
        targets = torch.from_numpy(np.concatenate(labels)[:number].astype(np.int64))
        return Samples(decode(encoded[:number], number, source), targets)

    def _batches(self, paths: Sequence[str], source: str) -> Iterator[tuple[list[bytes], np.ndarray]]:
        import pyarrow as pa
        from pyarrow import parquet

        for path in paths:
            try:
                file = parquet.ParquetFile(path)
            except (pa.ArrowException, OSError) as error:
                raise ValueError(f"{source}: {path} is no Parquet file ({error})") from error
            with file:
                self._check_columns(file.schema_arrow.names, source)
                for batch in file.iter_batches(4096, columns=[self.image_column, self.label_column]):
                    yield _encoded(batch.column(0)), batch.column(1).to_numpy(zero_copy_only=False)

    def _check_columns(self, names: list[str], source: str) -> None:
        for setting in ("image_column", "label_column"):
            if getattr(self, setting) not in names:
                raise ValueError(
                    f"task.data.{setting} = {getattr(self, setting)!r}: not in {source}; allowed are {', '.join(names)}"
                )


@lru_cache(maxsize=4)
def _decoded(data: ImageParquet, setting: str, limit: int | None, files: tuple[tuple[str, int], ...]) -> Samples:
    """Decode once what several runs of one process train on; samples are never written to."""
    return data.decoded(setting, limit, [path for path, _ in files])


def _encoded(column: Any) -> list[bytes]:
    import pyarrow as pa

    values: list[bytes] = (column.field("bytes") if pa.types.is_struct(column.type) else column).to_pylist()
    return values
