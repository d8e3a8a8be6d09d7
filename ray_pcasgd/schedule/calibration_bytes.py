"""Calibration over messages of several sizes: how much of what they took is latency, and how much a bandwidth."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ray_pcasgd.schedule.calibration import Bounds, fitted
from ray_pcasgd.schedule.laws import ConstantLaw, LogNormal

_OUTLIERS = 3.0
"""From how many spreads above the median on a message counts as one that has stood in a queue."""
_SPREAD = 0.02
"""The least such spread, as a share of the median."""
_PASSES = 10
"""How often messages are looked through for those that stood in queues, at most."""
_SMALLEST = 1e-6
_FASTEST = 1e15
"""Bits a second from which on a bandwidth counts as none."""

Law = LogNormal | ConstantLaw


class LinkTimes(NamedTuple):
    """How long messages take on a group of links, by their bytes."""

    latency: Law | None
    """Seconds that a message takes besides its transmission; ``None``: nothing tells of any."""
    bits_per_second: float | None
    """``None``: messages of one size alone tell of none, nor those that take no longer where they are longer."""


def link_times(found: Mapping[int, Sequence[Bounds]]) -> LinkTimes:
    """Return the line ``seconds = latency + 8 bytes / bandwidth`` through what messages took, by their bytes.

    Of each size the median that is likeliest given the bounds, without messages that stood in queues; through these
    medians a line by least squares, each as heavy as messages of its size tell of a time. What is left of all messages
    without their transmission gives the latency's law.

    **Choice**: in a queue a message takes longer, never less. So the spread of a size is that of the messages below its
    median, and what lies 3 spreads above it is left out, again and again until nothing does.
    """
    free = {size: _without_queues(bounds) for size, bounds in found.items()}
    laws = {size: law for size, bounds in free.items() if (law := fitted(bounds)) is not None}
    sizes = sorted(laws)
    per_byte = 0.0
    if len(sizes) > 1:
        weights = [float(sum(one.above > 0 for one in free[size])) for size in sizes]
        per_byte = _slope(sizes, [_median(laws[size]) for size in sizes], weights)
    if _FASTEST * per_byte <= 8:
        return LinkTimes(fitted([one for bounds in found.values() for one in bounds]), None)
    left = [_shifted(one, size * per_byte) for size, bounds in free.items() for one in bounds]
    return LinkTimes(fitted(left), 8 / per_byte)


def _median(law: Law) -> float:
    return law.value if isinstance(law, ConstantLaw) else law.median


def _slope(sizes: Sequence[int], seconds: Sequence[float], weights: Sequence[float]) -> float:
    """Return the seconds a byte of the likeliest line whose latency is not negative."""
    size, second, weight = (np.array(values, float) for values in (sizes, seconds, weights))
    mean_size, mean_second = (float(np.average(values, weights=weight)) for values in (size, second))
    apart = size - mean_size
    slope = float((weight * apart * (second - mean_second)).sum() / (weight * apart**2).sum())
    if mean_second - slope * mean_size < 0:
        slope = float((weight * size * second).sum() / (weight * size**2).sum())
    return max(0.0, slope)


def _without_queues(bounds: Sequence[Bounds]) -> list[Bounds]:
    """Return what messages took without those that are far above the others."""
    left = list(bounds)
    for _ in range(_PASSES):
        if (limit := _limit(left)) is None:
            break
        fewer = [one for one in left if one.above <= limit]
        if len(fewer) == len(left):
            break
        left = fewer
    return left


def _limit(bounds: Sequence[Bounds]) -> float | None:
    """Return above how many seconds a message has stood in a queue; ``None`` where nothing tells of any time."""
    exact = np.log([one.most for one in bounds if one.above == one.most])
    if 2 * len(exact) >= sum(one.above > 0 for one in bounds) and len(exact):
        middle = float(np.median(exact))
        # Of a normal law, half of those below the median are within 0.6745 of its spread.
        spread = float(np.median(middle - exact[exact <= middle])) / 0.6745
    elif isinstance(law := fitted(bounds), LogNormal):
        middle, spread = math.log(law.median), law.sigma
    else:
        return None
    return math.exp(middle + _OUTLIERS * max(spread, _SPREAD))


def _shifted(one: Bounds, seconds: float) -> Bounds:
    """Return what a message took besides its transmission."""
    most = max(_SMALLEST, one.most - seconds)
    return Bounds(most if one.above == one.most else max(0.0, one.above - seconds), most)
