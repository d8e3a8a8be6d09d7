import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from ray_pcasgd.agents.optimizer import SGD
from ray_pcasgd.base.randomness import generator

OPTIMIZERS = [
    SGD(),
    SGD(weight_decay=0.01),
    SGD(momentum=0.9),
    SGD(momentum=0.9, weight_decay=0.01),
    SGD(momentum=0.8, nesterov=True),
    SGD(momentum=0.8, nesterov=True, weight_decay=5e-4),
]
every_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)


def gradients(num_steps: int, size: int, seed: int = 0) -> Tensor:
    draw = generator(seed, "gradients")
    return torch.from_numpy(draw.standard_normal((num_steps, size), dtype=np.float32))


@every_optimizer
@pytest.mark.parametrize("size", [7, 62_006])
def test_the_directions_make_the_weights_of_torch_to_the_bit(optimizer: SGD, size: int) -> None:
    ours = gradients(1, size, seed=1)[0]
    theirs = torch.nn.Parameter(ours.clone())
    torchs = torch.optim.SGD(
        [theirs],
        lr=0.1,
        momentum=optimizer.momentum,
        nesterov=optimizer.nesterov,
        weight_decay=optimizer.weight_decay,
        foreach=False,
    )
    state = optimizer.init(ours)
    for gradient in gradients(6, size):
        theirs.grad = gradient.clone()
        torchs.step()
        state, direction = optimizer.direction(state, ours, gradient)
        ours = ours.add(direction, alpha=-0.1)
        assert torch.equal(ours, theirs)


def test_a_worked_example() -> None:
    optimizer = SGD(momentum=0.5, nesterov=True, weight_decay=0.25)
    weights, gradient = torch.tensor([4.0]), torch.tensor([1.0])
    state = optimizer.init(weights)
    directions = []
    for _ in range(2):
        state, direction = optimizer.direction(state, weights, gradient)
        directions.append(direction.item())
    # g = 1 + 0.25 * 4 = 2; v = 2, then 0.5 * 2 + 2 = 3; u = g + 0.5 v.
    assert directions == [3.0, 3.5]


@every_optimizer
def test_alone_and_vmapped_give_the_same_bits(optimizer: SGD) -> None:
    weights = gradients(3, 62_006, seed=1)
    alone = [optimizer.init(x) for x in weights]
    together = torch.func.vmap(optimizer.init)(weights)
    for step in range(3):
        us = gradients(3, 62_006, seed=2 + step)
        together, stacked = torch.func.vmap(optimizer.direction)(together, weights, us)
        for b in range(3):
            alone[b], direction = optimizer.direction(alone[b], weights[b], us[b])
            assert torch.equal(stacked[b], direction)


@every_optimizer
def test_the_inputs_stay_untouched(optimizer: SGD) -> None:
    weights, gradient = gradients(2, 50)
    state, _ = optimizer.direction(optimizer.init(weights), weights, gradient)
    inputs = [*state, weights, gradient]
    before = [t.clone() for t in inputs]
    optimizer.direction(state, weights, gradient)
    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))


def test_without_momentum_there_is_no_state() -> None:
    assert SGD(weight_decay=0.1).init(torch.zeros(3)) == ()


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"momentum": 1.0}, "momentum"),
        ({"momentum": -0.1}, "momentum"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"nesterov": True}, "nesterov = true: allowed is false where momentum is 0"),
        ({"dampening": 0.1}, "dampening"),
    ],
)
def test_settings_out_of_range_are_named(values: dict[str, float], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        SGD(**values)  # type: ignore[arg-type]
