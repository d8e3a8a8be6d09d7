"""Batches that worker processes make ahead are those that the agent itself would make."""

import multiprocessing
import os
import random
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ray_pcasgd.runs.trainer import Trainer
from ray_pcasgd.tasks.augmentation import Augmentation
from ray_pcasgd.tasks.batches import Batches
from ray_pcasgd.tasks.drawing import are_alike, generator_states
from ray_pcasgd.tasks.loading import BackgroundBatches, Loading
from ray_pcasgd.tasks.samples import AnySamples, MapSamples, Samples
from tests.devices import DEVICES
from tests.engines.images import TRAIN, Changed
from tests.unit.odd_tasks import Items

CPU = torch.device("cpu")


def named(place: int) -> dict[str, Any]:
    """Return what is no pair, partly drawn, and by which process."""
    return {"place": torch.tensor(place), "drawn": torch.rand(3), "also": random.random(), "process": os.getpid()}


def kept() -> Samples:
    return Samples((TRAIN.tensors[0] * 255).byte(), TRAIN.tensors[1])


STREAMS: dict[str, AnySamples] = {
    "kept, augmented": kept(),
    "drawn": MapSamples(Changed(), is_random=True),
    "mappings": MapSamples(Items(named), is_random=True),
}


def stream(samples: AnySamples, seed: int = 3) -> Batches:
    augmentation = Augmentation(crop_padding=1, flip=True) if isinstance(samples, Samples) else None
    return Batches(samples, np.arange(1, 60, 2), 8, seed, agent=1, augmentation=augmentation)


@contextmanager
def loaded(batches: Batches, workers: int = 2, prefetch: int = 2, device: str = "cpu") -> Iterator[BackgroundBatches]:
    made = Loading(workers=workers, prefetch=prefetch).start(batches, torch.device(device))
    assert isinstance(made, BackgroundBatches)
    try:
        yield made
    finally:
        made.close()


def without_process(batch: Any) -> Any:
    return {key: value for key, value in batch.items() if key != "process"} if isinstance(batch, dict) else batch


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize(("workers", "prefetch"), [(1, 1), (3, 2)])
@pytest.mark.parametrize("device", DEVICES)
def test_any_order_of_batches_is_the_same_with_workers(device: str, name: str, workers: int, prefetch: int) -> None:
    plain, before = stream(STREAMS[name]), generator_states()
    with loaded(stream(STREAMS[name]), workers, prefetch, device) as background:
        # In order, over the ends of epochs; back to what was drawn; over one, and far over many; the same again.
        for start in (0, 0, 8, 3, 4, 60, 0):
            for batches in (plain, background):
                batches.restore(start)
            for _ in range(7):
                one, other = plain.next(), background.next()
                assert are_alike(without_process(one), without_process(other))
                assert all(leaf.is_pinned() for leaf in tree_leaves(other)) == (device == "cuda")
                assert background.state() == plain.state()
                assert type(one) is type(other)
    assert generator_states() == before


def test_it_is_the_workers_that_make_them() -> None:
    with loaded(stream(STREAMS["mappings"])) as background:
        makers = {int(process) for _ in range(6) for process in background.next()["process"]}
        assert len(makers) == 2
        assert makers == {child.pid for child in multiprocessing.active_children()}
    assert not multiprocessing.active_children()


def exhaust(batches: Batches | BackgroundBatches) -> None:
    for _ in range(20):
        batches.next()


def whole(place: int) -> tuple[Tensor, int]:
    return torch.tensor([float(place)]), place


def broken(place: int) -> tuple[Tensor, int]:
    if place == 37:
        raise OSError("this file\nis broken")
    return whole(place)


def test_an_item_that_cannot_be_made_is_named_as_without_workers() -> None:
    errors = []
    with loaded(stream(MapSamples(Items(broken)))) as background:
        for batches in (stream(MapSamples(Items(broken))), background):
            with pytest.raises(ValueError, match="sample 37 cannot be made") as raised:
                exhaust(batches)
            taken = batches.state()
            # It is not passed over by itself.
            with pytest.raises(ValueError, match="sample 37 cannot be made"):
                batches.next()
            batches.restore(taken + 1)
            errors.append((taken, str(raised.value), batches.next()[1].tolist()))
    assert errors[0] == errors[1]


def test_a_run_names_the_cause_where_it_lies(tmp_path: Path) -> None:
    errors = []
    for workers in (0, 1):
        data = {"name": "custom", "train": Items(broken), "test": Items(whole), "in_memory": False, "num_classes": 60}
        task = {"data": data, "model": {"hidden": []}, "loading": {"workers": workers}}
        settings = {"engine": "local", "num_agents": 2, "num_steps": 20, "batch_size": 4, "storage_path": str(tmp_path)}
        result = Trainer(task=task, **settings).fit()
        errors.append(str(result.error))
    assert errors[0] == errors[1]
    assert f"test_loading.py:{broken.__code__.co_firstlineno + 2})" in errors[0]


def test_a_worker_that_is_killed_ends_the_wait() -> None:
    with loaded(stream(STREAMS["mappings"]), workers=1, prefetch=1) as background:
        worker = int(background.next()["process"][0])
        os.kill(worker, signal.SIGKILL)
        with pytest.raises(RuntimeError, match=r"DataLoader worker .*(Killed|exited unexpectedly)"):
            exhaust(background)


PARENT = """
import sys
from tests.unit.tasks.test_loading import STREAMS, loaded, stream
with loaded(stream(STREAMS["mappings"])) as background:
    while True:
        print(*sorted({int(process) for _ in range(6) for process in background.next()["process"]}), flush=True)
        sys.stdin.readline()
"""


def test_workers_outlive_ctrl_c_and_end_with_a_parent_that_is_killed() -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", PARENT], stdin=pipe, stdout=pipe, text=True) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        workers = parent.stdout.readline().split()
        ends = [os.pidfd_open(int(pid)) for pid in workers]
        assert len(ends) == 2
        for pid in workers:
            os.kill(int(pid), signal.SIGINT)
        print(file=parent.stdin, flush=True)
        assert parent.stdout.readline().split() == workers
        parent.kill()
    for end in ends:
        assert select.select([end], [], [], 60)[0]
        os.close(end)


def test_without_workers_nothing_is_started() -> None:
    batches = stream(kept())
    assert Loading().start(batches, CPU) is batches
    background = Loading(workers=2).start(batches, CPU)
    assert not multiprocessing.active_children()
    background.close()
