"""Arrays of segments: what is of one agent, link or host lies in a row, those of the next one follow.

Segments are given by where each of them begins, and where the last one ends: ``bounds``, shape (segments + 1,).
"""

import numpy as np

LIMIT = 2**62
"""Whole numbers of 64 bits stay exact below it."""


class OutOfRangeError(Exception):
    """Numbers leave the range of 64 bits, or that of the rounds of one instant."""


def bounds_of(counts: np.ndarray) -> np.ndarray:
    """Return the bounds of segments of these lengths."""
    bounds = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=bounds[1:])
    return bounds


def spread(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return ``counts[i]`` whole numbers from ``starts[i]`` on, one segment after another.

    >>> spread(np.array([5, 0]), np.array([2, 3])).tolist()
    [5, 6, 0, 1, 2]
    """
    bounds = bounds_of(counts)
    numbers = np.repeat(starts - bounds[:-1], counts)
    numbers += np.arange(bounds[-1])
    return numbers


def merged(before: np.ndarray, old: np.ndarray, more: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Return an array with ``before`` at the places ``old`` and ``more`` at the places ``new``."""
    result = np.empty(len(before) + len(more), dtype=before.dtype)
    result[old], result[new] = before, more
    return result


def running_maximum(values: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Return the largest of each segment's whole numbers so far.

    >>> running_maximum(np.array([3, 1, 4, 2, -1, 5]), np.array([0, 3, 6])).tolist()
    [3, 3, 4, 2, 2, 5]
    """
    if not len(values):
        return values
    counts = np.diff(bounds)
    largest, smallest_first = int(values.max()), int(values[bounds[:-1][counts > 0]].min())
    above = largest - smallest_first + 1
    if above * len(counts) + max(largest, -smallest_first) < LIMIT:
        # The first of each segment is lifted above all of the segments before, and so is what counts of the others.
        lift = np.repeat(np.arange(len(counts)) * above, counts)
        result = values + lift
        np.maximum.accumulate(result, out=result)
        result -= lift
        return result
    place = spread(np.zeros_like(counts), counts)
    result, reach = values.copy(), 1
    while reach < counts.max():
        has_earlier = np.flatnonzero(place >= reach)
        result[has_earlier] = np.maximum(result[has_earlier], result[has_earlier - reach])
        reach *= 2
    return result


def through_queues(
    first: np.ndarray, service: np.ndarray, bounds: np.ndarray, free: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return when each message begins to pass its queue, and when it is through.

    A queue takes one message after another, a segment's in their order: one that comes at ``first`` begins at
    ``max(first, end of the one before)`` and takes ``service`` (Lindley's recurrence). ``free``, shape (segments,), is
    when each queue has let through what came before; it is brought up to date.

    Raises:
        OutOfRangeError: the numbers are too large.

    """
    if not len(first):
        return first, first
    counts = np.diff(bounds)
    if int(service.max()) * int(counts.max()) + max(int(free.max()), int(first.max())) > LIMIT // 4:
        raise OutOfRangeError
    used = counts > 0
    starts = bounds[:-1][used]
    before = np.cumsum(service)
    before -= service
    before -= np.repeat(before[starts], counts[used])
    # Less what is transmitted before it, a message begins at the latest such moment so far.
    begins = first - before
    begins[starts] = np.maximum(begins[starts], free[used])
    begins = running_maximum(begins, bounds)
    begins += before
    ends = begins + service
    free[used] = ends[bounds[1:][used] - 1]
    return begins, ends
