"""The true staleness of what live agents read, as the whole record shows afterwards."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from ray_pcasgd.records import Row

WITHIN_STEPS, WITHIN_SHARE = 1, 0.1
"""An estimate is right that is off by no more than one step, or a tenth of the truth."""


class Staleness(NamedTuple):
    """Recorded staleness against the truth, over all reads of a run."""

    reads: int
    recorded: float
    """Mean recorded staleness, in steps."""
    true: float
    """Mean true staleness, in steps."""
    right: float
    """Share of the reads whose recorded staleness is within one step or a tenth of the truth."""
    largest_error: int
    """The most steps by which a recorded staleness was above the truth."""


def staleness_of(rows: Iterable[Row]) -> Staleness:
    """Return how right a record's staleness is: by then, its sender had come to the versions that it had reported."""
    rows = list(rows)
    published: defaultdict[int, list[tuple[float, int]]] = defaultdict(list)
    for row in rows:
        published[row.agent].append((row.end, row.step + 1))
    moments, versions = {}, {}
    for agent, own in published.items():
        own.sort()
        moments[agent] = [moment for moment, _ in own]
        versions[agent] = np.maximum.accumulate([version for _, version in own])
    pairs = []
    for row in rows:
        for read in row.reads if row.kind == "step" else ():
            before = bisect_right(moments.get(read.neighbor, []), row.end)
            newest = int(versions[read.neighbor][before - 1]) if before else 0
            pairs.append((read.staleness, max(0, newest - read.version)))
    if not pairs:
        return Staleness(0, 0.0, 0.0, 1.0, 0)
    recorded, true = np.array(pairs).T
    right = np.abs(recorded - true) <= np.maximum(WITHIN_STEPS, WITHIN_SHARE * true)
    return Staleness(len(pairs), recorded.mean(), true.mean(), right.mean(), int((recorded - true).max()))
