"""What is sent of a peer's version, and what its readers make of it: a fragment, or where one is back the whole of it.

A whole copy is float32. A reader rounds of it the fragment that it needs as the sender does, so that it reads the same,
whichever of the two has come.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ray_pcasgd.agents.dense_wire import Draw, Format
from ray_pcasgd.agents.fragments import Fragments
from ray_pcasgd.base.numerics import is_finite


class Opened(NamedTuple):
    """A version as it is read."""

    weights: Tensor
    """Its fragment, and the reader's own numbers elsewhere; shape (D,)."""
    whole: Tensor | None
    """All of it, shape (D,), where it was sent whole in place of a fragment."""


class SentWeights:
    """Encodes and decodes weights of shape (D,).

    Args:
        form: The format of a fragment.
        fragments: How weights are cut.

    """

    def __init__(self, form: Format, fragments: Fragments) -> None:
        self._form = form
        self._fragments = fragments

    def fragment(self, weights: Tensor, draw: Draw) -> Tensor:
        """Return what is sent of a version, whose number is that of the draw."""
        return self._form.encode(self._fragments.cut(weights, draw[3]), draw)

    def whole(self, weights: Tensor) -> Tensor:
        """Return a whole copy as it is sent: as bytes where fragments are."""
        return weights if self._form.is_plain else weights.view(torch.uint8)

    def fragment_bytes(self, numbers: int) -> int:
        """Return the bytes of a fragment of so many numbers."""
        return self._form.num_bytes(self._fragments.length(numbers))

    def opened(self, sent: Tensor, own: Tensor, draw: Draw) -> Opened:
        """Return what a reader with weights of its ``own`` reads of a version.

        Raises:
            ValueError: it is neither a fragment nor a whole copy, or has numbers that are not finite.

        """
        numbers = own.shape[-1]
        length, whole = self._fragments.length(numbers), None
        if self._fragments.fragments > 1:
            each, all_of_it = (length, numbers) if self._form.is_plain else (self.fragment_bytes(numbers), 4 * numbers)
            if len(sent) not in (each, all_of_it):
                unit = "numbers" if self._form.is_plain else "bytes"
                raise ValueError(f"its weights have {len(sent)} {unit}; allowed are {each} and {all_of_it}")
            if len(sent) == all_of_it:
                # A copy, since bytes need not lie where a float may.
                whole = sent if self._form.is_plain else sent.clone().view(torch.float32)
                if not is_finite(whole):
                    raise ValueError("its weights have numbers that are not finite")
                sent = self.fragment(whole, draw)
        part = self._form.opened("weights", sent, length)
        return Opened(self._fragments.filled(part, draw[3], own), whole)
