"""Whether runs are the same: what tests hold against each other."""

import torch

from ray_pcasgd.runs.result import Result


def assert_same_to_the_bit(one: Result, other: Result) -> None:
    """Compare two runs that did not fail: by schedule and weights."""
    assert one.error is None
    assert one.schedule_hash == other.schedule_hash
    assert one.checkpoint
    assert other.checkpoint
    mine, its = one.checkpoint.state_dict(), other.checkpoint.state_dict()
    assert mine.keys() == its.keys()
    assert all(torch.equal(value, its[name]) for name, value in mine.items())


def assert_same_metrics(one: Result, other: Result) -> None:
    """Compare two runs' metrics, but for the seconds that they took."""
    mine, its = (result.metrics_dataframe.drop(columns="wall_seconds") for result in (one, other))
    assert mine.equals(its)
