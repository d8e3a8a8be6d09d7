"""One pass over long vectors gives the bits of one operation after another, whatever the numbers are."""

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ray_pcasgd.base import c_compiler, one_pass, one_pass_c
from ray_pcasgd.base.numerics import Vectors
from ray_pcasgd.base.one_pass import SHORTEST, weighted_sums
from ray_pcasgd.base.randomness import generator
from ray_pcasgd.base.sum_terms import Prediction
from ray_pcasgd.records import Own, Reads
from ray_pcasgd.rules import CASGD, DASGD, DCS3GD, PASGD, PCASGD, PCASGDPV, SGP
from ray_pcasgd.rules.base import Rule, mix
from tests.devices import GPUS

SIZE = SHORTEST + 17
NEIGHBORS = 6
ODD = (0.0, -0.0, 1e-42, -1e-42, 3e38, -3e38, float("inf"), -float("inf"), float("nan"), 1.0, -1.0, 1e-20)
"""Zeros of both signs, numbers below float32's full precision, and what overflows or is no number."""


def has_c() -> bool:
    return one_pass_c.library() is not None


@pytest.fixture(params=["C", "PyTorch", *GPUS])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where vectors lie; on the CPU they are summed in C and, as without a compiler, by PyTorch's operations."""
    if request.param in GPUS:
        return str(request.param)
    if request.param == "PyTorch":
        monkeypatch.setattr(one_pass_c, "library", lambda: None)
    elif not has_c():
        pytest.skip("no C compiler is there")
    return "cpu"


def vectors(count: int, size: int = SIZE, *, odd: bool = False, seed: int = 0) -> Vectors:
    random = generator(0, "vectors", seed)
    numbers = random.standard_normal((count, size), dtype=np.float32)
    if odd:
        # Every odd number meets every other one somewhere.
        numbers[:, : size // 2] = random.choice(np.array(ODD, np.float32), (count, size // 2))
    return tuple(torch.from_numpy(numbers))


def one_after_another(vectors: Vectors, weights: Tensor, prediction: Prediction | None) -> tuple[Vectors, Vectors]:
    """Return sums and what is taken from them, by single operations on whole vectors."""
    sums, taken = [], []
    for b, row in enumerate(weights):
        result = row[0] * vectors[0]
        for weight, vector in zip(row[1:], vectors[1:], strict=True):
            result = result + weight * vector
        if prediction is not None:
            moved = torch.zeros_like(result)
            for k, direction in enumerate(prediction.directions):
                rate = prediction.rates[prediction.places[b], k]
                if rate == 0:
                    continue
                if prediction.bends is None:
                    moved = moved + direction * rate
                else:
                    bend = prediction.bends[prediction.places[b], k]
                    moved = moved + direction * (rate + bend * (direction * prediction.drifts[k]))
            theta = prediction.thetas[b]
            taken.append(theta * moved if theta else torch.zeros_like(moved))
            result = result - taken[-1]
        sums.append(result)
    return tuple(sums), tuple(taken)


def assert_same_bits(actual: Tensor, expected: Tensor) -> None:
    actual, expected = actual.cpu(), expected.cpu()
    is_number = ~expected.isnan()
    assert torch.equal(actual.isnan(), expected.isnan())
    assert torch.equal(actual[is_number].view(torch.int32), expected[is_number].view(torch.int32))


@pytest.mark.parametrize("bent", [True, False])
@pytest.mark.parametrize("odd", [True, False])
@pytest.mark.parametrize("size", [SHORTEST, SIZE])
def test_sums_and_predictions_have_the_bits_of_single_operations(device: str, size: int, odd: bool, bent: bool) -> None:
    (*summed, rest) = (vectors(NEIGHBORS + 2, size, odd=odd), vectors(2 * NEIGHBORS, size, odd=odd, seed=1))
    first = tuple(one.to(device) for one in summed[0])
    directions, drifts = (tuple(one.to(device) for one in part) for part in (rest[:NEIGHBORS], rest[NEIGHBORS:]))
    numbers = torch.from_numpy(generator(0, "numbers").standard_normal((9, NEIGHBORS + 2), dtype=np.float32))
    weights, rates = numbers[:3], numbers[3:5, :NEIGHBORS].clone()
    rates[:, 1] = 0.0  # a reliable one
    rates[0, 2] = 0.0
    bends = 0.3 * rates if bent else None
    prediction = Prediction(
        directions, drifts if bent else (), rates, bends, torch.tensor([0.3, 0.0, 1.0]), places=(0, 1, 1)
    )
    for asked in (None, prediction):
        found = weighted_sums(first, weights, asked, with_taken=asked is not None)
        expected = one_after_another(first, weights, asked)
        for actual, wanted in zip((*found.sums, *found.taken), (*expected[0], *expected[1]), strict=True):
            assert_same_bits(actual, wanted)


def test_vectors_of_one_number_in_memory_are_whole_vectors(device: str) -> None:
    own, *others = (one.to(device) for one in vectors(2))
    three, zero = (torch.tensor(number, device=device).expand(SIZE) for number in (3.0, 0.0))
    weights, rates = torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([[0.5, 0.0]])
    prediction = Prediction((three, zero), (three, zero), rates, rates, torch.tensor([0.7]), (0,))
    found = weighted_sums((own, three, *others), weights, prediction, with_taken=True)
    expected = one_after_another((own, three, *others), weights, prediction)
    assert_same_bits(found.sums[0], expected[0][0])
    assert_same_bits(found.taken[0], expected[1][0])


def test_several_threads_share_the_vectors(device: str) -> None:
    before = torch.get_num_threads()
    long = tuple(one.to(device) for one in vectors(3, 3 * one_pass_c.FOR_A_THREAD + 5))
    weights = torch.tensor([[0.5, 0.3, -0.1]])
    torch.set_num_threads(3)
    found = weighted_sums(long, weights).sums[0]
    torch.set_num_threads(before)
    assert_same_bits(found, one_after_another(long, weights, None)[0][0])


RULES: dict[str, Rule] = {
    "d-asgd": DASGD(),
    "c-asgd": CASGD(clipping="renormalize"),
    "p-asgd": PASGD(bounded=False),
    "pc-asgd": PCASGD(theta=0.3),
    "pc-asgd, guarded": PCASGD(stability=1.0),
    "pc-asgd, relative": PCASGD(theta=0.3, compensation={"name": "relative"}),
    "pc-asgd, not compensated": PCASGD(theta=0.3, compensation=0),
    "pc-asgd, own drift": PCASGD(theta=0.3, prediction="own-drift"),
    "pc-asgd-pv": PCASGDPV(candidates=(0.0, (0.5, 2.0), 1.0)),
    "sgp": SGP(),
    "dc-s3gd": DCS3GD(),
}


def inputs(rule: Rule, device: str) -> tuple[Own, Reads]:
    staleness = torch.tensor([0.0, 3.0, 1.0, 0.0])
    own, direction, *rest = (one.to(device) for one in vectors(14))
    none, zeros = torch.zeros(0, device=device), torch.zeros((), device=device).expand(SIZE)
    is_late = staleness.tolist()
    directions, drifts = (
        tuple(one if late else zeros for one, late in zip(part, is_late, strict=True)) for part in (rest[4:8], rest[8:])
    )
    coefficients = {name: torch.tensor(value) for name, value in rule.coefficients(0, 1).items()}
    reads = Reads(
        tuple(rest[:4]),
        directions if rule.needs_directions else (none,) * 4,
        drifts if rule.needs_drift else (none,) * 4,
        torch.full((4,), 0.2),
        staleness,
        staleness,
        staleness == 0,
    )
    return Own(own, direction, torch.tensor(0.2), torch.tensor(0.1), coefficients), reads


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of the vectors that were summed in one pass."""
    seen: list[int] = []

    def watched(vectors: Vectors, *others: Any, **named: Any) -> one_pass.Sums:
        seen.append(len(vectors[0]))
        return weighted_sums(vectors, *others, **named)

    monkeypatch.setattr(one_pass, "weighted_sums", watched)
    return seen


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
def test_a_rule_gives_the_same_bits_in_one_pass_and_in_single_operations(
    rule: Rule, device: str, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    if device in GPUS and not rule.takes_scalars_on_cpu:
        pytest.skip("its numbers are on the GPU, where nobody looks at them before they count")
    own, reads = inputs(rule, device)
    state = rule.init(own.weights, 4)
    found = rule.step(state, own, reads)[1].weights
    assert calls
    del calls[:]
    monkeypatch.setattr(one_pass, "SHORTEST", 1 << 40)
    assert_same_bits(found, rule.step(state, own, reads)[1].weights)
    assert not calls


@pytest.mark.parametrize("rule", [DASGD(), PCASGD(theta=0.3), PCASGD(theta=0.3, prediction="own-drift")], ids=str)
def test_who_has_no_neighbors_steps_alone(rule: Rule, device: str, calls: list[int]) -> None:
    own, reads = inputs(rule, device)
    own = own._replace(mixing=torch.tensor(1.0))
    alone = Reads((), (), (), *(numbers[:0] for numbers in reads[3:]))
    found = rule.step(rule.init(own.weights, 0), own, alone)[1].weights
    assert calls
    assert_same_bits(found, own.weights - own.step_size * own.direction)


def test_what_vmap_steps_together_is_summed_as_alone(calls: list[int]) -> None:
    a, b, c, d = vectors(4)
    numbers = torch.tensor([[0.5, 0.25], [0.25, 0.75]])
    together = torch.func.vmap(lambda own, weight, other: mix(weight[0], own, weight[1:], (other,)))(
        torch.stack([a, b]), numbers, torch.stack([c, d])
    )
    assert not calls
    for row, own, weight, other in zip(together, (a, b), numbers, (c, d), strict=True):
        assert_same_bits(row, mix(weight[0], own, weight[1:], (other,)))
    assert len(calls) == 2


def test_who_has_no_vectors_of_that_kind_is_not_taken() -> None:
    long = torch.zeros(SIZE)
    number = torch.tensor(1.0)
    assert one_pass.takes((long, long), (number,))
    refused: list[tuple[Vectors, Vectors]] = [
        ((torch.zeros(SHORTEST),) * 2, (number,)),
        ((torch._neg_view(long), long), (number,)),
        ((long, torch.zeros(SIZE - 1)), (number,)),
        ((long, torch.zeros(2 * SIZE)[::2]), (number,)),
        ((long.double(), long.double()), (number,)),
        ((long, long), (number.double(),)),
        ((long, long), (long,)),
        ((long.view(1, -1), long.view(1, -1)), (number,)),
        ((torch.zeros(SIZE, requires_grad=True), long), (number,)),
    ]
    assert [one_pass.takes(*case) for case in refused] == [False] * len(refused)


def test_what_no_compiler_makes_is_no_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    source = tmp_path / "odd.c"
    source.write_text("this is no C\n", encoding="utf-8")
    caplog.set_level(logging.INFO, "ray_pcasgd")
    if has_c():
        assert c_compiler.compiled(source) is None
        assert "it goes on without odd.c" in caplog.text
    monkeypatch.setenv("PATH", str(tmp_path))
    assert c_compiler.compiled(source, "-DOTHER") is None
    assert "there is no C compiler" in caplog.text


def test_a_compiler_whose_words_cannot_be_read_or_that_has_no_room_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\nprintf 'Fehler: \\374bel\\n' >&2\nexit 1\n", encoding="utf-8")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert c_compiler.compiled(tmp_path / "one.c") is None
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    assert c_compiler.compiled(tmp_path / "other.c") is None


@pytest.mark.parametrize("given", [1, 3])
def test_weights_and_vectors_have_to_be_as_many(given: int) -> None:
    long = torch.zeros(SIZE)
    with pytest.raises(ValueError, match=f"there are {given} weights for 2 vectors"):
        one_pass.weighted_sums((long, long), torch.ones(1, given))
    prediction = Prediction((long,), (), torch.ones(1, 2), None, torch.ones(1), (0,))
    with pytest.raises(ValueError, match="1 directions for 2 rates"):
        one_pass.weighted_sums((long, long), torch.ones(1, 2), prediction)


def test_without_a_compiler_the_default_type_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_pass_c, "library", lambda: None)
    vectors = (torch.full((SIZE,), 1 / 3), torch.full((SIZE,), 1 / 7))
    expected = 0.3 * vectors[0] + 0.7 * vectors[1]
    torch.set_default_dtype(torch.bfloat16)
    try:
        weights = torch.tensor([[0.3, 0.7]], dtype=torch.float32)
        assert_same_bits(one_pass.weighted_sums(vectors, weights).sums[0], expected)
    finally:
        torch.set_default_dtype(torch.float32)
