from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from ray_pcasgd.base.numerics import Vectors, all_finite, blockwise, cosine, inner, norm
from ray_pcasgd.base.randomness import generator
from tests.devices import DEVICES

SIZES = [1, 7, 4096, 4097, 62_006, 2_000_003]
EPSILON = torch.finfo(torch.float32).eps


@pytest.fixture(params=[1, 2], ids=["1 thread", "2 threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def vectors(count: int, size: int) -> Tensor:
    return torch.from_numpy(generator(0, "vectors", size).standard_normal((count, size), dtype=np.float32))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.usefixtures("threads")
def test_inner_products_are_the_same_bits_alone_and_batched(size: int) -> None:
    a, b = vectors(3, size), vectors(6, size)[3:]
    for function in (inner, cosine):
        together = torch.func.vmap(function)(a, b)
        assert torch.equal(together, torch.stack([function(x, y) for x, y in zip(a, b, strict=True)]))


@pytest.mark.parametrize("size", SIZES)
def test_inner_products_are_the_same_bits_on_one_and_two_threads(size: int) -> None:
    before = torch.get_num_threads()
    a, b = vectors(2, size)
    results = []
    for count in (1, 2):
        torch.set_num_threads(count)
        results.append(inner(a, b))
    torch.set_num_threads(before)
    assert torch.equal(*results)


@pytest.mark.parametrize("size", SIZES)
def test_inner_products_are_close_to_float64(size: int) -> None:
    """Within four roundings of the sum of the terms' sizes: blocks sum pairwise, so the error hardly grows with D."""
    a, b = vectors(2, size)
    exact = (a.double() * b.double()).sum().item()
    terms = (a.double() * b.double()).abs().sum().item()
    assert abs(inner(a, b).item() - exact) <= 4 * EPSILON * terms
    assert norm(a).item() == pytest.approx(np.linalg.norm(a.double().numpy()), rel=4 * EPSILON)


def test_cosines_of_worked_examples() -> None:
    a = torch.tensor([3.0, 4.0])
    assert cosine(a, a) == 1.0
    assert cosine(a, -a) == -1.0
    assert cosine(a, torch.tensor([4.0, -3.0])) == 0.0
    assert cosine(a, torch.tensor([1.0, 0.0])).item() == pytest.approx(0.6)


def test_the_cosine_with_a_zero_vector_is_zero() -> None:
    a, zero = torch.tensor([3.0, 4.0]), torch.zeros(2)
    assert [cosine(*pair).item() for pair in [(a, zero), (zero, a), (zero, zero)]] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("size", [1, 65_535, 65_536, 65_537, 200_003])
@pytest.mark.usefixtures("threads")
def test_blocks_change_no_bit_of_an_elementwise_function(size: int) -> None:
    x, y, z = vectors(3, size)
    factor = torch.tensor(0.3)

    def function(first: Vectors, rest: Vectors, none: Vectors) -> Vectors:
        return first[0] + factor * rest[0] * rest[1], rest[1] / (first[0] ** 2 + 1)

    expected = function((x,), (y, z), ())
    actual = blockwise(function, (x,), (y, z), ())
    assert len(actual) == 2
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def test_long_vectors_are_cut_into_short_blocks() -> None:
    seen = []

    def function(group: Vectors) -> Vectors:
        seen.append(len(group[0]))
        return (group[0] + 1,)

    x = torch.zeros(1_000_000)
    assert torch.equal(blockwise(function, (x,))[0], torch.ones(1_000_000))
    assert sum(seen) == 1_000_000
    assert len(seen) > 1


@pytest.mark.parametrize("batched", [(0, None), (None, 0), (0, 0)])
def test_blocks_may_run_under_vmap_whatever_is_batched(batched: tuple[int | None, int | None]) -> None:
    x, y = (vectors(3, 200_003) if dim == 0 else vectors(1, 200_003)[0] for dim in batched)

    def function(first: Vectors, second: Vectors) -> Vectors:
        return (first[0] * second[0],)

    apply: Callable[[Tensor, Tensor], Tensor] = lambda a, b: blockwise(function, (a,), (b,))[0]  # noqa: E731
    assert torch.equal(torch.func.vmap(apply, in_dims=batched)(x, y), x * y)


@pytest.mark.usefixtures("threads")
def test_an_inner_product_of_long_vectors_has_the_bits_of_all_rows_at_once() -> None:
    a, b = vectors(2, 4_500_011)
    rows = torch.nn.functional.pad(a * b, (0, -4_500_011 % 4096)).reshape(-1, 4096)
    assert torch.equal(inner(a, b), rows.sum(1).sum(0))
    together = torch.func.vmap(inner)(torch.stack([a, b]), torch.stack([b, b]))
    assert torch.equal(together, torch.stack([inner(a, b), inner(b, b)]))


@pytest.mark.parametrize("device", DEVICES)
def test_of_each_tensor_it_is_known_whether_all_its_numbers_are_finite(device: str) -> None:
    whole, overflowing = torch.ones(5, device=device), torch.full((5,), 3e38, device=device)
    cases = [whole, whole[:0], overflowing, *(torch.tensor([1.0, odd], device=device) for odd in (np.nan, np.inf))]
    for tensors in (cases, cases[::-1], cases[1:2], []):
        assert all_finite(*tensors) == [bool(tensor.isfinite().all()) for tensor in tensors]
