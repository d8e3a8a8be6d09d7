"""Data sets on disk through Hugging Face's library ``datasets``, which is imported where it is used."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from ray_pcasgd.tasks.map_style import MapStyle
from ray_pcasgd.tasks.samples import TaskData


class HuggingFace(MapStyle):
    """A folder of Hugging Face's ``datasets``. Items are mappings, lists of numbers in them tensors."""

    name: Literal["hugging-face"] = "hugging-face"
    path: Path
    """A folder that ``save_to_disk`` has written, or one of JSON, CSV, Parquet or Arrow files, whose names begin with
    their split: ``train.jsonl``, ``test-00000.parquet``."""
    train: str = "train"
    """The split that is trained on; of files also a part of one, as ``train[:90%]``."""
    test: str = "test"
    """The same for the samples that are tested on, as ``train[90%:]``."""
    columns: tuple[str, ...] = ()
    """The columns that items have; empty: all. Texts make no tensors: they are left out, or taken by ``collate``."""

    def load(self) -> TaskData:
        """Return the data set.

        Raises:
            ValueError: There is no such folder, split or column, it cannot be read, or its items make no batches.

        """
        if not self.path.is_dir():
            raise ValueError(
                f"task.data.path = {str(self.path)!r}: no such folder; allowed is one that save_to_disk has written, "
                "or one of JSON, CSV, Parquet or Arrow files"
            )
        with _quiet():
            return self.loaded(self._split("train"), self._split("test"))

    def _split(self, setting: str) -> Any:
        """Return the data set of a split, with the columns that are asked for."""
        dataset = self._read(setting)
        unknown = [name for name in self.columns if name not in dataset.column_names]
        if unknown:
            raise ValueError(f"task.data.columns: {unknown[0]!r} is none of {', '.join(dataset.column_names)}")
        return dataset.select_columns(list(self.columns)) if self.columns else dataset

    def _read(self, setting: str) -> Any:
        import datasets

        split: str = getattr(self, setting)
        try:
            if not any((self.path / name).is_file() for name in ("dataset_dict.json", "state.json")):
                return datasets.load_dataset(str(self.path.resolve()), split=split)
            saved = datasets.load_from_disk(str(self.path))
        except Exception as error:  # of many kinds, of the library's own and of what it reads with
            reason = " ".join(str(error).split())
            raise ValueError(f"task.data.{setting} = {split!r} of {str(self.path)!r}: {reason}") from error
        if not isinstance(saved, datasets.DatasetDict):
            raise ValueError(
                f"task.data.path = {str(self.path)!r}: it holds one data set; allowed is a DatasetDict of splits"
            )
        if split not in saved:
            raise ValueError(f"task.data.{setting} = {split!r}: allowed are the folder's splits, {', '.join(saved)}")
        return saved[split]


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out the progress bars of the library.

    Raises:
        ValueError: it is not installed.

    """
    try:
        from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    except ImportError as error:
        raise ValueError(
            "task.data.name = 'hugging-face': the library datasets is missing; pip install 'ray-pcasgd[hugging-face]'"
        ) from error
    was_quiet = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not was_quiet:
            enable_progress_bars()
