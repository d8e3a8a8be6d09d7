"""Sparse wire formats: a part of a vector's numbers travels, and what was left out comes later (error feedback)."""

import math
from abc import abstractmethod
from fractions import Fraction
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ray_pcasgd.agents.dense_wire import Draw, Format
from ray_pcasgd.base.randomness import generator, stream_seed


class Sparse(Format):
    """A format that leaves most numbers out: of directions and gradients, never of weights."""

    is_sparse: ClassVar[bool] = True

    share: float = Field(0.01, gt=0, le=1)
    """The share of the numbers that travels, above 0 and up to 1, rounded up to whole numbers."""

    def num_kept(self, numbers: int) -> int:
        """Return how many of so many numbers travel."""
        # The share as it is written: 0.07 in binary is more than that, and 8 of 100 numbers.
        return math.ceil(Fraction(repr(self.share)) * numbers)

    @abstractmethod
    def _places(self, encoded: Tensor, numbers: int) -> Tensor:
        """Return where the numbers that travel belong, shape (k,), int64."""

    def _values(self, encoded: Tensor, numbers: int) -> Tensor:
        """Return the numbers that travel, shape (k,); they are the last bytes."""
        count = 4 * self.num_kept(numbers)
        return encoded[len(encoded) - count :].clone().view(torch.float32)

    def decode(self, encoded: Tensor, numbers: int) -> Tensor:
        """Return the numbers that have come, and 0 in the place of others.

        Raises:
            ValueError: a number has no place in the vector.

        """
        places = self._places(encoded, numbers)
        if places.numel() and not (int(places.min()) >= 0 and int(places.max()) < numbers):
            raise ValueError(f"it has numbers at places that are not among the {numbers}")
        result = torch.zeros(numbers, device=encoded.device)
        result[places] = self._values(encoded, numbers)
        return result


class TopK(Sparse):
    """The largest numbers by magnitude, each with its place: 8 bytes for each of them."""

    name: Literal["top-k"] = "top-k"

    def num_bytes(self, numbers: int) -> int:
        """Return 4 bytes for each place and for each number."""
        return 8 * self.num_kept(numbers)

    def encode(self, vector: Tensor, draw: Draw) -> Tensor:
        """Return the places, rising, and then the numbers; of equal magnitudes the first."""
        order = torch.sort(vector.abs(), descending=True, stable=True).indices
        places = order[: self.num_kept(vector.numel())].sort().values
        return torch.cat([places.to(torch.int32).view(torch.uint8), vector[places].view(torch.uint8)])

    def _places(self, encoded: Tensor, numbers: int) -> Tensor:
        return encoded[: 4 * self.num_kept(numbers)].clone().view(torch.int32).long()


class RandomK(Sparse):
    """Numbers at random places, which the seed of the draw tells: 4 bytes for each of them."""

    name: Literal["random-k"] = "random-k"

    def num_bytes(self, numbers: int) -> int:
        """Return 8 bytes for the seed and 4 for each number."""
        return 8 + 4 * self.num_kept(numbers)

    def encode(self, vector: Tensor, draw: Draw) -> Tensor:
        """Return the seed, and then the numbers by their places, which rise."""
        seed, what, agent, version = draw
        drawn = stream_seed(seed, f"wire {what}", agent, version)
        kept = vector[self._drawn(drawn, vector.numel()).to(vector.device)]
        return torch.cat([torch.tensor([drawn], device=vector.device).view(torch.uint8), kept.view(torch.uint8)])

    def _drawn(self, seed: int, numbers: int) -> Tensor:
        places = generator(seed, "random-k").choice(numbers, self.num_kept(numbers), replace=False, shuffle=False)
        return torch.from_numpy(np.sort(places))

    def _places(self, encoded: Tensor, numbers: int) -> Tensor:
        seed = int(encoded[:8].clone().view(torch.int64).item())
        return self._drawn(seed, numbers).to(encoded.device)
