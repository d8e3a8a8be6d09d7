"""Items that are drawn at random: the global generators seeded around each draw, and which data sets need it."""

import pickle
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as trees

from ray_pcasgd.base.randomness import stream_seed
from ray_pcasgd.tasks.trees import with_dicts

Nature = Literal["fixed", "random", "unseeded"]
"""Of a data set's items: ``fixed`` ones are the same each time; ``random`` ones follow from the states of the global
generators; ``unseeded`` ones differ although these are the same, since they have a generator of their own."""

_EXAMINED_ITEMS = 8


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators of Python, NumPy and PyTorch, and put them back as they were afterwards."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    before = random.getstate(), np.random.get_state(legacy=False)  # noqa: NPY002 - what users' transforms draw from
    with torch.random.fork_rng(devices):
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        # Not torch.manual_seed, which formats a stack trace at every call.
        torch.default_generator.manual_seed(seed)
        for device in devices:
            torch.cuda.default_generators[device].manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])  # noqa: NPY002


def generator_states() -> tuple[Any, bytes, bytes]:
    """Return the states of the global generators, to be compared."""
    numpy_state = pickle.dumps(np.random.get_state(legacy=False))  # noqa: NPY002
    return random.getstate(), numpy_state, torch.get_rng_state().numpy().tobytes()


class _Draw(NamedTuple):
    """One item, and the generators before and after it was taken."""

    item: Any
    before: tuple[Any, bytes, bytes]
    after: tuple[Any, bytes, bytes]


def nature_of(take: Callable[[Sequence[int]], Any], number: int) -> tuple[Nature, int]:
    """Return how a data set's ``number`` items are drawn, and the place of one that shows it.

    Some items are taken, three times each. An item that draws changes the generators' states, even where the draw has
    no effect this time; one that seeds the generators itself leaves them the same each time.
    """
    found: tuple[Nature, int] = ("fixed", 0)
    places = np.linspace(0, number - 1, min(number, _EXAMINED_ITEMS)).astype(int).tolist()
    for place in dict.fromkeys(places):
        one, other = (stream_seed(0, "examined items", place, k) for k in range(2))
        first, again, different = (_draw(take, place, seed) for seed in (one, one, other))
        if not are_alike(first.item, again.item):
            return "unseeded", place
        moved = any(map(_draws, first.before, first.after, different.after))
        if found[0] == "fixed" and (moved or not are_alike(first.item, different.item)):
            found = ("random", place)
    return found


def _draws(before: Any, after: Any, otherwise: Any) -> bool:
    """Return whether a generator was drawn from, and not seeded: then it would be the same from any state."""
    return bool(after not in (before, otherwise))


def _draw(take: Callable[[Sequence[int]], Any], place: int, seed: int) -> _Draw:
    with seeded(seed):
        before = generator_states()
        item = take([place])
        return _Draw(item, before, generator_states())


def are_alike(one: Any, other: Any) -> bool:
    """Return whether two nested structures of tensors hold the same values; NaN equals itself."""
    (leaves, form), (others, other_form) = (trees.tree_flatten(with_dicts(each)) for each in (one, other))
    return form == other_form and all(map(_same, leaves, others))


def _same(one: Any, other: Any) -> bool:
    if not (isinstance(one, Tensor) and isinstance(other, Tensor)):
        return bool(one == other)
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return bool(((one == other) | ((one != one) & (other != other))).all())
