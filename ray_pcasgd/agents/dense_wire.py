"""Dense wire formats: every number of a vector travels, in fewer bits."""

from abc import abstractmethod
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from ray_pcasgd.base.numerics import is_finite
from ray_pcasgd.base.randomness import torch_generator
from ray_pcasgd.base.settings import Settings

Draw = tuple[int, str, int, int]
"""The run's seed, what is encoded, its agent and its version: the stream that stochastic rounding draws from."""

_LARGEST = torch.finfo(torch.float32).max
_LARGEST_BF16 = torch.finfo(torch.bfloat16).max


class Format(Settings):
    """A format of one vector of float32 numbers."""

    is_plain: ClassVar[bool] = False
    """Whether what travels are the numbers themselves."""
    is_sparse: ClassVar[bool] = False
    """Whether most numbers are left out, so that senders have to remember them."""

    @abstractmethod
    def num_bytes(self, numbers: int) -> int:
        """Return the bytes of a vector of so many numbers."""

    @abstractmethod
    def encode(self, vector: Tensor, draw: Draw) -> Tensor:
        """Return a finite vector of shape (D,) as it travels: its bytes, shape (``num_bytes(D)``,), uint8."""

    @abstractmethod
    def decode(self, encoded: Tensor, numbers: int) -> Tensor:
        """Return what was encoded, shape (D,), float32, wherever the bytes come from."""

    def opened(self, name: str, encoded: Tensor, numbers: int) -> Tensor:
        """Return what was encoded.

        Raises:
            ValueError: it has not as many bytes as such a vector; or there are numbers in it that are not finite, which
                no sender's are.

        """
        if not self.is_plain and encoded.shape[-1] != self.num_bytes(numbers):
            raise ValueError(f"its {name} have {encoded.shape[-1]} bytes; allowed are {self.num_bytes(numbers)}")
        vector = self.decode(encoded, numbers)
        if not (self.is_plain or is_finite(vector)):
            raise ValueError(f"its {name} have numbers that are not finite")
        return vector


class Float32(Format):
    """The numbers themselves, 4 bytes each."""

    name: Literal["float32"] = "float32"
    is_plain: ClassVar[bool] = True

    def num_bytes(self, numbers: int) -> int:
        """Return 4 bytes for each number."""
        return 4 * numbers

    def encode(self, vector: Tensor, draw: Draw) -> Tensor:
        """Return the vector."""
        return vector

    def decode(self, encoded: Tensor, numbers: int) -> Tensor:
        """Return the vector."""
        return encoded


class BF16(Format):
    """Rounded to bfloat16, to nearest, ties to even: 2 bytes a number, 8 bits of precision."""

    name: Literal["bf16"] = "bf16"

    def num_bytes(self, numbers: int) -> int:
        """Return 2 bytes for each number."""
        return 2 * numbers

    def encode(self, vector: Tensor, draw: Draw) -> Tensor:
        """Return the rounded numbers; those beyond the largest one are the largest one."""
        return vector.clamp(-_LARGEST_BF16, _LARGEST_BF16).to(torch.bfloat16).view(torch.uint8)

    def decode(self, encoded: Tensor, numbers: int) -> Tensor:
        """Return the rounded numbers."""
        return encoded.contiguous().view(torch.bfloat16).float()


class _Blocks(Format):
    """Whole numbers in units of their block's largest magnitude over ``top``, rounded at random to one of two.

    ``q = floor(x / unit + r)`` with ``r`` uniform in [0, 1), so that ``q unit`` is x in the mean (QSGD, Alistarh et al.
    2017, with the largest magnitude in place of the norm). The bytes of a vector are those of q, then the units.
    """

    top: ClassVar[int]
    """The largest whole number."""

    block: int = Field(256, ge=8, le=65_536, multiple_of=8)
    """Numbers that share a unit."""

    def num_bytes(self, numbers: int) -> int:
        """Return the bytes of the whole numbers and of the units."""
        return self._packed_bytes(numbers) + 4 * self._num_blocks(numbers)

    def _num_blocks(self, numbers: int) -> int:
        return -(-numbers // self.block)

    @abstractmethod
    def _packed_bytes(self, numbers: int) -> int:
        """Return the bytes of the whole numbers."""

    @abstractmethod
    def _pack(self, whole: Tensor) -> Tensor:
        """Return whole numbers from ``-top`` to ``top``, shape (D,), int8, as bytes."""

    @abstractmethod
    def _unpack(self, packed: Tensor, numbers: int) -> Tensor:
        """Return the whole numbers, shape (D,), of a type that can be converted to float32."""

    def encode(self, vector: Tensor, draw: Draw) -> Tensor:
        """Return the whole numbers and the units."""
        size = vector.numel()
        blocks = functional.pad(vector, (0, self._num_blocks(size) * self.block - size)).view(-1, self.block)
        # Bounded, so that no number is decoded as an infinite one.
        units = (blocks.abs().amax(1, keepdim=True) / self.top).clamp(max=_LARGEST / (self.top + 1))
        # Drawn on the CPU, the same for every device.
        seed, what, agent, version = draw
        stream = torch_generator(seed, f"wire {what}", agent, version)
        random = torch.empty(size).uniform_(generator=stream)
        random = functional.pad(random.to(vector.device), (0, blocks.numel() - size)).view_as(blocks)
        # A block of zeros, or of numbers so small that their unit is 0, is sent as zeros.
        whole = torch.floor(blocks / torch.where(units > 0, units, 1.0) + random).clamp_(-self.top, self.top)
        whole = torch.where(units > 0, whole, 0.0)
        return torch.cat([self._pack(whole.view(-1)[:size].to(torch.int8)), units.view(-1).view(torch.uint8)])

    def decode(self, encoded: Tensor, numbers: int) -> Tensor:
        """Return the whole numbers times their units."""
        place = self._packed_bytes(numbers)
        # A copy where the units do not lie at a multiple of four bytes, as a view of floats must.
        units = encoded[place:].clone().view(torch.float32)
        whole = self._unpack(encoded[:place], numbers).float()
        padded = functional.pad(whole, (0, self._num_blocks(numbers) * self.block - numbers)).view(-1, self.block)
        return (padded * units[:, None]).view(-1)[:numbers]


class Int8(_Blocks):
    """Whole numbers of 8 bits, from -127 to 127, with a unit for each block: about 1 byte a number."""

    name: Literal["int8"] = "int8"
    top: ClassVar[int] = 127

    def _packed_bytes(self, numbers: int) -> int:
        return numbers

    def _pack(self, whole: Tensor) -> Tensor:
        return whole.view(torch.uint8)

    def _unpack(self, packed: Tensor, numbers: int) -> Tensor:
        return packed.contiguous().view(torch.int8)


class Int4(_Blocks):
    """Whole numbers of 4 bits, from -7 to 7, with a unit for each block: about half a byte a number."""

    name: Literal["int4"] = "int4"
    top: ClassVar[int] = 7

    block: int = Field(64, ge=8, le=65_536, multiple_of=8)
    """Numbers that share a unit."""

    def _packed_bytes(self, numbers: int) -> int:
        return -(-numbers // 2)

    def _pack(self, whole: Tensor) -> Tensor:
        pairs = functional.pad(whole + 8, (0, whole.numel() % 2)).to(torch.uint8).view(-1, 2)
        return pairs[:, 0] | (pairs[:, 1] << 4)

    def _unpack(self, packed: Tensor, numbers: int) -> Tensor:
        pairs = torch.stack([packed & 15, packed >> 4], dim=1)
        return pairs.view(-1)[:numbers].to(torch.int8) - 8
