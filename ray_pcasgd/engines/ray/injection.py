"""What a live run adds to the real network and the real machines."""

from dataclasses import dataclass

from ray_pcasgd.schedule.barrier import Barrier
from ray_pcasgd.timing import ComputeTimes, LinkDelay


@dataclass(frozen=True)
class Injection:
    """What a live run adds to the real network and the real machines."""

    seed: int
    compute: ComputeTimes
    """Of which only ``stragglers`` count."""
    links: tuple[LinkDelay, ...]
    clusters: tuple[int, ...]
    barrier: Barrier
