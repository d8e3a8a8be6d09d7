"""Gathering policies as settings: whom they let wait, what they refuse, and AdaSync's equation."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from ray_pcasgd.rules.gathering import AdaSync, AnyGathering, Gathering


def gathering(value: Any) -> Gathering:
    made: Gathering = TypeAdapter(AnyGathering).validate_python(value)
    return made


@pytest.mark.parametrize(
    ("name", "waits", "cancels"),
    [
        ("sync", True, False),
        ("k-sync", True, True),
        ("k-batch-sync", False, True),
        ("k-async", True, False),
        ("k-batch-async", False, False),
        ("asgd", True, False),
        ("n-softsync", False, False),
        ("quorum", True, False),
    ],
)
def test_who_waits_and_who_is_cancelled(name: str, waits: bool, cancels: bool) -> None:
    graced = {"k": 2, "grace_seconds": 1.5}
    numbers = {"n-softsync": {"n": 2}, "sync": {}, "asgd": {}, "quorum": graced}.get(name, {"k": 2})
    own = gathering({"name": name} | numbers)
    assert (own.waits, own.cancels) == (waits, cancels)
    assert own.base_kind == {
        "sync": "k-async",
        "asgd": "k-async",
        "n-softsync": "k-batch-async",
        "quorum": "k-async",
    }.get(name, name)
    assert own.grace == numbers.get("grace_seconds", 0)
    assert own.adapts_every is None
    if name.startswith("k-"):
        adaptive = gathering({"name": "adasync", "base": name, "every_seconds": 1})
        assert (adaptive.waits, adaptive.cancels) == (waits, cancels)
        assert adaptive.base_kind == name
        assert adaptive.adapts_every == 1


BASES = ("k-sync", "k-async", "k-batch-sync", "k-batch-async")


def wanted_k(base: str, initial_k: int, num_workers: int, ratio: float) -> float:
    """Return the K of the paper's equations, by bisection where they do not give it outright."""
    if base in ("k-batch-sync", "k-batch-async"):
        return min(initial_k * math.sqrt(ratio), num_workers)
    low, high = 0.0, float(num_workers)
    for _ in range(200):
        middle = (low + high) / 2
        # K^2 / (P - K) = r K_0^2 / (P - K_0), both sides times both divisors.
        if middle**2 * (num_workers - initial_k) < ratio * initial_k**2 * (num_workers - middle):
            low = middle
        else:
            high = middle
    return low


@settings(max_examples=200)
@given(
    base=st.sampled_from(BASES),
    num_workers=st.integers(2, 40),
    initial=st.integers(1, 39),
    ratio=st.floats(1e-3, 1e4),
    before=st.integers(1, 40),
)
def test_k_follows_its_equation_and_never_falls(
    base: Any, num_workers: int, initial: int, ratio: float, before: int
) -> None:
    initial_k = min(initial, num_workers - 1)
    k = min(max(before, initial_k), num_workers)
    policy = AdaSync(base=base, initial_k=initial_k, every_seconds=1)
    adapted = policy.adapted(num_workers, k, ratio)
    assert k <= adapted <= num_workers
    wanted = wanted_k(base, initial_k, num_workers, ratio)
    if abs(wanted % 1 - 0.5) > 1e-6:
        assert adapted == max(k, round(wanted))
    assert policy.adapted(num_workers, k, math.inf) == num_workers
    assert policy.adapted(num_workers, initial_k, 1.0) == initial_k


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"name": "k-sync", "k": 5}, "k = 5: allowed are 1 to the number of workers, 4"),
        ({"name": "n-softsync", "n": 5}, "n = 5: allowed are 1 to the number of workers, 4"),
        (
            {"name": "adasync", "initial_k": 4, "every_seconds": 1},
            "initial_k = 4: allowed are values below the number of workers, 4",
        ),
    ],
)
def test_what_does_not_fit_the_number_of_workers_is_refused(value: Any, expected: str) -> None:
    with pytest.raises(ValueError, match=f"^{expected}$"):
        gathering(value).check(4)
    gathering(value).check(5)
