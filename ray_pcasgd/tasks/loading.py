"""Loading in the background: processes that make an agent's next mini-batches while it computes."""

import multiprocessing
import os
import signal
import threading
import traceback
import warnings
from collections.abc import Iterator
from itertools import count
from typing import Any, NamedTuple

import torch
from pydantic import Field
from torch.utils.data import DataLoader, Dataset, Sampler

from ray_pcasgd.base.settings import Settings
from ray_pcasgd.tasks.batches import Batches
from ray_pcasgd.tasks.trees import Batch


class Loading(Settings):
    """How mini-batches are loaded. It changes no figure: a batch follows from the seed, the agent and its number."""

    workers: int = Field(0, ge=0, le=256)
    """Processes of each agent that make its batches in the background, by torch's ``DataLoader``. 0: the agent makes
    each batch itself, when its step begins: right for data in memory. Each worker takes a CPU, which Ray does not
    reserve. On a GPU, they also put batches into pinned memory."""
    prefetch: int = Field(2, ge=1, le=1024)
    """Batches that each worker makes ahead."""

    def start(self, batches: Batches, device: torch.device) -> "Batches | BackgroundBatches":
        """Return a stream of the same batches, loaded as the settings say."""
        return BackgroundBatches(batches, self, device) if self.workers else batches

    def require_processes(self) -> None:
        """Raise ``ValueError`` where this machine cannot start workers."""
        if self.workers and "fork" not in multiprocessing.get_all_start_methods():
            raise ValueError(f"task.loading.workers = {self.workers}: allowed on this system, which has no fork, is 0")


class BackgroundBatches:
    """The batches of a stream, made ahead by worker processes; the same interface as ``Batches``.

    Workers start with the first batch, and end with ``close`` or with their parent process. **Choice**: they are
    forked, as by ``DataLoader`` in general, so that they share the data set with the agent, whatever it is.

    Args:
        batches: the stream, any of whose batches can be made from its number.
        loading: how many workers there are, and how far they are ahead.
        device: where the batches are used.

    """

    def __init__(self, batches: Batches, loading: Loading, device: torch.device) -> None:
        self._numbers = _Numbers()
        self._items = _Numbered(batches)
        self._loading = loading
        self._is_pinned = device.type == "cuda"
        self._taken = batches.state()
        self._loader: DataLoader[Any] | None = None
        self._loaded: Iterator[Any] | None = None
        self._place = 0
        """Number of the batch that ``_loaded`` yields next."""

    def next(self) -> Batch:
        """Return the next batch.

        Raises:
            ValueError: it cannot be made.

        """
        ahead = self._loading.workers * self._loading.prefetch
        if self._loaded is None or not 0 <= self._taken - self._place <= ahead:
            with warnings.catch_warnings():
                # Workers that wait for disks may well be more than there are CPUs.
                warnings.filterwarnings("ignore", message="This DataLoader will create")
                self._loaded = self._from(self._taken)
        while self._place < self._taken:  # what was passed over is made already, or about to be
            self._one(self._loaded)
        batch = self._one(self._loaded)
        if isinstance(batch, _Failure):
            raise batch.error()
        self._taken += 1
        return batch

    def _one(self, loaded: Iterator[Any]) -> Any:
        batch = next(loaded)
        self._place += 1
        return batch

    def _from(self, number: int) -> Iterator[Any]:
        """Return an iterator over the batches from ``number`` on."""
        self._numbers.first = self._place = number
        if self._loader is None:
            self._loader = DataLoader(
                self._items,
                batch_size=None,
                sampler=self._numbers,
                num_workers=self._loading.workers,
                prefetch_factor=self._loading.prefetch,
                persistent_workers=True,
                pin_memory=self._is_pinned,
                collate_fn=_as_it_is,
                worker_init_fn=_begin,
                multiprocessing_context="fork",
                # Else the workers' seeds, which nothing depends on, would be drawn from the global generator.
                generator=torch.Generator(),
            )
        return iter(self._loader)

    def state(self) -> int:
        """Return how many batches were taken."""
        return self._taken

    def restore(self, state: int) -> None:
        """Go on after ``state`` batches."""
        self._taken = state

    def close(self) -> None:
        """End the workers; a further batch starts new ones."""
        self._loaded = self._loader = None


class _Numbers(Sampler[int]):
    """The numbers of batches, from one on without an end."""

    first = 0

    def __iter__(self) -> Iterator[int]:
        return count(self.first)


class _Numbered(Dataset[Any]):
    """A stream of batches as a map-style data set, whose item ``n`` is batch ``n``."""

    def __init__(self, batches: Batches) -> None:
        self._batches = batches

    def __getitem__(self, number: int) -> Any:
        try:
            return self._batches.at(number)
        except Exception as error:  # the user's own, which may be of a kind that cannot travel
            text = str(error) if isinstance(error, ValueError) else f"{type(error).__qualname__}: {error}"
            return _Failure(text, "".join(traceback.format_exception(error)))


class _Failure(NamedTuple):
    """What came of a batch that a worker could not make."""

    text: str
    trace: str

    def error(self) -> ValueError:
        error = ValueError(self.text)
        error.add_note(self.trace)
        return error


def _as_it_is(batch: Any) -> Any:
    return batch


def _begin(worker: int) -> None:
    """Make a new worker independent of signals to the run, and let it end together with its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all, and asks the run to end where it can go on from
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Wait until the parent is gone: what this process has of its open connections would make it look alive."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
