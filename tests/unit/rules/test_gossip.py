"""Gossiping SGD: whom an agent talks to, and what the averaging does."""

from collections import Counter
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ray_pcasgd.base.randomness import generator
from ray_pcasgd.records import Own, Reads
from ray_pcasgd.rules import GossipPull, GossipPush
from ray_pcasgd.rules.exchange import RandomNeighbor
from ray_pcasgd.schedule.barrier import NoBarrier
from ray_pcasgd.schedule.delays import ComputeTimes
from ray_pcasgd.schedule.plan_peers import Planner

NEIGHBORS = (1, 4, 5, 7)


def test_pull_asks_one_random_neighbor_every_so_many_steps() -> None:
    rule = GossipPull(every=4)
    drawn = [rule.partners(0, 0, step, NEIGHBORS) for step in range(8000)]
    counts = Counter(drawn)
    assert set(counts) == {(), *((k,) for k in NEIGHBORS)}
    for k in NEIGHBORS:  # 500 are expected; 5 standard deviations are 109
        assert 391 < counts[(k,)] < 609
    assert drawn[:50] == [rule.partners(0, 0, step, NEIGHBORS) for step in range(50)]
    assert drawn[:50] != [rule.partners(1, 0, step, NEIGHBORS) for step in range(50)]
    assert drawn[:50] != [rule.partners(0, 2, step, NEIGHBORS) for step in range(50)]


def test_push_sends_to_one_random_neighbor_and_reads_whatever_comes() -> None:
    rule = GossipPush()
    assert {rule.receivers(0, 0, version, NEIGHBORS) for version in range(200)} == {(k,) for k in NEIGHBORS}
    assert rule.partners(0, 0, 3, NEIGHBORS) == NEIGHBORS
    assert GossipPull().receivers(0, 0, 3, NEIGHBORS) == NEIGHBORS


def test_nobody_is_drawn_among_no_neighbors() -> None:
    assert GossipPull().partners(0, 0, 0, ()) == ()
    assert GossipPush().receivers(0, 0, 0, ()) == ()


@pytest.mark.parametrize("rule", [GossipPull(), GossipPush()])
@given(seed=st.integers(0, 999), asked=st.lists(st.booleans(), min_size=3, max_size=3))
def test_a_step_halves_the_way_to_each_neighbor_in_turn(
    rule: GossipPull | GossipPush, seed: int, asked: list[bool]
) -> None:
    draw = generator(seed, "vectors")
    x, u, *neighbors = (torch.from_numpy(draw.standard_normal(7).astype(np.float32)) for _ in range(5))
    mixing = torch.tensor([0.25 if yes else 0.0 for yes in asked])
    own = Own(x, u, 1 - mixing.sum(), torch.tensor(0.1), {})
    zeros, nothing = torch.zeros(3), (torch.zeros(0),) * 3
    _, update = rule.step((), own, Reads(tuple(neighbors), nothing, nothing, mixing, zeros, zeros, zeros == 0))
    expected = x.double().numpy()
    for yes, neighbor in zip(asked, neighbors, strict=True):
        if yes:
            expected = (expected + neighbor.double().numpy()) / 2
    np.testing.assert_allclose(update.weights.numpy(), expected - 0.1 * u.double().numpy(), rtol=1e-5, atol=1e-6)


@given(seed=st.integers(0, 999))
def test_what_was_pushed_is_read_at_most_once_and_only_by_whom_it_was_pushed_to(seed: int) -> None:
    everybody = tuple(range(4))
    plan = Planner(
        neighbors=tuple(tuple(k for k in everybody if k != i) for i in everybody),
        num_steps=12,
        compute=ComputeTimes(stragglers={3: 2}),
        links=(),
        clusters=(0, 0, 1, 1),
        barrier=NoBarrier(),
        seed=seed,
        exchange=GossipPush(every=1.5),
    )
    seen = set()
    for row in plan:
        for read in row.reads:
            assert (row.agent, read.neighbor, read.version) not in seen
            seen.add((row.agent, read.neighbor, read.version))
            senders = plan.neighbors[read.neighbor]
            assert row.agent in plan.exchange.receivers(seed, read.neighbor, read.version, senders)
    assert seen


class Lonely(GossipPull):
    """Reads the first neighbor only."""

    name: Literal["lonely"] = "lonely"  # type: ignore[assignment]

    def partners(self, seed: int, agent: int, step: int, neighbors: tuple[int, ...]) -> tuple[int, ...]:
        return super().partners(seed, agent, step, neighbors[:1])


def test_plans_follow_a_derived_rule_s_own_choice() -> None:
    assert GossipPull(every=2).exchange == RandomNeighbor(2, pushes=False)
    assert GossipPush(every=2).exchange == RandomNeighbor(2, pushes=True)
    rule = Lonely(every=1)
    assert rule.exchange is rule
    assert rule.exchange.partners(0, 0, 0, (3, 4, 5)) == (3,)
