"""DC-S3GD, importance sampling and adaptive braking against slow references in float64."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ray_pcasgd.agents.local_optimizer import parts_of
from ray_pcasgd.agents.optimizer import SGD
from ray_pcasgd.base.randomness import generator
from ray_pcasgd.records import Own, Reads
from ray_pcasgd.rules import DCS3GD, DASGDImportance
from ray_pcasgd.rules.base import Taken

SIZE = 9


def vectors(seed: int, count: int) -> list[torch.Tensor]:
    draw = generator(seed, "vectors")
    return [torch.from_numpy(draw.standard_normal(SIZE).astype(np.float32)) for _ in range(count)]


def inputs(seed: int, numbers: dict[str, float]) -> tuple[Own, Reads]:
    x, g, *neighbors = vectors(seed, 5)
    third = torch.tensor([0.25, 0.25, 0.25])
    own = Own(x, g, torch.tensor(0.25), torch.tensor(0.1), {k: torch.tensor(v) for k, v in numbers.items()})
    zeros = torch.zeros(3)
    nothing = (torch.zeros(0),) * 3
    return own, Reads(tuple(neighbors), nothing, nothing, third, zeros, zeros, zeros == 0)


@given(seed=st.integers(0, 999), lambda_0=st.floats(0, 3))
def test_dc_s3gd_equals_its_slow_reference(seed: int, lambda_0: float) -> None:
    rule = DCS3GD(lambda_0=lambda_0)
    own, reads = inputs(seed, rule.coefficients(0, 0))
    x, g = own.weights.double().numpy(), own.direction.double().numpy()
    mean = sum(w.double().numpy() for w in (own.weights, *reads.weights)) / 4
    distance = mean - x
    length = math.sqrt(sum((a * a * d) ** 2 for a, d in zip(g, distance, strict=True)))
    factor = lambda_0 * math.sqrt(sum(a * a for a in g)) / length if length else 0.0
    corrected = [a + factor * a * a * d for a, d in zip(g, distance, strict=True)]
    result = rule.correct(own, reads)
    np.testing.assert_allclose(result.numpy(), corrected, rtol=1e-4, atol=1e-5)
    _, update = rule.step((), own._replace(direction=result), reads)
    np.testing.assert_allclose(update.weights.numpy(), x + distance - 0.1 * np.array(corrected), rtol=1e-4, atol=1e-5)


def test_dc_s3gd_corrects_nothing_where_everybody_agrees() -> None:
    rule = DCS3GD()
    own, reads = inputs(3, rule.coefficients(0, 0))
    half = own.weights.round()  # whose average with itself has no rounding
    own, reads = own._replace(weights=half), reads._replace(weights=(half,) * 3)
    assert torch.equal(rule.correct(own, reads), own.direction)


@pytest.mark.parametrize("neighbors", [1, 2, 6])
def test_dc_s3gd_takes_a_mean_s_rounding_for_no_displacement(neighbors: int) -> None:
    """Of equal weights, as at the first step; and a displacement of a thousandth is one."""
    draw = generator(0, "start")
    x, g = (torch.from_numpy(draw.standard_normal(5000, dtype=np.float32)) for _ in range(2))
    share = torch.tensor(1 / (neighbors + 1))
    rule = DCS3GD()
    own = Own(x, g, share, torch.tensor(0.1), {"lambda_0": torch.tensor(0.2)})
    zeros = torch.zeros(neighbors)
    nothing = (torch.zeros(0),) * neighbors
    reads = Reads((x,) * neighbors, nothing, nothing, share.expand(neighbors), zeros, zeros, zeros == 0)
    assert torch.equal(rule.correct(own, reads), g)
    moved = reads._replace(weights=(x + 0.001,) * neighbors)
    change = rule.correct(own, moved) - g
    assert (change.norm() / g.norm()).item() == pytest.approx(0.2, rel=1e-3)


@pytest.mark.parametrize(
    ("own", "neighbors", "weight"),
    [
        (Taken(9, 100), [Taken(9, 100), Taken(9, 100)], 1.0),
        (Taken(19, 100), [Taken(9, 100), Taken(9, 100)], (1 / 3) / (20 / 40)),  # twice as fast as the others
        (Taken(9, 300), [Taken(9, 100)], (3 / 4) / (1 / 2)),  # three times the samples
        (Taken(0, 100), [Taken(99, 100)], 10.0),  # capped
        (Taken(5, 100), [], 1.0),
    ],
)
def test_importance_is_the_target_share_over_the_observed_one(
    own: Taken, neighbors: list[Taken], weight: float
) -> None:
    assert DASGDImportance().observed_coefficients(own, neighbors) == {"importance": pytest.approx(weight)}


def test_importance_weighs_the_direction_alone() -> None:
    own, reads = inputs(1, {"importance": 0.5})
    _, update = DASGDImportance().step((), own, reads)
    mean = sum(w.double().numpy() for w in (own.weights, *reads.weights)) / 4
    np.testing.assert_allclose(
        update.weights.numpy(), mean - 0.05 * own.direction.double().numpy(), rtol=1e-5, atol=1e-6
    )
    assert update.measures["importance"] == 0.5


@given(seed=st.integers(0, 999), rho=st.floats(0, 3), decay=st.sampled_from([0.0, 0.01]), nesterov=st.booleans())
def test_braking_equals_its_slow_reference(seed: int, rho: float, decay: float, nesterov: bool) -> None:
    sizes = (4, 2, 3)
    parts = parts_of([torch.Size((size,)) for size in sizes])
    optimizer = SGD(momentum=0.8, braking=rho, weight_decay=decay, nesterov=nesterov)
    x, *gradients = vectors(seed, 4)
    state, velocity = optimizer.init(x), np.zeros(SIZE)
    for gradient in gradients:
        state, direction = optimizer.direction(state, x, gradient, parts)
        g = gradient.double().numpy().copy()
        start = 0
        for size in sizes:
            part = slice(start, start + size)
            lengths = float(np.linalg.norm(g[part]) * np.linalg.norm(velocity[part]))
            g[part] *= 1 - rho * float(g[part] @ velocity[part]) / max(lengths, 1e-8)
            start += size
        g += decay * x.double().numpy()
        velocity = 0.8 * velocity + g
        np.testing.assert_allclose(
            direction.numpy(), g + 0.8 * velocity if nesterov else velocity, rtol=2e-4, atol=2e-5
        )


def test_braking_has_the_same_bits_alone_and_stacked() -> None:
    optimizer, parts = SGD(momentum=0.9, braking=2.0), parts_of([torch.Size((5,)), torch.Size((4,))])
    x, g, v = (torch.stack(vectors(seed, 3)) for seed in (0, 1, 2))
    stacked = torch.func.vmap(lambda v, x, g: optimizer.direction((v,), x, g, parts)[1])(v, x, g)
    for b in range(3):
        assert torch.equal(optimizer.direction((v[b],), x[b], g[b], parts)[1], stacked[b])


def test_braking_needs_momentum() -> None:
    with pytest.raises(ValidationError, match="braking = 2: allowed is null where momentum is 0"):
        SGD(braking=2.0)
