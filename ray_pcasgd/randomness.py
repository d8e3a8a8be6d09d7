"""Named random streams: one for each purpose and agent, so that one more draw shifts no other stream."""

import hashlib
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
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


@contextmanager
def seeded(seed: int, cuda_devices: Sequence[int] = ()) -> Iterator[None]:
    """Seed what the user's own code draws from, the global generators, and put them back as they were afterwards."""
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002 - users' code draws from it
    with torch.random.fork_rng(devices=list(cuda_devices)):
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)  # noqa: NPY002


def torch_generator(seed: int, purpose: str, *keys: int) -> torch.Generator:
    """Return torch's CPU generator of the named stream."""
    result = torch.Generator()
    result.manual_seed(stream_seed(seed, purpose, *keys))
    return result
