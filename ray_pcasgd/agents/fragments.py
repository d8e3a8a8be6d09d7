"""Fragments: a version's message holds one part of the model, each in turn (Streaming DiLoCo, arXiv 2501.18512).

A peer takes its own numbers for those that have not come, so that it averages over the part that has, and is by
itself in the others. A worker of a server sends what it has changed of a part since it took that part in last, is
answered with the same part, and goes on by itself in the others.
"""

from functools import lru_cache

from torch import Tensor
from torch.nn import functional

from ray_pcasgd.base.randomness import generator


def part_of(version: int, fragments: int, seed: int) -> int:
    """Return which part a version's message holds, from 0 on; each once in ``fragments`` versions.

    **Choice**: in an order drawn anew for every turn, the same for all agents: a reader that takes two steps in a
    sender's one would else never see every second part.
    """
    turn, place = divmod(version, fragments)
    return _order(turn, fragments, seed)[place]


@lru_cache(256)
def _order(turn: int, fragments: int, seed: int) -> tuple[int, ...]:
    return tuple(generator(seed, "fragments", turn).permutation(fragments).tolist())


class Fragments:
    """How a vector of D numbers is cut into parts.

    **Choice**: equal parts of the model's tensors in their order, the last one filled up with zeros, so that every
    message is as long; Streaming DiLoCo deals out whole layers, whose lengths differ.

    Args:
        fragments: How many parts.
        seed: Of the order in which they come (``part_of``); ``None``: always the same one, from part 0 on, so that as
            many versions lie between two messages that hold a part, as Streaming DiLoCo has it.

    """

    def __init__(self, fragments: int, seed: int | None) -> None:
        self.fragments = fragments
        self._seed = seed

    def part(self, version: int) -> int:
        """Return which part a version's message holds, from 0 on."""
        if self._seed is None:
            return version % self.fragments
        return part_of(version, self.fragments, self._seed)

    def length(self, numbers: int) -> int:
        """Return how many of so many numbers a part has."""
        return -(-numbers // self.fragments)

    def _place(self, version: int, numbers: int) -> tuple[int, int]:
        length = self.length(numbers)
        first = min(numbers, self.part(version) * length)
        return first, min(numbers, first + length)

    def cut(self, vector: Tensor, version: int) -> Tensor:
        """Return the part that a version's message holds, of a vector of shape (D,)."""
        if self.fragments == 1:
            return vector
        first, end = self._place(version, len(vector))
        return functional.pad(vector[first:end], (0, self.length(len(vector)) - (end - first)))

    def filled(self, part: Tensor, version: int, others: Tensor) -> Tensor:
        """Return a whole vector, shape (D,): the part where it belongs, and ``others`` elsewhere."""
        if self.fragments == 1:
            return part
        first, end = self._place(version, len(others))
        whole = others.clone()
        whole[first:end] = part[: end - first]
        return whole
