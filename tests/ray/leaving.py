"""Runs that a test leaves once it has seen what it waits for, however fast or busy the machine is."""

from collections.abc import Callable, Collection
from typing import Any

import pytest
import torch

from ray_pcasgd.records import Read, Snapshot, StepReport
from ray_pcasgd.runs.callbacks import Callback
from ray_pcasgd.runs.trainer import Trainer

ENDLESS: dict[str, Any] = {"num_steps": 10**6}
"""Settings of a run that comes to no end of its own within a test."""


class LeftError(Exception):
    """The test has seen what it waited for."""


class Watch(Callback):
    """Notes what each row read and came to, and leaves the run after a row once a condition is true."""

    def __init__(self, until: Callable[["Watch"], bool]) -> None:
        self.until = until
        self.rows: dict[tuple[int, int], tuple[tuple[Read, ...], float]] = {}
        """By agent and step: the row's reads and its loss."""
        self.snapshots: dict[tuple[int, int], Snapshot] = {}
        """Weights and buffers, where they were evaluated."""
        self.furthest = 0
        """The newest step of any agent."""

    def on_step(self, report: StepReport) -> None:
        place = report.row[:2]
        self.rows[place] = report.row.reads, report.loss
        self.furthest = max(self.furthest, report.row.step)
        if report.snapshot is not None:
            self.snapshots[place] = report.snapshot
        if self.until(self):
            raise LeftError


def evaluated_after(condition: Callable[[], bool], agents: Collection[int]) -> Callable[[Watch], bool]:
    """Return what is true once agents were evaluated at steps that none had come to when a condition became true."""
    since: list[int] = []

    def is_so(watch: Watch) -> bool:
        if not since and condition():
            since.append(watch.furthest)
        return bool(since) and {agent for agent, step in watch.snapshots if step > since[0]} >= set(agents)

    return is_so


def as_far_as(other: Watch) -> Callable[[Watch], bool]:
    """Return what is true once all rows are there that another run has."""
    return lambda watch: len(watch.rows) >= len(other.rows) and watch.rows.keys() >= other.rows.keys()


def leave(trainer: Trainer) -> None:
    """Let a run begin and leave it; that it ends in any other way is an error."""
    with pytest.raises(LeftError):
        trainer.fit()


def assert_same_as_far_as_it_came(one: Watch, whole: Watch) -> None:
    """Compare a run with one that came at least as far: reads and losses of all rows, all weights, to the bit."""
    assert one.snapshots
    for place, row in one.rows.items():
        assert row == whole.rows[place], place
    for place, snapshot in one.snapshots.items():
        other = whole.snapshots[place]
        assert torch.equal(snapshot.weights, other.weights), place
        assert torch.equal(snapshot.buffers, other.buffers), place
        assert snapshot.local.keys() == other.local.keys()
        assert all(torch.equal(value, other.local[name]) for name, value in snapshot.local.items()), place
