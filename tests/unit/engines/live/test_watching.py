"""Which neighbors are left out, where agents' rounds differ in length."""

import pytest

from ray_pcasgd.agents.mailbox import Header
from ray_pcasgd.base.rounds import Rounds
from ray_pcasgd.engines.live.watching import Limits, NeighborWatch


def watch(agent: int, local_steps: tuple[int, ...], versions: dict[int, int], num_steps: int = 400) -> NeighborWatch:
    own = NeighborWatch(
        agent, tuple(versions), Rounds(num_steps, local_steps), Limits(60.0, None, 0.05), lambda kind, detail: None
    )
    for k, version in versions.items():
        own.trackers[k].take(Header(k, version, 0.0, 0.0), 0.0)
    return own


@pytest.mark.parametrize(
    ("local_steps", "step", "version", "lags"),
    [
        ((), 100, 80, True),
        ((4, 4), 25, 20, True),
        # As many mini-batches in fewer rounds.
        ((1, 4), 100, 25, False),
        ((1, 4), 100, 20, True),
        # As many rounds of fewer mini-batches.
        ((10, 2), 20, 20, False),
        ((10, 2), 20, 5, True),
        # Ahead in versions, and in mini-batches.
        ((4, 1), 20, 70, False),
    ],
)
def test_who_is_behind_in_rounds_and_in_mini_batches_is_not_read(
    local_steps: tuple[int, ...], step: int, version: int, lags: bool
) -> None:
    assert watch(0, local_steps, {1: version}).lags(1, step, 0.0) is lags


def test_a_share_is_not_sent_to_who_is_about_to_end_whatever_its_versions() -> None:
    assert not watch(0, (), {1: 399}).is_ending(1, 399)
    assert watch(0, (), {1: 399}).is_ending(1, 398)
    assert watch(0, (1, 4), {1: 99}).is_ending(1, 300)
    assert not watch(0, (1, 4), {1: 98}).is_ending(1, 300)
