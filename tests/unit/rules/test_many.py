"""The second form of a step, for many agents at once, against the first one."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ray_pcasgd.records import IndexedReads, Own, Reads
from ray_pcasgd.rules import CASGD, DASGD, DPSGD, PASGD, PCASGD
from ray_pcasgd.rules.base import Rule

LENGTH, VERSIONS, NEIGHBORS = 7, 9, 3
RULES: dict[str, Rule] = {
    "d-psgd": DPSGD(),
    "d-asgd": DASGD(),
    "c-asgd": CASGD(clipping="renormalize"),
    "p-asgd": PASGD(drift="velocity"),
    "pc-asgd": PCASGD(),
    "renormalizing": PCASGD(clipping="renormalize", compensation=0.0),
    "constant bound": PCASGD(stability=0.5, reach="damped", oldest_age=3),
    "stable reach": PCASGD(reach={"name": "stable", "drag": 0.2}),
    "bounded": PCASGD(theta=0.7, bounded=True, reach=2.0),
    "without a guard": PCASGD(guard=False),
}
ages = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.booleans(), st.booleans()), min_size=6, max_size=6)


def numbers(own: list[tuple[int, int, bool, bool]], seed: int) -> tuple[Own, IndexedReads, Tensor]:
    """Return what two agents see of three neighbors; who is not read has nothing but NaN for a version."""
    random = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=random)

    table, directions = 2 * drawn(VERSIONS, LENGTH) - 1, 2 * drawn(VERSIONS, LENGTH) - 1
    table[0] = directions[0] = torch.nan
    staleness, age, is_trusted, is_read = (torch.tensor(column).view(2, NEIGHBORS) for column in zip(*own, strict=True))
    weights = drawn(2, NEIGHBORS) / NEIGHBORS
    left = torch.where(is_read, 0.0, weights).sum(1)
    mixing = torch.where(is_read, weights, 0.0)
    places = torch.randint(1, VERSIONS, (2, NEIGHBORS), generator=random).where(is_read, 0)
    reads = IndexedReads(
        table,
        directions,
        places,
        drawn(2, LENGTH),
        mixing,
        staleness.where(is_read, 0).float(),
        age.where(is_read, 0).float(),
        is_trusted | ~is_read,
    )
    coefficients = {"lambda_0": drawn(2), "curvature": 3 * drawn(2), "trust": drawn(2), "theta": drawn(2)}
    mine = Own(drawn(2, LENGTH), drawn(2, LENGTH), 1 - weights.sum(1) + left, drawn(2) / 5, coefficients)
    return mine, reads, is_read


def reads_of_one(reads: IndexedReads, is_read: Tensor, agent: int) -> Reads:
    """Return what one of the agents sees, as ``Peer.gather`` makes it."""
    zeros = torch.zeros(LENGTH)
    weights, directions, drifts = [], [], []
    for k in range(NEIGHBORS):
        place, age = int(reads.places[agent, k]), float(reads.age[agent, k])
        is_late = not reads.reliable[agent, k]
        weights.append(reads.weights[place] if is_read[agent, k] else zeros)
        directions.append(reads.directions[place] if is_late and reads.staleness[agent, k] > 0 else zeros)
        drifts.append(reads.velocity[agent] * ((age - 1) / 2) if is_late and age else zeros)
    mixing, staleness, age_, reliable = (one[agent] for one in reads[4:])
    return Reads(tuple(weights), tuple(directions), tuple(drifts), mixing, staleness, age_, reliable)


@pytest.mark.parametrize("name", RULES)
@settings(max_examples=20)
@given(own=ages, seed=st.integers(0, 1 << 20))
def test_a_step_of_many_is_the_step_of_each(name: str, own: Any, seed: int) -> None:
    rule = RULES[name]
    assert rule.steps_many
    mine, reads, is_read = numbers(own, seed)
    single = [rule.init(mine.weights[agent], NEIGHBORS) for agent in range(2)]
    state = single[0]
    if hasattr(state, "guard"):
        gains, usual = torch.tensor([1.0, 0.25]), torch.tensor([0.0, 0.3])
        single = [one._replace(guard=type(one.guard)(g, u)) for one, g, u in zip(single, gains, usual, strict=True)]
        state = state._replace(guard=type(state.guard)(gains, usual))
    following, update = rule.step_many(state, mine, reads)
    for agent in range(2):
        coefficients = {key: value[agent] for key, value in mine.coefficients.items()}
        weights, direction, mixing, step_size = mine.weights, mine.direction, mine.mixing, mine.step_size
        alone = Own(weights[agent], direction[agent], mixing[agent], step_size[agent], coefficients)
        expected_state, expected = rule.step(single[agent], alone, reads_of_one(reads, is_read, agent))
        torch.testing.assert_close(update.weights[agent], expected.weights, rtol=1e-4, atol=1e-5)
        assert update.measures.keys() == expected.measures.keys()
        for key, value in expected.measures.items():
            torch.testing.assert_close(update.measures[key][agent], value, rtol=1e-4, atol=1e-5)
        if hasattr(following, "guard"):
            for part, other in zip(following.guard, expected_state.guard, strict=True):
                torch.testing.assert_close(part[agent], other, rtol=1e-4, atol=1e-5)


def test_rules_whose_sums_do_not_suffice_have_no_second_form() -> None:
    assert not any(
        rule.steps_many for rule in (PCASGD(theta=0.5), PCASGD(compensation="adaptive"), PCASGD(prediction="own-drift"))
    )
