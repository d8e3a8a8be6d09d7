"""Adam, AdamW and Lion against ``torch.optim`` and their formulas, on flat vectors and on parts of them."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from ray_pcasgd.agents.adam import Adam, AdamW
from ray_pcasgd.agents.lion import Lion
from ray_pcasgd.agents.local_optimizer import LocalOptimizer, Parts, matrices, of_parts, parts_of, spread
from ray_pcasgd.agents.optimizer import SGD
from ray_pcasgd.base.randomness import generator

SHAPES = [torch.Size(shape) for shape in ((5, 3), (5,), (), (2, 3, 2), (7,))]
PARTS = parts_of(SHAPES)
SIZE = sum(part.size for part in PARTS)

ADAMS = [
    AdamW(),
    AdamW(weight_decay=0.3, betas=(0.8, 0.95), eps=1e-3),
    AdamW(weight_decay=0.1, decay="matrices", betas=(0.0, 0.99)),
    AdamW(amsgrad=True, betas=(0.9, 0.5)),
    Adam(),
    Adam(weight_decay=0.2, decay="matrices"),
    Adam(weight_decay=0.2, amsgrad=True, betas=(0.9, 0.0)),
]
PURE = [*ADAMS, Lion(weight_decay=0.1, decay="matrices"), SGD(momentum=0.9, weight_decay=0.1, decay="matrices")]


def draws(count: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(generator(seed, "draws").standard_normal((count, SIZE)).astype("float32"))


def tensors(flat: Tensor) -> list[Tensor]:
    pieces = torch.split(flat, [part.size for part in PARTS])
    return [piece.clone().view(part.shape) for piece, part in zip(pieces, PARTS, strict=True)]


def torchs(optimizer: Any, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    kind = {AdamW: torch.optim.AdamW, Adam: torch.optim.Adam, SGD: torch.optim.SGD}[type(optimizer)]
    options = optimizer.model_dump(exclude={"name", "decay", "braking"})
    plain = [p for p in parameters if p.ndim < 2 and optimizer.decay == "matrices"]
    decaying = [p for p in parameters if not any(p is other for other in plain)]
    groups = [{"params": decaying}, *([{"params": plain, "weight_decay": 0.0}] if plain else [])]
    return kind(groups, lr=1.0, **options)


def flat(parameters: list[torch.nn.Parameter]) -> Tensor:
    return torch.cat([parameter.detach().reshape(-1) for parameter in parameters])


@pytest.mark.parametrize("misses", [False, True], ids=["all reached", "some without a gradient"])
@pytest.mark.parametrize("optimizer", [*ADAMS, PURE[-1]], ids=repr)
def test_a_hundred_steps_are_those_of_torch(optimizer: Any, misses: bool) -> None:
    ours = draws(1, seed=1)[0]
    parameters = [torch.nn.Parameter(tensor) for tensor in tensors(ours)]
    theirs = torchs(optimizer, parameters)
    state = optimizer.start(ours, PARTS)
    for step, gradient in enumerate(draws(100, seed=2)):
        eta = 0.01 * (1 + step % 3)
        # The third tensor gets its first gradient late, the last one every other time.
        reached = [not misses or ((k != 2 or step > 10) and (k != 4 or step % 2 == 0)) for k in range(len(PARTS))]
        for parameter, piece, got in zip(parameters, tensors(gradient), reached, strict=True):
            parameter.grad = piece if got else None
        for group in theirs.param_groups:
            group["lr"] = eta
        theirs.step()
        moving = spread(torch.tensor(reached), PARTS)
        gradient = torch.where(moving, gradient, 0.0)
        state, direction = optimizer.direction(state, ours, gradient, PARTS, None if all(reached) else moving)
        assert torch.equal(direction[~moving], torch.zeros_like(direction[~moving]))
        ours = ours - eta * direction
    torch.testing.assert_close(ours, flat(parameters), rtol=1e-6, atol=2e-6)
    assert not torch.equal(ours, draws(1, seed=1)[0])


def test_adamw_follows_its_formula_in_double_precision() -> None:
    optimizer = AdamW(betas=(0.9, 0.999), eps=1e-3, weight_decay=0.5)
    x, m, v = draws(1, seed=4)[0].double().tolist(), [0.0] * SIZE, [0.0] * SIZE
    ours = draws(1, seed=4)[0]
    state = optimizer.start(ours, PARTS)
    for t, gradient in enumerate(draws(20, seed=5), start=1):
        state, direction = optimizer.direction(state, ours, gradient, PARTS)
        ours = ours - 0.01 * direction
        for d, g in enumerate(gradient.tolist()):
            m[d], v[d] = 0.9 * m[d] + 0.1 * g, 0.999 * v[d] + 0.001 * g * g
            u = m[d] / (1 - 0.9**t) / (math.sqrt(v[d] / (1 - 0.999**t)) + 1e-3) + 0.5 * x[d]
            x[d] -= 0.01 * u
    torch.testing.assert_close(ours.double(), torch.tensor(x, dtype=torch.double), rtol=1e-6, atol=1e-6)


def test_lion_follows_its_paper() -> None:
    optimizer = Lion(betas=(0.5, 0.75), weight_decay=0.25)
    x, state = torch.tensor([2.0, -4.0, 1.0]), (torch.tensor([0.0, 1.0, -1.0]),)
    following, u = optimizer.direction(state, x, torch.tensor([4.0, -3.0, 1.0]))
    # c = m/2 + g/2 = (2, -1, 0), its sign (1, -1, 0); and 3/4 m + 1/4 g.
    assert u.tolist() == [1.5, -2.0, 0.25]
    assert following[0].tolist() == [1.0, 0.0, -0.5]


@pytest.mark.parametrize("optimizer", PURE, ids=repr)
def test_alone_and_stacked_give_the_same_bits_and_inputs_stay(optimizer: LocalOptimizer) -> None:
    weights = draws(3, seed=6)
    alone = [optimizer.start(x, PARTS) for x in weights]
    together = torch.func.vmap(lambda x: optimizer.start(x, PARTS))(weights)
    for step in range(3):
        gradients, kept = draws(3, seed=7 + step), weights.clone()
        stacked = torch.func.vmap(lambda state, x, g: optimizer.direction(state, x, g, PARTS))
        before = [tensor.clone() for tensor in together]
        following, directions = stacked(together, weights, gradients)
        assert all(torch.equal(a, b) for a, b in zip(before, together, strict=True))
        together = following
        for b in range(3):
            alone[b], direction = optimizer.direction(alone[b], weights[b], gradients[b], PARTS)
            assert torch.equal(direction, directions[b])
        assert torch.equal(weights, kept)


@settings(max_examples=30, deadline=None)
@given(cut=st.integers(1, SIZE - 1), number=st.integers(0, len(PURE) - 1))
def test_parts_on_servers_of_their_own_give_the_same_bits(cut: int, number: int) -> None:
    optimizer, x = PURE[number], draws(1, seed=9)[0]
    slices = (slice(0, cut), slice(cut, SIZE))
    parts = [parts_of(SHAPES, part) for part in slices]
    whole = optimizer.start(x, PARTS)
    split = [optimizer.start(x[part], inside) for part, inside in zip(slices, parts, strict=True)]
    moving = spread(torch.tensor([True, False, True, True, True]), PARTS)
    for step, gradient in enumerate(draws(3, seed=10)):
        of_all = moving if step == 1 else None
        whole, direction = optimizer.direction(whole, x, gradient, PARTS, of_all)
        found = []
        for k, part in enumerate(slices):
            inside = None if of_all is None else of_all[part]
            split[k], piece = optimizer.direction(split[k], x[part], gradient[part], parts[k], inside)
            found.append(piece)
        assert torch.equal(torch.cat(found), direction)


def test_parts_know_their_tensors() -> None:
    values = torch.arange(5.0)
    assert torch.equal(of_parts(spread(values, PARTS), PARTS), values)
    expected = [part.is_matrix for part in PARTS for _ in range(part.size)]
    assert matrices(PARTS, torch.device("cpu")).tolist() == expected
    assert parts_of([torch.Size([0, 3]), torch.Size([2])]) == parts_of([torch.Size([2])])


def quadratic_rate(optimizer: AdamW | Adam, parts: Parts) -> tuple[float, float]:
    """Return ``feedback`` at a steady state, and by how much the direction really changes along itself."""
    h = torch.linspace(0.5, 3.0, SIZE)
    u = draws(1, seed=11)[0]
    x = draws(1, seed=12)[0]
    state = optimizer.start(x, parts)
    for _ in range(400):
        # Of a gradient that stays, until both averages stand.
        state, _ = optimizer.direction(state, x, h * x, parts)
    curvature = (u @ (h * u) / (u @ u)).item()
    found = optimizer.feedback(curvature, state, u, parts)
    assert found is not None
    # A small step along u; the preconditioner stays, the average of gradients comes to stand again.
    p = optimizer.size(state, parts).double()
    change = h.double() * u.double() / p
    decaying = torch.ones(SIZE, dtype=torch.double)
    if optimizer.decay == "matrices":
        decaying = matrices(parts, torch.device("cpu")).double()
    change += optimizer.weight_decay * decaying * u.double() / (1 if optimizer.is_decoupled else p)
    # In the metric of P, in which the iteration's matrix is symmetric.
    return found, ((u * p * change).sum() / (u * p * u).sum()).item()


@pytest.mark.parametrize(
    "optimizer",
    [
        AdamW(betas=(0.9, 0.9), weight_decay=0.0, eps=0.1),
        AdamW(betas=(0.9, 0.9), weight_decay=0.7),
        AdamW(betas=(0.9, 0.9), weight_decay=0.7, decay="matrices"),
        Adam(betas=(0.9, 0.9), weight_decay=0.7),
        AdamW(betas=(0.9, 0.9), weight_decay=0.0, amsgrad=True),
    ],
    ids=repr,
)
def test_the_feedback_on_a_quadratic_is_what_it_is(optimizer: AdamW | Adam) -> None:
    found, expected = quadratic_rate(optimizer, PARTS)
    assert found == pytest.approx(expected, rel=1e-4)


def test_feedback_is_the_step_size_from_which_adam_is_unstable() -> None:
    # One dimension, gradients h x: with v as it is, x <- (1 - eta h / P) x of a direction without momentum.
    optimizer = AdamW(betas=(0.0, 0.999), weight_decay=0.0)
    x, h = torch.tensor([2.0]), 3.0
    state, _ = optimizer.direction(optimizer.start(x), x, h * x)
    found = optimizer.feedback(h, state, torch.tensor([0.3]))
    # P = sqrt(v-hat) = |g| = 6, so h / P = 1/2.
    assert found == pytest.approx(0.5, rel=1e-5)
    assert optimizer.feedback(h, optimizer.start(x), torch.ones(1)) is None
    assert optimizer.feedback(h, state, torch.zeros(1)) is None
    # What never got a gradient has no say.
    pair, moving = torch.tensor([2.0, 5.0]), torch.tensor([True, False])
    parts = parts_of([torch.Size([1]), torch.Size([1])])
    gradient = torch.tensor([6.0, 0.0])
    state, _ = optimizer.direction(optimizer.start(pair, parts), pair, gradient, parts, moving)
    assert optimizer.feedback(h, state, torch.tensor([0.3, 0.0]), parts) == pytest.approx(0.5, rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "values", "named"),
    [
        (AdamW, {"betas": (0.9, 1.0)}, "betas"),
        (AdamW, {"eps": 0.0}, "eps"),
        (Adam, {"weight_decay": -1.0}, "weight_decay"),
        (Lion, {"betas": (-0.1, 0.9)}, "betas"),
        (Lion, {"decay": "weights"}, "decay"),
        (AdamW, {"momentum": 0.9}, "momentum"),
    ],
)
def test_settings_out_of_range_are_named(kind: type[LocalOptimizer], values: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        kind(**values)
