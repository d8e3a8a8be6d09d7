"""Named random streams: one for each purpose and agent, so that one more draw shifts no other stream."""

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def stream_seed(seed: int, purpose: str, *keys: int) -> int:
    """Return a 63-bit seed that depends on the run's seed, the purpose and the keys (agent, step, ...) alone."""
    text = ":".join([str(seed), purpose, *map(str, keys)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, purpose: str, *keys: int) -> np.random.Generator:
    """Return numpy's generator of the named stream.

    >>> generator(0, "delay", 1, 2).random() == generator(0, "delay", 1, 2).random()
    True
    >>> generator(0, "delay", 1, 2).random() == generator(0, "delay", 2, 1).random()
    False
    """
    return np.random.default_rng(stream_seed(seed, purpose, *keys))


def torch_generator(seed: int, purpose: str, *keys: int) -> "torch.Generator":
    """Return torch's CPU generator of the named stream."""
    import torch  # planners draw from numpy's generators alone

    result = torch.Generator()
    result.manual_seed(stream_seed(seed, purpose, *keys))
    return result
